"""Positions of patches: fixed sine-cosine tables and resampling of a table to another grid.

The table of a H' x W' grid has one row per patch, row-major, after one row for the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """The fixed table of MAE, [1, 1 + H' * W', width], float32; the class token's row is zero.

    The channels are [sin x | cos x | sin y | cos y] with frequencies 10000^(-i / (width / 4)): the column comes
    first, as in the authors' code and so in every published MAE checkpoint.
    """
    if width % 4:
        raise ValueError(f"sincos positions need a width divisible by 4, got {width}")
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten().outer(frequency) for place in (x, y)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, 0, 1, 0)).float().unsqueeze(0)


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Bicubic resampling of a table [1, 1 + h * w, D] from grid ``old`` to ``new``; the class token's row is unchanged.

    ``antialias=False`` is what transformers does, ``True`` what timm does (their bicubic kernels differ as well).
    """
    if old == new:
        return table
    patches = table[:, 1:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
