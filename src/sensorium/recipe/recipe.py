"""Recipes, and settings that record where their values came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sensorium.base.draw import Views
from sensorium.data.rows import Rows
from sensorium.method import Method
from sensorium.parts.ema import EMA

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
    ``lr_scale`` multiplies its learning rate. ``schedule``: fraction of the budget spent -> factor on each rate. With
    an ``average``, the moving average of the weights is evaluated and saved. ``derive``: preprocesses the rows before
    training into a folder, for example images into the codes of another run's tokenizer.
    """

    name: str
    method: Method
    views: Views
    optimizers: Builder | Mapping[str, Builder]
    schedule: Callable[[float], float]
    batch_size: int
    settings: Settings
    average: EMA | None = None
    derive: Callable[[Rows, Path], Rows] | None = None
