"""What a recipe is, and how its defaults say where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sensorium.base.draw import Views
from sensorium.method import Method


@dataclass(frozen=True)
class Setting:
    """One resolved value and where it came from."""

    value: Any
    source: str


class Settings(dict[str, Setting]):
    """Resolved settings in order. ``pick`` notes a value and gives it back."""

    def pick(self, name: str, given: Any, otherwise: Any, because: str) -> Any:
        """``given`` unless it is None; else ``otherwise``, for the reason ``because``."""
        value, source = (otherwise, because) if given is None else (given, "given")
        self[name] = Setting(value, source)
        return value

    def note(self, **values: Any) -> None:
        """Values whose default is a constant of the method."""
        for name, value in values.items():
            self[name] = Setting(value, "default")


@dataclass(frozen=True)
class Recipe:
    """Everything that a run needs besides data and budget."""

    name: str
    method: Method
    views: Views
    optimizer: Callable[[Method], torch.optim.Optimizer]
    schedule: Callable[[float], float]
    batch_size: int
    settings: Settings
