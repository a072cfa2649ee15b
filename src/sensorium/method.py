"""The contract between a system and everything that trains, judges or shows it.

A method is an ``nn.Module`` made of built modules and plain numbers. Its ``forward`` returns the loss, because
data-parallel wrappers only synchronize what passes through ``forward``; its state changes in hooks only, because
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
    features, reconstruct, show images) is an ability (:mod:`sensorium.abilities`).

    ``phases`` names the updates that a step is made of, in order, each with an optimizer of its own. A method of one
    phase gets ``forward(batch)``. An adversarial one declares ("generator", "discriminator"), say, and gets
    ``forward(batch, phase)`` with each of them, on the same micro-batches; the second sees what the first has changed.
    """

    phases: tuple[str, ...] = ("train",)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, ...}``; every further entry is a detached scalar that gets logged."""
        raise NotImplementedError

    def before_step(self, at: Progress) -> None:
        """Called once, before the first ``forward`` of a step: schedules, kept in 0-d buffers."""

    def before_update(self, at: Progress) -> None:
        """Called once a phase, when its gradients are complete (summed over micro-batches and processes) and neither
        clipped nor applied: gradient surgery. Only parameters of that phase's optimizer have gradients then."""

    def after_step(self, at: Progress) -> None:
        """Called once, without gradient, after the last phase's optimizer: moving averages, queues, centers."""
