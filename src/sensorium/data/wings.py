"""The kinds of data, and the interface to prepare each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, get_type_hints

from sensorium.catalogue import resolve
from sensorium.data.source import Source
from sensorium.errors import SensoriumError

NAMES = ("images", "text", "pairs", "boxes", "streams")


class Kind(Protocol):
    """The interface of each kind's module ``prepare``."""

    SITUATION: type
    UNIT: str
    SHAPED_BY: tuple[str, ...]  # settings of a recipe that the prepared data depend on
    KEPT: tuple[str, ...]  # the files that ``keep`` writes

    def prepare(self, source: Source, *, progress: bool = False) -> Any:
        """Open and prepare the data: an object with ``train``, the training rows."""
        ...

    def situate(self, ready: Any) -> Any:
        """The situation that a recipe's defaults depend on."""
        ...

    def wanted(self, situation: Any) -> dict[str, Any]:
        """Fields of ``Source`` needed to prepare a run's data again."""
        ...

    def keep(self, ready: Any, folder: Path) -> None:
        """Write the files that are needed to read its data (such as a tokenizer) into a run's folder."""
        ...

    def describe(self, ready: Any) -> dict[str, Any]:
        """The data as results.json describes them: ``layout``, counts ``train`` and ``test``, and further facts."""
        ...

    def diagnose(self, ready: Any, *, progress: bool = False) -> dict[str, Any] | None:
        """The diagnosis, as `sensorium data --json` prints it; None if the kind has none."""
        ...


def kind(name: str) -> Kind:
    """The module of a kind by its name, one of ``NAMES``."""
    if name not in NAMES:
        raise KeyError(name)
    return cast(Kind, import_module(f"sensorium.data.{name}.prepare"))


def kind_name(recipe: str) -> str:
    """The kind of data of a recipe: one of ``NAMES``."""
    wanted = get_type_hints(resolve(recipe)).get("on")
    for name in NAMES:
        if kind(name).SITUATION is wanted:
            return name
    known = ", ".join(kind(name).SITUATION.__name__ for name in NAMES)
    raise SensoriumError(f"{recipe}: annotate the first parameter of the recipe, on, with one of {known}.")
