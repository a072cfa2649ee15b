"""Which patches of an image are masked: random ones, blocks, or all but a grid.

Each kind ranks the patches, and a method masks those of the highest ranks, so that every image has exactly as many masked
patches as the method asks for, whatever their kind:

    random  rank ~ U(0, 1)                       (MAE: He et al., 2022, arXiv:2111.06377, section 3)
    block   blocks, one after another, until enough patches M are masked     (BEiT: Bao et al., 2022, arXiv:2106.08254,
                area ~ U(16/196 N, masked - |M|),   log aspect ~ U(log 0.3, -log 0.3)                    algorithm 1)
    grid    each cell of 2x2 patches alike: three quarters masked leave one patch of each cell, half of them a checkerboard
                                                 (He et al., table 1f and figure 6)

A block may cover more patches than are missing: the first of them in reading order are masked. What blocks leave over, and
the patches of a grid whose cells are masked in part, are chosen at random. Cells begin at one of four places by chance.
Shapes: B images, N = H' * W' patches.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from sensorium.base.draw import Draw

Masking = Literal["random", "block", "grid"]

BLOCKS = 32  # at most; all but a few patches are masked by half as many
SMALLEST, ASPECT = 16 / 196, 0.3  # of a block: its least fraction of the image, its least ratio of height to width
CELL = ((0.0, 2.0), (3.0, 1.0))  # ranks of a cell's patches: the first two are on a diagonal


def known(masking: Masking) -> Masking:
    """The kind itself; ``ValueError`` if there is none of that name."""
    if masking not in get_args(Masking):
        raise ValueError(f"masking must be one of {', '.join(get_args(Masking))}, got {masking!r}")
    return masking


def ranks(masking: Masking, draw: Draw, grid: tuple[int, int], masked: int) -> Tensor:
    """Ranks [B, N], float32, of the patches of a ``grid`` (rows, columns), of which the ``masked`` highest are to be
    masked. Raises ``ValueError`` for an unknown kind."""
    here = replace(draw, device="cpu")
    if known(masking) == "random":
        found = here.rand(grid[0] * grid[1])
    else:
        found = _blocks(here, grid, masked) if masking == "block" else _cells(here, grid)
    return found.to(draw.device)


def highest(found: Tensor, masked: int) -> Tensor:
    """Ranks [B, N] -> bool [B, N], True for the ``masked`` highest of each row."""
    order = found.argsort(dim=1)
    return torch.zeros_like(found, dtype=torch.bool).scatter_(1, order[:, found.shape[1] - masked :], True)


def _blocks(draw: Draw, grid: tuple[int, int], masked: int) -> Tensor:
    rows, columns = grid
    count = rows * columns
    found, blocks = draw.rand(count), draw.rand(BLOCKS, 4)
    covered = torch.zeros_like(found, dtype=torch.bool)
    reading = 1 - torch.arange(count) / count
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    for i, (area, aspect, top, left) in enumerate(blocks.permute(1, 2, 0)[..., None, None]):  # each [B, 1, 1]
        missing = masked - covered.sum(1)[:, None, None]
        if not (missing > 0).any():
            break
        size = torch.lerp(torch.full_like(area, SMALLEST * count), missing.clamp_min(0).float(), area)
        ratio = torch.exp((1 - 2 * aspect) * math.log(ASPECT))
        height = (size * ratio).sqrt().round().clamp(1, rows)
        width = (size / ratio).sqrt().round().clamp(1, columns)
        first, begin = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
        inside = (row >= first) & (row < first + height) & (column >= begin) & (column < begin + width)
        new = (inside & (missing > 0)).flatten(1) & ~covered
        found = torch.where(new, BLOCKS - i + reading, found)
        covered |= new
    return found


def _cells(draw: Draw, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    shift = draw.chance(0.5)[:, None], draw.chance(0.5)[:, None]
    row, column = ((torch.arange(n) + begin) % 2 for n, begin in zip(grid, shift, strict=True))  # [B, n]
    found = torch.tensor(CELL)[row[:, :, None], column[:, None, :]]
    return found.flatten(1) + draw.rand(rows * columns) / 2
