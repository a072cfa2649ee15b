"""What a trained run can be used for: one rule, and one message, for every command that needs an ability."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sensorium.abilities import ABILITIES
from sensorium.base.reading import printable
from sensorium.catalogue import a_run_of, find
from sensorium.errors import SensoriumError
from sensorium.runs.run import Run


@dataclass(frozen=True)
class Use:
    """A command, the ``abilities`` of which it needs one, and what follows RUN in an ``example`` of it."""

    abilities: tuple[str, ...]
    example: str = ""


USES: dict[str, Use] = {
    "detect": Use(("Detector",), "PICTURES"),
    "search": Use(("Encoder", "ImageText"), "--image PICTURE"),
    "zeroshot": Use(("ImageText",), 'PICTURES --classes "cat,dog"'),
    "embed": Use(("Encoder",)),
    "neighbors": Use(("Encoder",), "PICTURE"),
    "generate": Use(("LanguageModel",), '--prompt "It was"'),
    "sample": Use(("Generator",)),
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
    raise SensoriumError(
        f"'{printable(str(shown))}' ({kind}) can't be used by `sensorium {command}`, which needs {needs}. It works with: "
        f"{'; '.join(commands_for(thing, shown))}"
    )


def commands_for(thing: Any, where: str | Path) -> list[str]:
    """The commands that a run (or a published network) can be used with."""
    method, path = thing.method if isinstance(thing, Run) else thing, shlex.quote(printable(str(where)))
    found = [f"sensorium {name} {path} {use.example}".rstrip() for name, use in USES.items() if _fits(method, use)]
    if not isinstance(thing, Run):
        return [*found, f"sensorium export {path} --out FOLDER"]
    recipe = thing.info.recipe
    own = ":" in recipe
    found.append(f"sensorium evaluate {path}")
    if own or find(recipe).exports:
        how = "" if own or "safetensors" in find(recipe).exports else f" --to {find(recipe).exports[0]}"
        found.append(f"sensorium export {path}{how}")
    trust = f" --trust {shlex.quote(printable(recipe))}" if own else ""
    return [command + trust for command in found]


def _fits(method: Any, use: Use) -> bool:
    return isinstance(method, nn.Module) and any(isinstance(method, ABILITIES[name]) for name in use.abilities)
