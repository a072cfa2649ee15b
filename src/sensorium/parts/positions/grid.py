"""Positions of patches: fixed sine-cosine tables and resampling of a table to another grid.

The table of a H' x W' grid has one row per patch, row-major, after one row for the class token.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Resampling = Literal["bicubic", "antialias", "offset", "bilinear"]


def sincos_2d(grid: tuple[int, int], width: int, step: float = 1.0) -> Tensor:
    """The fixed table of MAE, [1, 1 + H' * W', width], float32; the class token's row is zero.

    The channels are [sin x | cos x | sin y | cos y] with frequencies 10000^(-i / (width / 4)): the column comes
    first, as in the authors' code and so in every published MAE checkpoint. step: from a patch to the next.
    """
    if width % 4:
        raise ValueError(f"sincos positions need a width divisible by 4, got {width}")
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(*(step * torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten().outer(frequency) for place in (x, y)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, 0, 1, 0)).float().unsqueeze(0)


def resample(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], how: Resampling = "bicubic", *, first: int = 1
) -> Tensor:
    """Resampling of a table [1, first + h * w, D] from grid ``old`` to ``new``; the ``first`` rows are unchanged.

    bicubic: as transformers does. antialias: bicubic and antialiased, as timm does (their kernels differ as well).
    offset: bicubic by a factor of (new + 0.1) / old, as the authors of DINO and DINOv2 do. bilinear: bilinear and
    antialiased, as SigLIP 2 does for images of any shape.
    """
    if how not in get_args(Resampling):
        raise ValueError(f"resampling must be one of {', '.join(get_args(Resampling))}, got {how!r}")
    if old == new:
        return table
    patches = table[:, first:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    factors = [(n + 0.1) / o for n, o in zip(new, old, strict=True)]
    patches = F.interpolate(  # channels last in memory: otherwise torch's antialiased results of one column are wrong
        patches,
        size=None if how == "offset" else new,
        scale_factor=factors if how == "offset" else None,
        mode="bilinear" if how == "bilinear" else "bicubic",
        align_corners=False,
        antialias=how in ("antialias", "bilinear"),
    )
    return torch.cat([table[:, :first], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
