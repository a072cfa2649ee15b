"""Moving averages of networks: teachers and evaluation averages.

target <- momentum target + (1 - momentum) source
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class EMA:
    """A moving average of the trained weights, for evaluation (Polyak & Juditsky, 1992).

    ``decay`` is the momentum of a long run. In a short one it would retain the initial weights, so after n steps the
    momentum is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ``ExponentialMovingAverage``.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay {self.decay}: must be at least 0 and less than 1")

    def momentum(self, steps: int) -> float:
        """The momentum of the update after ``steps`` earlier ones."""
        return min(self.decay, (1 + steps) / (10 + steps))


def frozen_copy(module: M) -> M:
    """A copy with separate memory, without gradients and in evaluation mode (no dropout, no drop-path)."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def teaching_(module: M, mode: bool) -> M:
    """Put a teacher into evaluation mode, but for its batch norms: with ``mode`` these use, as in the authors' code of
    BYOL, MoCo and DINO, the statistics of the batch, and keep running ones of their own. In place."""
    module.eval()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.train(mode)
    return module


@torch.no_grad()
def ema_(target: nn.Module, source: nn.Module, momentum: float, *, buffers: bool = True) -> None:
    """Move ``target``'s parameters toward those of ``source``, a network of the same architecture. In place.

    momentum: weight of the target, 0 (a copy) to 1 (no change). buffers: whether to copy them too, as a network that is
    only evaluated needs (running statistics are averages already); False for one that keeps its own statistics.
    Raises ValueError if the networks differ in their number of parameters or buffers.
    """
    kept: list[torch.Tensor] = list(target.parameters())
    new: list[torch.Tensor] = list(source.parameters())
    if len(kept) != len(new):
        raise ValueError(
            f"target has {len(kept)} parameters, source has {len(new)}: they must have the same architecture"
        )
    torch._foreach_lerp_(kept, new, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
    if buffers:
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
