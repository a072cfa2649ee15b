"""What is left out at random while training: residual branches, and patches of an image.

stochastic depth    a sample skips a residual branch with probability ``rate`` (Huang et al., 2016, arXiv:1603.09382)
patch dropout       of N patches an image keeps n = max(1, floor(N (1 - rate))), drawn for each image of a batch; a
                    transformer encodes these alone (FLIP: Li et al., 2023, arXiv:2212.00794; MSN: Assran et al., 2022,
                    arXiv:2204.07141; Liu et al., 2022, arXiv:2208.07220), so that a step costs less
Both draw from the step's seed, and are off in evaluation mode, and so in a teacher.
Shapes: B images, N patches, n of them kept, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.parts.patches import rows_at


class DropPath(nn.Module):
    """Zeroes whole samples of a branch while training and scales the rest by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop-path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training or self.rate == 0:
            return branch
        survives = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * survives.div_(1 - self.rate)


def rising_(network: nn.Module, rate: float) -> None:
    """Set the rates of a network's branches, which rise linearly with depth from 0 to ``rate`` at the last one (Huang et
    al., 2016, section 3). In place; a network without any stays as it is."""
    DropPath(rate)  # its error, also where there is nothing to drop
    branches = [part for part in network.modules() if isinstance(part, DropPath)]
    for i, branch in enumerate(branches):
        branch.rate = rate * i / max(1, len(branches) - 1)


class PatchDropout(nn.Module):
    """Keeps random patches of each image while training, in random order: positions must be in the tokens already."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"patch dropout rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, patches: Tensor) -> Tensor:
        """[B, N, D] -> [B, n, D]; while not training, or at a rate of 0, all of them as they are."""
        if not self.training or self.rate == 0:
            return patches
        B, N = patches.shape[:2]
        kept = max(1, int(N * (1 - self.rate)))
        return rows_at(patches, torch.rand(B, N, device=patches.device).argsort(dim=1)[:, :kept])


def patch_dropout_(network: nn.Module, rate: float) -> None:
    """Set the rate at which a network leaves patches out, 0 for none. In place; one that can't stays as it is."""
    PatchDropout(rate)  # its error, also where there is nothing to drop
    for part in network.modules():
        if isinstance(part, PatchDropout):
            part.rate = rate
