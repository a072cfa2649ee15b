"""Loading a run: the method rebuilt from its settings with its weights; and a run as another run's input.

A recipe asks for a run by role: a keyword parameter annotated ``RunFolder`` (``--teacher RUN``, ``--tokens RUN``), which it
opens with :class:`Trained`. The folder, the recipe and the digest of the weights of each opened run are recorded.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import torch

from sensorium.catalogue import allowed, resolve
from sensorium.data.wings import kind
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.recipe.recipe import Recipe, Setting, Settings

_ROLE = "the folder of a run"
RunFolder = Annotated[str, _ROLE]  # the folder of a finished run


def make_recipe(name: str, on: Any, given: dict[str, Any]) -> Recipe:
    """Find the recipe by a system's name or ``FILE.py:FUNCTION`` and call it; the settings record what was given."""
    function = resolve(name)
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = list(parameters)[1:]
        for unknown in (key for key in given if key not in known):
            near = difflib.get_close_matches(unknown, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise SensoriumError(
                f"{name} has no setting '{unknown}'.{hint} `sensorium train {name} --help` lists its settings."
            )
    recipe: Recipe = function(on, **given)
    settings = Settings(recipe.settings)
    for key in given:
        if key in settings and given[key] is not None:
            settings[key] = Setting(settings[key].value, "given")
    return replace(recipe, settings=settings)


class Trained:
    """The folder of a run. Raises SensoriumError if it isn't one, or if opening it would execute a file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        where = self.folder / "run.json"
        try:
            self.info: dict[str, Any] = json.loads(where.read_text())
        except FileNotFoundError:
            raise SensoriumError(
                f"'{folder}' is not a run: it has no run.json. Train one: sensorium train SYSTEM --data DIR --out {folder}"
            ) from None
        except json.JSONDecodeError as error:
            raise SensoriumError(f"{where}: not readable as JSON ({error}).") from None
        try:
            kept = {k: tuple(v) if isinstance(v, list) else v for k, v in self.info["situation"].items()}
            self.kind = kind(self.info["kind"])
            self.situation: Any = self.kind.SITUATION(**kept)
        except (KeyError, TypeError, AttributeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise SensoriumError(f"{where}: not in this version's format ({said}). Train the run again.") from None
        recipe = self.info.get("recipe")
        if not isinstance(recipe, str) or not allowed(recipe):
            raise SensoriumError(
                f"{where}: opening this run would execute '{recipe}', the recipe that made it. If you trust it, name "
                f"it in the same command: --recipe {recipe}"
            )

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def settings(self) -> dict[str, Any]:
        """Resolved settings by name."""
        return {name: setting["value"] for name, setting in self.info["settings"].items()}

    @property
    def finished(self) -> bool:
        return (self.folder / "outcome.json").is_file()

    @cached_property
    def recipe(self) -> Recipe:
        """Rebuilt from the values resolved at training time, so that later changes of defaults have no effect."""
        known = inspect.signature(resolve(self.info["recipe"])).parameters
        kept = {name: value for name, value in self.settings.items() if name in known} | self.info["given"]
        for role in roles(self.info["recipe"]):
            beside = self.folder / "inputs" / role
            if kept.get(role) is not None and not (Path(kept[role]) / "run.json").is_file() and beside.is_dir():
                kept[role] = str(beside)  # that run was removed; a copy of its description is kept here
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.info["seed"])
            return make_recipe(self.info["recipe"], self.situation, kept)

    @property
    def weights(self) -> Path:
        """``model.safetensors``. Raises SensoriumError if the run has not finished."""
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise SensoriumError(
                f"{path} is missing: the run has not finished. Run the same command again to continue it."
            )
        return path

    @cached_property
    def method(self) -> Method:
        """The trained method, in evaluation mode."""
        from safetensors.torch import load_file

        weights, method = load_file(self.weights), self.recipe.method
        method.load_state_dict(weights)
        return method.eval()

    @cached_property
    def digest(self) -> str:
        """Digest of the weights."""
        with self.weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def roles(recipe: str) -> tuple[str, ...]:
    """Names of a recipe's parameters that are folders of runs."""
    hints = get_type_hints(resolve(recipe), include_extras=True)
    return tuple(name for name, hint in hints.items() if any(_is_role(one) for one in (hint, *get_args(hint))))


def inputs(recipe: str, given: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The record of the runs that a recipe was given, by role: folder, recipe and digest of the weights."""
    opened = {role: Trained(given[role]) for role in roles(recipe) if given.get(role) is not None}
    return {
        role: {"folder": str(run.folder), "recipe": run.info["recipe"], "digest": run.digest}
        for role, run in opened.items()
    }


def _is_role(hint: Any) -> bool:
    return _ROLE in getattr(hint, "__metadata__", ())
