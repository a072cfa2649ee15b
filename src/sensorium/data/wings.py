"""The wings of this room: what preparing data of each kind offers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, get_type_hints

from sensorium.catalogue import resolve
from sensorium.data.source import Source
from sensorium.errors import SensoriumError

NAMES = ("images", "text", "pairs", "boxes", "streams")


class Kind(Protocol):
    """What the module ``prepare`` of each wing offers."""

    SITUATION: type
    UNIT: str
    SHAPED_BY: tuple[str, ...]  # settings of a recipe that shape the data: what is prepared without them is other data

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

    def describe(self, ready: Any) -> dict[str, Any]:
        """The data in the words of results.json: ``layout``, counts ``train`` and ``test``, and what else is known."""
        ...

    def diagnose(self, ready: Any, *, progress: bool = False) -> dict[str, Any] | None:
        """What is wrong with the data, as `sensorium data --json` prints it; None where nobody looks."""
        ...


def kind(name: str) -> Kind:
    """The module of a kind by its name, one of ``NAMES``."""
    if name not in NAMES:
        raise KeyError(name)
    return cast(Kind, import_module(f"sensorium.data.{name}.prepare"))


def kind_name(recipe: str) -> str:
    """What a recipe learns from: one of ``NAMES``."""
    wanted = get_type_hints(resolve(recipe)).get("on")
    for name in NAMES:
        if kind(name).SITUATION is wanted:
            return name
    known = ", ".join(kind(name).SITUATION.__name__ for name in NAMES)
    raise SensoriumError(f"{recipe}: annotate the first parameter of the recipe, on, with one of {known}.")
