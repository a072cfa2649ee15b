"""I-JEPA's masks (Assran et al., 2023, arXiv:2301.08243, section 3 and figure 4): blocks to predict, and their context.

One size of target blocks and one of context blocks is drawn for the whole batch, their places for each image:
    targets   ``targets`` blocks, which may overlap, of a share of the grid in ``target_scale``, rows / columns in ``aspect``
    context   a block of a share in ``context_scale``, as wide as high, without the patches of the targets
All targets have as many patches; the contexts are cut to the smallest of the batch, in the order of the patches, as in the
authors' code. Where the targets leave less of a context than a target's patches, which is rare from 7x7 patches on, the
image gets other places, and at last a single place for all its targets. A block's rows follow from its share and aspect,
its columns from what the rows leave of the share: with both rounded by themselves, blocks of small grids would be too
small. Blocks lie anywhere; those of the authors' code never reach the last row and column.

Everything is drawn for the global batch, so that the sizes and the cut do not depend on the number of processes.
Shapes: B images of this process, N = H' * W' patches, n of a context, M targets of m patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sensorium.base.draw import Draw

TRIES = 20  # places of an image's blocks, as many as in the authors' code


@dataclass(frozen=True)
class MultiBlock:
    """Masks of a ``grid`` of (rows, columns). Raises ValueError for a grid or shares that can leave no context."""

    grid: tuple[int, int]
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)

    def __post_init__(self) -> None:
        if min(self.grid) < 2:
            raise ValueError(f"masks need at least 2x2 patches, the grid has {self.grid[0]}x{self.grid[1]}")
        if self.targets < 1:
            raise ValueError(f"there must be at least 1 target, got {self.targets}")
        low, high = self.target_scale
        if not 0 < low <= high <= 0.5:
            raise ValueError(f"targets must have a share of the picture from 0 to 0.5, got {low:g} to {high:g}")
        low, high = self.context_scale
        if not 0.5 <= low <= high <= 1:
            raise ValueError(f"contexts must have a share of the picture from 0.5 to 1, got {low:g} to {high:g}")

    def __call__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Patches of the contexts [B, n], ascending, and of the targets [B, M, m]: int64 on the CPU."""
        whole = replace(draw, start=0, stop=draw.total, device="cpu")
        scale, aspect, around = whole.rand(3)[0].tolist()
        size = block_size(self.grid, _between(self.target_scale, scale), _between(self.aspect, aspect))
        outer = block_size(self.grid, _between(self.context_scale, around))
        blocks, context = self._placed(whole, size, outer)
        least = blocks.shape[-1]
        for _ in range(TRIES):
            few = context.sum(1) < least
            if not few.any():
                break
            others, rest = self._placed(whole, size, outer)
            blocks = torch.where(few[:, None, None], others, blocks)
            context = torch.where(few[:, None], rest, context)
        few = context.sum(1) < least
        blocks[few] = blocks[few][:, :1]
        context[few] = self._outside(blocks[few])
        n = int(context.sum(1).min())
        kept = context.byte().argsort(dim=1, descending=True, stable=True)[:, :n]
        own = slice(draw.start, draw.stop)
        return kept[own], blocks[own]

    def _placed(self, draw: Draw, size: tuple[int, int], outer: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Targets [B, M, m], and which patches are of the context, bool [B, N]."""
        corners = draw.rand(self.targets + 1, 2)
        blocks = block_at(corners[:, 1:], size, self.grid)
        inside = ~self._outside(block_at(corners[:, :1], outer, self.grid))
        return blocks, inside & self._outside(blocks)

    def _outside(self, blocks: Tensor) -> Tensor:
        """Which patches are of none of the blocks [B, M, m]: bool [B, N]."""
        free = torch.ones(len(blocks), math.prod(self.grid), dtype=torch.bool)
        return free.scatter(1, blocks.flatten(1), False)


def block_size(grid: tuple[int, int], scale: float, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of a block that covers a share ``scale`` of a grid; ``aspect``: rows / columns, on a square grid."""
    rows, columns = grid
    height = min(max(round(rows * math.sqrt(scale * aspect)), 1), rows)
    return height, min(max(round(scale * rows * columns / height), 1), columns)


def block_at(corners: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Patches [..., m], ascending, of blocks whose places are drawn as numbers from 0 to 1 [..., 2]."""
    free = torch.tensor([whole - part + 1 for whole, part in zip(grid, size, strict=True)])
    first = (corners * free).long()
    rows, columns = (first[..., axis, None] + torch.arange(size[axis]) for axis in (0, 1))
    return (rows[..., :, None] * grid[1] + columns[..., None, :]).flatten(-2)


def _between(ends: tuple[float, float], at: float) -> float:
    return ends[0] + at * (ends[1] - ends[0])
