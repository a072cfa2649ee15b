"""A run's folder, read back: the trained method, its data and what it was judged by.

run = sensorium.load("sensorium-runs/mae")
run.features(images)
"""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.catalogue import allowed, resolve
from sensorium.data.source import Source
from sensorium.data.wings import kind
from sensorium.errors import SensoriumError
from sensorium.judge import evaluator
from sensorium.judge.score import Asked, Judgement
from sensorium.method import Method
from sensorium.recipe.recipe import Recipe, Setting, Settings


def make_recipe(name: str, on: Any, given: dict[str, Any]) -> Recipe:
    """Resolve the recipe of a system's name or of ``FILE.py:FUNCTION`` and call it; the settings say what was given."""
    function = resolve(name)
    try:
        recipe: Recipe = function(on, **given)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise SensoriumError(f"{name}: {error}. `sensorium train {name} --help` lists its settings.") from None
        raise
    settings = Settings(recipe.settings)
    for key in given:
        if key in settings and given[key] is not None:
            settings[key] = Setting(settings[key].value, "given")
    return Recipe(
        recipe.name, recipe.method, recipe.views, recipe.optimizer, recipe.schedule, recipe.batch_size, settings
    )


class Run:
    """A run's folder, read back. The method is rebuilt from its settings and filled from ``model.safetensors``."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.info: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        except FileNotFoundError:
            raise SensoriumError(
                f"'{folder}' is no run: it has no run.json. Train one: sensorium train mae --data DIR --out {folder}"
            ) from None
        except json.JSONDecodeError as error:
            raise SensoriumError(f"{self.folder / 'run.json'}: not readable as JSON ({error}).") from None
        try:
            kept = {k: tuple(v) if isinstance(v, list) else v for k, v in self.info["situation"].items()}
            self.kind = kind(self.info["kind"])
            self.situation: Any = self.kind.SITUATION(**kept)
        except (KeyError, TypeError, AttributeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise SensoriumError(
                f"{self.folder / 'run.json'}: not as this version writes it ({said}). Train the run again."
            ) from None
        if not isinstance(self.info.get("recipe"), str) or not allowed(self.info["recipe"]):
            recipe = self.info.get("recipe")
            raise SensoriumError(
                f"{self.folder / 'run.json'}: this run was made by '{recipe}', a program that opening it would execute. "
                f"If you trust it, name it in the same command: --recipe {recipe}"
            )

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return (self.folder / "outcome.json").is_file()

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """Steps, seconds, images a second ... as the training left them."""
        return json.loads((self.folder / "outcome.json").read_text())

    @cached_property
    def recipe(self) -> Recipe:
        """Rebuilt from the values that were resolved when it was trained, so later defaults change nothing."""
        torch.manual_seed(self.info["seed"])
        known = inspect.signature(resolve(self.info["recipe"])).parameters
        kept = {k: s["value"] for k, s in self.info["settings"].items() if k in known}
        return make_recipe(self.info["recipe"], self.situation, kept | self.info["given"])

    @cached_property
    def method(self) -> Method:
        """The trained method, in evaluation mode."""
        from safetensors.torch import load_file

        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise SensoriumError(
                f"{path} is missing: the run has not finished. Run the same command again to continue it."
            )
        method = self.recipe.method
        method.load_state_dict(load_file(path))
        return method.eval()

    @property
    def backbone(self) -> torch.nn.Module:
        return self.method.backbone  # type: ignore[return-value]

    def prepare_images(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of any size -> float [B, 3, S, S], normalised as in training; floats pass unchanged."""
        from sensorium.data.augment.images import plain

        return (
            plain(images, self.situation.mean, self.situation.std, self.situation.image_size)
            if images.dtype == torch.uint8
            else images
        )

    @torch.inference_mode()
    def features(self, images: Tensor | np.ndarray) -> Tensor:
        """Images, uint8 [B, 3, H, W] of any size or float already normalised, -> features [B, D] float32."""
        images = torch.as_tensor(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        if images.ndim != 4 or images.shape[1] != 3:
            raise SensoriumError(f"features wants images [B, 3, H, W], not {list(images.shape)}.")
        return self.method.features(self.prepare_images(images)).float()  # type: ignore[operator]

    def judge(self, ready: Any = None, **asked: Any) -> Judgement:
        """Every score that the method's abilities and the data (``ready``, or the run's own) allow, kept in
        ``evaluation.json``.

        ``asked`` are the fields of :class:`sensorium.judge.score.Asked`.
        """
        return evaluator.judge(self, self.data() if ready is None else ready, Asked(**asked))

    def data(self) -> Any:
        """The data that the run was trained on, as its kind prepares them, from the cache where that is still there."""
        info = self.info["data"]
        source = Source(info["path"], info["test"], Path(info["cache"]), limit=info["limit"], run=self.folder)
        return self.kind.prepare(replace(source, **self.kind.wanted(self.situation)))
