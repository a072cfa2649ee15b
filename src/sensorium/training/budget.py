"""The budget of a run (time, steps, images or epochs), and the clock that measures it.

A run that is compared with others must stop at the same cost: wall time, steps, images (or tokens, pairs, frames: what the
data count) seen, or passes over the data.
Schedules follow the share of the budget that is spent, so that they end where the run ends whatever the unit. The
clock counts training only: judging a run while it trains, writing checkpoints and starting up cost it nothing.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sensorium.base.words import count, duration
from sensorium.errors import SensoriumError

Kind = Literal["seconds", "steps", "epochs", "images", "tokens", "pairs", "frames", "rows"]
_SEEN: tuple[Kind, ...] = ("images", "tokens", "pairs", "frames", "rows")  # the units of data
_UNITS: dict[str, tuple[Kind, float]] = {
    "s": ("seconds", 1),
    "sec": ("seconds", 1),
    "m": ("seconds", 60),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
    "step": ("steps", 1),
    "epoch": ("epochs", 1),
    **{unit.removesuffix("s"): (unit, 1) for unit in _SEEN},
}
_FORMS = "10m, 90s, 2h, 500steps, 100000images or 20epochs"


@dataclass(frozen=True)
class Budget:
    """``amount`` of ``kind``: training seconds, optimizer steps, passes over the data, or how much of its unit is seen."""

    kind: Kind
    amount: float

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read ``"10m" | "90s" | "2h" | "500steps" | "100000images" | "20epochs"`` (for ``images`` also
        ``tokens``, ``pairs``, ``frames`` or ``rows``); a budget is returned as it is."""
        if isinstance(text, Budget):
            return text
        found = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
        if not found:
            raise SensoriumError(f"budget {text!r} is not a number with a unit: write {_FORMS}.")
        number, unit = found.groups()
        if not unit:
            raise SensoriumError(f"budget {text!r} has no unit: write {number}m for minutes, or {_FORMS}.")
        known = _UNITS.get(unit.lower()) or _UNITS.get(unit.lower().removesuffix("s"))
        if known is None:
            raise SensoriumError(f"budget {text!r} has the unknown unit {unit!r}: write {_FORMS}.")
        kind, scale = known
        amount = float(number) * scale
        if amount > 1e15:
            raise SensoriumError(f"budget {text[:40]!r} is too large: write {_FORMS}.")
        if amount <= 0:
            raise SensoriumError(f"budget {text!r} leaves no time to learn: it must be more than zero.")
        if kind in ("steps", *_SEEN) and amount != int(amount):
            raise SensoriumError(f"budget {text!r}: {kind} are whole numbers.")
        return cls(kind, amount)

    def of(self, unit: str) -> Budget:
        """Itself, if it fits data that count ``unit``. Raises SensoriumError if it counts something else."""
        if self.kind in _SEEN and self.kind != unit:
            raise SensoriumError(
                f"budget '{self}' counts {self.kind}, these data are {unit}: write {self.amount:.15g}{unit}."
            )
        return self

    @property
    def judging(self) -> float | None:
        """Seconds in which a run is evaluated: half of a budget of time; None, without a limit, of any other."""
        return self.amount / 2 if self.kind == "seconds" else None

    @property
    def looks(self) -> int:
        """In how many equal parts a run is evaluated while it trains, which takes seconds: two below two minutes."""
        return 2 if self.kind == "seconds" and self.amount < 120 else 8

    def spent(self, *, steps: int, seconds: float, batch: int, data: int) -> float:
        """Share of the budget spent, 0 to 1, after ``steps`` in ``seconds``; ``batch`` and ``data``: how many images (or
        tokens ...) a step sees, and there are."""
        if self.kind == "seconds":
            return min(1.0, seconds / self.amount)
        total = self.steps(batch=batch, data=data)
        assert total is not None
        return min(1.0, steps / total)

    def steps(self, *, batch: int, data: int) -> int | None:
        """How many steps the budget pays for: the last one may go over it; ``None`` when it is one of time."""
        match self.kind:
            case "seconds":
                return None
            case "steps":
                return int(self.amount)
            case "epochs":
                return math.ceil(self.amount * data / batch)
            case _:
                return math.ceil(self.amount / batch)

    def __str__(self) -> str:
        return f"{self.amount:.15g}{'s' if self.kind == 'seconds' else self.kind}"

    @property
    def told(self) -> str:
        """ "10 min", "1,000 steps", for people."""
        return duration(self.amount) if self.kind == "seconds" else f"{count(self.amount)} {self.kind}"


class Clock:
    """A stopwatch that is paused while the run is not training. ``elapsed`` in seconds."""

    def __init__(self, elapsed: float = 0.0) -> None:
        self._before = elapsed
        self._since: float | None = None

    @property
    def elapsed(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        self._before, self._since = self.elapsed, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()
