"""The contract between a system and the code that trains, evaluates or displays it.

A method is an ``nn.Module`` made of built modules and plain numbers. Its ``forward`` returns the loss, because
data-parallel wrappers only synchronize what passes through ``forward``; its state changes in hooks only, because
a ``forward`` may run several times a step (gradient accumulation) or be recomputed (checkpointing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sensorium.abilities import BoundsInformation, HasBackbone


@dataclass(frozen=True)
class Progress:
    """Progress of a run: optimizer steps taken, epochs begun, and the fraction of the budget spent (0 to 1)."""

    step: int
    epoch: int
    fraction: float


@dataclass(frozen=True)
class Sign:
    """A sign of collapse: the scalar ``name``, of an online evaluation or logged by ``forward``, is below ``least`` or above
    ``most``. ``what``: has collapsed then, in the plural; ``how``: in words."""

    name: str
    what: str
    how: str
    least: float = -math.inf
    most: float = math.inf


# Of a trained method's features; see sensorium.training.monitor for the two numbers.
ALL_EQUAL = Sign("spread", "features", "nearly equal for all images", least=0.05)
ONE_DIRECTION = Sign("rank", "features", "they span one direction", least=2.0)


class Method(nn.Module):
    """A trainable system.

    Subclasses implement ``forward``; the hooks are no-ops by default. What else a trained method can do (extract
    features, reconstruct, generate) is an ability (:mod:`sensorium.abilities`).

    ``phases`` names the updates that make up a step, in order, each with its own optimizer. A method of one phase gets
    ``forward(batch)``. An adversarial one declares ("generator", "discriminator"), for example, and gets
    ``forward(batch, phase)`` for each of them, on the same micro-batches; the second sees the weights that the first
    updated.

    ``least_batch``: how many samples of all processes a ``forward`` needs at once; a method that tells the samples of a
    batch apart learns nothing from one.

    ``head_first``: fraction of the budget, from its start, in which the backbone of a method that has one rests, as in
    evaluation and without gradients, and all else is trained.

    ``signs``: what shows that it has collapsed, the surest first. A method names its own where its paper does, or where
    those of features mislead.
    """

    phases: tuple[str, ...] = ("train",)
    least_batch: int = 1
    head_first: float = 0.0
    signs: tuple[Sign, ...] = (ALL_EQUAL, ONE_DIRECTION)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return ``{"loss": scalar, ...}``; every further entry is a detached scalar that gets logged."""
        raise NotImplementedError

    def before_step(self, at: Progress) -> None:
        """Called once, before the first ``forward`` of a step: for schedules, kept in 0-d buffers."""

    def before_update(self, at: Progress) -> None:
        """Called once a phase, when its gradients are complete (summed over micro-batches and processes) and neither
        clipped nor applied: for gradient surgery. Only parameters of that phase's optimizer have gradients then."""

    def after_step(self, at: Progress) -> None:
        """Called once, without gradient, after the last phase's optimizer: for moving averages, queues, centers."""

    def backbones(self) -> tuple[nn.Module, ...]:
        """The networks that rest while the heads learn alone: the backbone and, of a method with a moving average, both
        networks, without their heads. () without a backbone."""
        return (self.backbone,) if isinstance(self, HasBackbone) else ()

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """The least that the loss could be, and what it is where all outputs are the same or unrelated: with these, losses of
        runs with other batches, dimensions and numbers of candidates can be compared. None if they are unknown.

        scalars: what ``forward`` logged at a step. By default of a loss that is the choice of one among K candidates.
        """
        if isinstance(self, BoundsInformation) and "ceiling" in scalars:
            return 0.0, scalars["ceiling"]
        return None
