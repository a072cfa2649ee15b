"""Random numbers per sample, not per process.

Whatever is random about sample ``i`` of step ``s`` must be the same whether one process holds the global batch or
eight share it, and the same after a resume. So each step has its own generator, seeded by (seed, step); a process
draws for the whole global batch and keeps its own rows. Drawing happens on the CPU, so a GPU sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def step_seed(seed: int, step: int) -> int:
    """One 63-bit seed for (seed, step), mixed so that neighbors share nothing (SplitMix64's finalizer)."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 0x8CB92BA72F3D8DD7) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


@dataclass(frozen=True)
class Draw:
    """Draws for rows ``start:stop`` of a global batch of ``total`` samples, delivered on ``device``. ``fraction`` of the budget
    spent before the step, for views that change with it."""

    generator: torch.Generator
    total: int
    start: int
    stop: int
    device: torch.device | str = "cpu"
    fraction: float = 1.0

    @classmethod
    def seeded(
        cls,
        seed: int,
        step: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
        fraction: float = 1.0,
    ) -> Draw:
        generator = torch.Generator().manual_seed(step_seed(seed, step))
        return cls(generator, total, start, total if stop is None else stop, device, fraction)

    @property
    def count(self) -> int:
        return self.stop - self.start

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32 [count, *shape]."""
        return torch.rand(self.total, *shape, generator=self.generator)[self.start : self.stop].to(self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in [low, high), float32 [count, *shape]."""
        return self.rand(*shape) * (high - low) + low

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, float32 [count, *shape]."""
        return torch.randn(self.total, *shape, generator=self.generator)[self.start : self.stop].to(self.device)

    def chance(self, p: float) -> Tensor:
        """True with probability ``p``, bool [count]."""
        return self.rand() < p


# fields of a batch of rows of a data set (sensorium.data.rows), draw -> a method's batch
Views = Callable[[Mapping[str, Any], Draw], dict[str, Any]]
