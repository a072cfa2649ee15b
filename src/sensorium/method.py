"""The contract between a system and everything that trains, judges or shows it.

A method is an ``nn.Module`` made of built modules and plain numbers. Its ``forward`` returns the loss, because
data-parallel wrappers only synchronise what passes through ``forward``; its state changes in hooks only, because
a ``forward`` may run several times a step (gradient accumulation) or be recomputed (checkpointing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps taken, passes over the data begun, and the share of the budget spent (0 to 1)."""

    step: int
    epoch: int
    fraction: float


class Method(nn.Module):
    """A trainable system.

    Subclasses implement ``forward``; the hooks are no-ops by default. What else a trained method can do (give
    features, reconstruct, show pictures) is an ability (:mod:`sensorium.abilities`).
    """

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, ...}``; every further entry is a detached scalar that gets logged."""
        raise NotImplementedError

    def before_step(self, at: Progress) -> None:
        """Called before the first ``forward`` of a step: schedules, kept in 0-d buffers."""

    def before_update(self, at: Progress) -> None:
        """Called when the gradients are complete and not yet applied: gradient surgery."""

    def after_step(self, at: Progress) -> None:
        """Called after the optimizer: moving averages, queues, centres."""
