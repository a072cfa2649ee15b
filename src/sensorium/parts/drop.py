"""Stochastic depth (Huang et al., 2016, arXiv:1603.09382): a sample skips a residual branch with probability ``rate``."""

from __future__ import annotations

from torch import Tensor, nn


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
