"""The budget of a run (time, steps, images or epochs), and the clock that measures it.

Runs that are compared must stop at the same cost: wall time, steps, images seen, or passes over the data. Schedules
follow the fraction of the budget spent, so that they end with the run whatever the unit. The clock counts training
only: online evaluation, writing checkpoints and starting up are excluded.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from sensorium.errors import SensoriumError

Kind = Literal["seconds", "steps", "images", "epochs"]
_UNITS: dict[str, tuple[Kind, float]] = {
    "s": ("seconds", 1),
    "sec": ("seconds", 1),
    "m": ("seconds", 60),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
    "step": ("steps", 1),
    "image": ("images", 1),
    "epoch": ("epochs", 1),
}
_FORMS = "10m, 90s, 2h, 500steps, 100000images or 20epochs"


@dataclass(frozen=True)
class Budget:
    """``amount`` of ``kind``: training seconds, optimizer steps, images seen, or passes over the data."""

    kind: Kind
    amount: float

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read ``"10m" | "90s" | "2h" | "500steps" | "100000images" | "20epochs"``; a ``Budget`` is returned
        unchanged."""
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
        if amount <= 0:
            raise SensoriumError(f"budget {text!r}: must be more than zero.")
        if kind in ("steps", "images") and amount != int(amount):
            raise SensoriumError(f"budget {text!r}: {kind} must be a whole number.")
        return cls(kind, amount)

    def spent(self, *, steps: int, seconds: float, batch_size: int, images: int) -> float:
        """Fraction of the budget spent, 0 to 1, after ``steps`` of ``batch_size`` in ``seconds``; ``images`` in the
        data."""
        if self.kind == "seconds":
            return min(1.0, seconds / self.amount)
        total = self.steps(batch_size=batch_size, images=images)
        assert total is not None
        return min(1.0, steps / total)

    def steps(self, *, batch_size: int, images: int) -> int | None:
        """Number of steps in the budget, the last one possibly exceeding it; ``None`` for a time budget."""
        match self.kind:
            case "seconds":
                return None
            case "steps":
                return int(self.amount)
            case "images":
                return math.ceil(self.amount / batch_size)
            case "epochs":
                return math.ceil(self.amount * images / batch_size)

    def __str__(self) -> str:
        return f"{self.amount:g}{'s' if self.kind == 'seconds' else self.kind}"


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
