"""What a trained run can be used for: one rule, and one message, for every command that needs an ability."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sensorium.abilities import ABILITIES
from sensorium.base.reading import printable
from sensorium.catalogue import a_run_of
from sensorium.errors import SensoriumError
from sensorium.published import exportable
from sensorium.recipe.info import data_of
from sensorium.runs.run import Run


@dataclass(frozen=True)
class Use:
    """A command, the ``abilities`` of which it needs one, and what follows RUN in an ``example`` of it; ``alone``: also,
    where RUN is a checkpoint, which has no data of its own. None: the command takes runs only. ``own``: it reads the data
    of the run."""

    abilities: tuple[str, ...]
    example: str = ""
    alone: str | None = None
    own: bool = False


USES: dict[str, Use] = {
    "predict": Use(("Classifier",), "PICTURES"),
    "detect": Use(("Detector",), "PICTURES", ""),
    "misses": Use(("Detector",), own=True),
    "search": Use(("Encoder", "ImageText"), "--image PICTURE", "--data PICTURES"),
    "zeroshot": Use(("ImageText",), 'PICTURES --classes "cat,dog"', ""),
    "embed": Use(("Encoder",), "", "--data PICTURES"),
    "neighbors": Use(("Encoder",), "PICTURE", "--data PICTURES"),
    "generate": Use(("LanguageModel",), '--prompt "It was"'),
    "sample": Use(("Generator",)),
    "samplers": Use(("IterativeGenerator",), own=True),
    "watch": Use(("OnlineDetector",), "RECORDING"),
}


def able(thing: Any, command: str, where: str | Path = "") -> Any:
    """The method of a run, or the network, if ``sensorium COMMAND`` can use it.

    Else raises SensoriumError that says in one line which runs that command needs, and what this one can do. ``where``:
    the path that was given.
    """
    method = thing.method if isinstance(thing, Run) else thing
    if _fits(method, USES[command]):
        return method
    shown = where or (thing.folder if isinstance(thing, Run) else type(thing).__name__)
    kind = printable(thing.info.recipe) if isinstance(thing, Run) else type(method).__name__
    needs = a_run_of(*USES[command].abilities)
    # The commands stand last, so that one can be copied from the end of the line.
    works = commands_for(thing, shown)
    way = f" It works with: {'; '.join(works)}" if works else ""
    said = f"'{printable(str(shown))}' ({kind}) can't be used by `sensorium {command}`, which needs {needs}."
    raise SensoriumError(said + way)


def fits(method: Any, command: str) -> bool:
    """Whether a method has an ability that ``sensorium COMMAND`` needs."""
    return _fits(method, USES[command])


def commands_for(thing: Any, where: str | Path) -> list[str]:
    """The commands that a run (or a published network) can be used with."""
    method, path = thing.method if isinstance(thing, Run) else thing, shlex.quote(printable(str(where)))
    fitting, of_run = {name: use for name, use in USES.items() if _fits(method, use)}, isinstance(thing, Run)
    recipe = thing.info.recipe if of_run else ""
    found = [
        [name, path, use.example, "" if of_run else use.alone]
        for name, use in fitting.items()
        if of_run or use.alone is not None
    ]
    if of_run:
        found.append(["evaluate", path])
    if formats := exportable(method, recipe):
        to = "" if "safetensors" in formats else f"--to {formats[0]}"
        found.append(["export", path, to, "" if of_run else "--out FOLDER"])
    trust = f"--trust {shlex.quote(printable(recipe))}" if ":" in recipe else ""
    return [" ".join(filter(None, ["sensorium", *words, trust])) for words in found]


def places_of(run: Any) -> tuple[str | None, ...]:
    """The places of the data of a run or of the run in a folder; () of anything else."""
    if isinstance(run, Run):
        return run.info.data.places
    return data_of(run) if isinstance(run, (str, Path)) else ()


def _fits(method: Any, use: Use) -> bool:
    return isinstance(method, nn.Module) and any(isinstance(method, ABILITIES[name]) for name in use.abilities)
