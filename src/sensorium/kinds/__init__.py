"""Kinds of data: all that a run of pictures, of text, ... does differently, a module a kind.

A recipe says its kind by the type of its first parameter, ``on``: the situation that its defaults follow from. Whatever
trains, judges or shows a run asks the kind's module for the rest; nothing else in the house tells kinds apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, get_type_hints

from sensorium.catalogue import find, resolve
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.recipes.recipe import Recipe

NAMES = ("images", "text")


@dataclass(frozen=True)
class Source:
    """Where data come from and how they are wanted. ``cache``: the folder of what is kept of them beside the runs.

    ``settings`` are the recipe's, some of which shape the data; ``run`` is the folder of the run whose data these are,
    None before there is one.
    """

    path: str
    test: str | None
    cache: Path
    image_size: int | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None


@dataclass(frozen=True)
class Asked:
    """How to judge: shares of the ``labels``, subsets of each, and what a fine-tuning may cost."""

    labels: str = "1%,10%,100%"
    label_seeds: int = 3
    finetune: bool = True
    tune_steps: int | None = None
    tune_seconds: float | None = None
    progress: bool = True

    def key(self) -> dict[str, Any]:
        """What scores depend on: kept scores of another key are not reused."""
        names = ("labels", "label_seeds", "tune_steps", "tune_seconds")
        return {name: getattr(self, name) for name in names}


class Trained(Protocol):
    """What judging reads of a run."""

    @property
    def folder(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def situation(self) -> Any: ...
    @property
    def method(self) -> Any: ...
    @property
    def backbone(self) -> Any: ...


class Kind(Protocol):
    """What each module here offers."""

    SITUATION: type
    UNIT: str

    def prepare(self, source: Source, *, progress: bool = False) -> Any:
        """Open and lay out the data: an object with ``train``, what training reads."""
        ...

    def situate(self, ready: Any) -> Any:
        """The situation that a recipe's defaults follow from."""
        ...

    def wanted(self, situation: Any) -> dict[str, Any]:
        """Fields of ``Source`` that a run's own data have to be prepared with again."""
        ...

    def keep(self, ready: Any, folder: Path) -> None:
        """Write beside a run what its data cannot be read without."""
        ...

    def online(self, ready: Any) -> Callable[[Method], dict[str, float]]:
        """A quick look at a method while it trains."""
        ...

    def judge(self, run: Trained, ready: Any, asked: Asked) -> dict[str, Any]:
        """Every score that the data allow, kept in ``RUN/evaluation.json``."""
        ...

    def lines(self, found: dict[str, Any]) -> str:
        """Scores for people."""
        ...


def kind(name: str) -> Kind:
    """The module of a kind by its name."""
    return cast(Kind, import_module(f"{__name__}.{name}"))


def recipe_function(name: str) -> Callable[..., Recipe]:
    """The recipe of a system's name, or ``FILE.py:FUNCTION``."""
    return resolve(name) if ":" in name else resolve(find(name).recipe)


def kind_name(recipe: str) -> str:
    """What a recipe learns from: one of ``NAMES``."""
    wanted = get_type_hints(recipe_function(recipe)).get("on")
    for name in NAMES:
        if kind(name).SITUATION is wanted:
            return name
    known = ", ".join(kind(name).SITUATION.__name__ for name in NAMES)
    raise SensoriumError(f"{recipe}: annotate the first parameter of the recipe, on, with one of {known}.")
