"""Where a recipe's settings are worth searching: a recipe's module may say it beside the recipe.

    RANGES = {"lr": Times(1 / 4, 4), "temperature": Log(0.05, 0.5), "crop_min": Log(0.08, 0.6)}

A range turns a place from 0 to 1 into a value; a uniform place makes it a draw. What depends on the data and the machine, such
as a learning rate, is given as a factor of the default, which the recipe picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from sensorium.catalogue import resolve

DIGITS = 3  # of a value that is drawn: more would say nothing, and values are parts of names


class Range(Protocol):
    """``usual``: the default that the recipe picks."""

    def at(self, place: float, usual: Any) -> Any: ...


@dataclass(frozen=True)
class Uniform:
    """From ``low`` to ``high``."""

    low: float
    high: float

    def at(self, place: float, usual: Any) -> float:
        return _short(self.low + place * (self.high - self.low), usual)


@dataclass(frozen=True)
class Log:
    """From ``low`` to ``high``, uniform in the logarithm."""

    low: float
    high: float

    def at(self, place: float, usual: Any) -> float:
        return _short(self._between(place), usual)

    def _between(self, place: float) -> float:
        return self.low * (self.high / self.low) ** place


@dataclass(frozen=True)
class Times(Log):
    """The default times a factor from ``low`` to ``high``, uniform in the logarithm."""

    def at(self, place: float, usual: Any) -> float:
        return _short(usual * self._between(place), usual)


@dataclass(frozen=True)
class FromOne(Log):
    """As far from 1 as the default times such a factor: for the momentum m of a moving average, whose memory is of
    1 / (1 - m) steps."""

    def at(self, place: float, usual: Any) -> float:
        return round(1 - _short((1 - usual) * self._between(1 - place), usual), 9)


@dataclass(frozen=True, init=False)
class Choice:
    """One of ``values``."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)

    def at(self, place: float, usual: Any) -> Any:
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]


def ranges_of(recipe: str) -> dict[str, Range]:
    """The ranges that the module of a recipe declares, by setting; of a system or of ``FILE.py:FUNCTION``."""
    return dict(cast(Any, resolve(recipe)).__globals__.get("RANGES", {}))


def _short(value: float, usual: Any) -> float:
    """Of ``DIGITS`` digits; whole where the default is."""
    return round(value) if isinstance(usual, int) else float(f"{value:.{DIGITS}g}")
