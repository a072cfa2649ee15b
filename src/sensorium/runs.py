"""One run: a recipe, data and a budget make a folder; the folder gives the trained method back.

import sensorium as s
run = s.train("mae", data="photos/", budget="10m")
run.features(images)
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sensorium.catalogue import allow, allowed, resolve
from sensorium.errors import SensoriumError
from sensorium.kinds import Asked, Source, kind, kind_name
from sensorium.method import Method
from sensorium.recipes.recipe import Recipe, Setting, Settings, Situation
from sensorium.training.budget import Budget
from sensorium.training.files import write_json


def show_settings(recipe: Recipe) -> None:
    """Every resolved setting and where it came from, on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, setting in recipe.settings.items():
        value = f"{setting.value:g}" if isinstance(setting.value, float) else str(setting.value)
        table.add_row(f"  {name}", value, f"[dim]{setting.source}[/]")
    console = Console(stderr=True)
    console.print(f"[bold]{recipe.name}[/]")
    console.print(table)


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
        from sensorium.data.augment import plain

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

    def judge(self, ready: Any = None, **asked: Any) -> dict[str, Any]:
        """Every score that the data (``ready``, or the run's own) allow, kept in ``evaluation.json``.

        ``asked`` are the fields of :class:`sensorium.kinds.Asked`.
        """
        return self.kind.judge(self, self.data() if ready is None else ready, Asked(**asked))

    def data(self) -> Any:
        """The data that the run was trained on, as its kind prepares them, from the cache where that is still there."""
        info = self.info["data"]
        source = Source(info["path"], info["test"], Path(info["cache"]), limit=info["limit"], run=self.folder)
        return self.kind.prepare(replace(source, **self.kind.wanted(self.situation)))


def train(
    name: str,
    data: str = "scenes",
    *,
    test: str | None = None,
    budget: str = "10m",
    out: str | Path | None = None,
    seed: int = 0,
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    image_size: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    progress: bool = True,
    prepared: Any = None,
    cache_folder: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train the system ``name`` (or ``FILE.py:FUNCTION``) on ``data`` under ``budget``; the same call again resumes or returns the run.

    ``out`` defaults to ``sensorium-runs/NAME``. ``settings`` are the recipe's own parameters.
    """
    from sensorium.training.fit import fit

    allow(name)
    folder = Path(out) if out is not None else Path("sensorium-runs") / name.replace(":", "-").replace("/", "-")
    if fresh and folder.exists():
        _clear(folder)
    cached = Path(cache_folder) if cache_folder is not None else folder.parent / "cache"
    sort = kind_name(name)
    how = kind(sort)
    ready = prepared
    if ready is None:
        source = Source(str(data), test, cached, image_size, limit, settings)
        ready = how.prepare(source, progress=progress)
    if len(ready.train) < 8:
        raise SensoriumError(f"{data}: only {len(ready.train)} {how.UNIT}; 8 is the least that can be learned from.")
    situation = how.situate(ready)
    given = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(seed)
    recipe = make_recipe(name, situation, given)
    folder.mkdir(parents=True, exist_ok=True)
    if progress and not (folder / "outcome.json").is_file():
        show_settings(recipe)
    if not (folder / "run.json").is_file():
        where = {"path": str(data), "test": test, "limit": limit, "cache": str(cached)}
        asked = {"recipe": name, "kind": sort, "seed": seed, "given": given, "data": where, "budget": budget}
        _write_info(folder, recipe, situation, asked)
        how.keep(ready, folder)
        if check := getattr(how, "check", None):  # a few seconds' look at what a long training would come to
            check(recipe, ready, budget, folder, progress=progress)
    fit(
        recipe.method,
        ready.train,
        views=recipe.views,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        batch_size=recipe.batch_size,
        budget=budget,
        out=folder,
        seed=seed,
        accumulate=accumulate,
        devices=devices,
        strategy=strategy,
        precision=precision,
        online=how.online(ready),
        online_every=_online_every(budget),
        progress=progress,
        settings={key: setting.value for key, setting in recipe.settings.items()},
    )
    run = Run(folder)
    if run.finished and hasattr(recipe.method, "backbone") and not (folder / "backbone").is_dir():
        _keep_backbone(cast(Any, recipe.method).backbone, folder, situation)
    return run


def _write_info(folder: Path, recipe: Recipe, situation: Any, asked: dict[str, Any]) -> None:
    """``run.json``: what the method is rebuilt from."""
    settings = {key: asdict(setting) for key, setting in recipe.settings.items()}
    info = {"method": recipe.name, "situation": asdict(situation), "settings": settings}
    write_json(folder / "run.json", asked | info)


def _keep_backbone(backbone: torch.nn.Module, folder: Path, on: Situation) -> None:
    """The network alone, as a checkpoint that any method or library can start from."""
    from sensorium.published import export

    export(backbone, "safetensors", folder / "backbone", mean=on.mean, std=on.std, image_size=on.image_size)


def _online_every(budget: str) -> str:
    """A look costs seconds of its own: eight of them in a run, two in one of less than two minutes."""
    spend = Budget.parse(budget)
    return "50%" if spend.kind == "seconds" and spend.amount < 120 else "12.5%"


def _clear(folder: Path) -> None:
    """Remove a run's folder, and nothing that is not one."""
    import shutil

    if not (folder / "run.json").is_file():
        raise SensoriumError(
            f"--fresh: '{folder}' exists and is no run of Sensorium; it is left alone. Give another --out."
        )
    shutil.rmtree(folder)
