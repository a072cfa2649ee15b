"""Recipes, and settings that record where their values came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from sensorium.base.draw import Views
from sensorium.data.rows import Rows
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.parts.ema import EMA

READ = "backbone_size"  # the setting that says that the backbone was read from a checkpoint
Builder = Callable[[Method], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """One resolved value and where it came from."""

    value: Any
    source: str


class Settings(dict[str, Setting]):
    """Resolved settings in order. ``pick`` records a value and returns it."""

    def pick(self, name: str, given: Any, otherwise: Any, because: str) -> Any:
        """``given`` unless it is None; else ``otherwise``, for the reason ``because``."""
        value, source = (otherwise, because) if given is None else (given, "given")
        self[name] = Setting(value, source)
        return value

    def note(self, **values: Any) -> None:
        """Record values whose default is a constant of the method."""
        for name, value in values.items():
            self[name] = Setting(value, "default")


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs besides data and budget.

    ``optimizers`` builds the optimizer of a method of one phase, or maps each phase to its builder. A parameter group's
    ``lr_scale`` multiplies its learning rate. ``schedule``: fraction of the budget spent -> factor on each rate, but those
    of groups with ``scheduled`` False. With an ``average``, the moving average of the weights is evaluated and saved.
    ``derive``: preprocesses the rows before training into a folder, for example images into the codes of another run's
    tokenizer; the third argument: show progress.
    """

    name: str
    method: Method
    views: Views
    optimizers: Builder | Mapping[str, Builder]
    schedule: Callable[[float], float]
    batch_size: int
    settings: Settings
    average: EMA | None = None
    derive: Callable[[Rows, Path, bool], Rows] | None = None


class Machine(Protocol):
    """What every kind of situation says of the machine: "cpu", "cuda" or "mps", and the CPU's cores."""

    @property
    def device(self) -> str: ...

    @property
    def cores(self) -> int: ...


def machine_of(on: Machine) -> tuple[bool, str]:
    """Whether defaults are for a CPU, and the machine's name as a reason."""
    small = on.device == "cpu"
    return small, f"{on.cores}-core CPU" if small else on.device


@contextmanager
def refused_by(name: str, way_out: str = "") -> Iterator[None]:
    """A ValueError inside comes of the user's settings: it becomes a SensoriumError that names the recipe."""
    try:
        yield
    except ValueError as error:
        raise SensoriumError(f"{name}: {error}.{way_out}") from None


def pick_heads(given: int | None, width: int, small: bool, s: Settings) -> int:
    """Heads of attention over ``width`` channels."""
    each = 32 if small else 64
    return s.pick("heads", given, max(1, width // each), f"{each} channels a head")
