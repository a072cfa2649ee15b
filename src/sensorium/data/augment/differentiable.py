"""DiffAugment: the same kind of augmentation of real and of generated pictures, through which gradients pass (Zhao, Liu, Lin, Zhu &
Han, 2020, arXiv:2006.10738, section 3.3 and the authors' code).

    color          x + b,  b in -1/2..1/2;     saturation  m + s (x - m) of the channels' mean m,  s in 0..2;
                   contrast  m + c (x - m) of the picture's mean,  c in 1/2..3/2
    translation    by up to an eighth of the sides, zeros from outside
    cutout         a square of half of the sides becomes zero
All numbers come from ``uniform`` [B, NUMBERS] in 0..1. Pictures [B, C, H, W] in -1..1.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 7
SHIFT, CUT = 1 / 8, 1 / 2


def diff_augment(images: Tensor, uniform: Tensor) -> Tensor:
    """[B, C, H, W] -> the same shape."""
    brightness, saturation, contrast, *places = uniform.to(images).T[..., None, None, None].unbind(0)
    x = images + (brightness - 0.5)
    mean = x.mean(1, keepdim=True)
    x = mean + 2 * saturation * (x - mean)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (contrast + 0.5) * (x - mean)
    x = _translated(x, *(place.flatten() for place in places[:2]))
    return x * _kept(x, *(place.flatten() for place in places[2:]))


def _translated(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    rows, inside_rows = _moved(down, x.shape[2])
    columns, inside_columns = _moved(right, x.shape[3])
    at = torch.arange(len(x), device=x.device)[:, None, None]
    moved = x.movedim(1, -1)[at, rows[:, :, None], columns[:, None]].movedim(-1, 1)
    return moved * (inside_rows[:, :, None] & inside_columns[:, None])[:, None]


def _moved(uniform: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which row each row comes from [B, side], and whether it is one."""
    most = int(side * SHIFT + 0.5)
    shift = (uniform * (2 * most + 1)).long().clamp(max=2 * most) - most
    source = torch.arange(side, device=uniform.device) + shift[:, None]
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _kept(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """0 in a square, which may reach over the border, else 1: [B, 1, H, W]."""
    cut = []
    for uniform, side in ((down, x.shape[2]), (right, x.shape[3])):
        size = int(side * CUT + 0.5)
        begin = (uniform * (side + 1 - size % 2)).long().clamp(max=side - size % 2) - size // 2
        at = torch.arange(side, device=x.device)
        cut.append((at >= begin[:, None]) & (at < begin[:, None] + size))
    return 1 - (cut[0][:, :, None] & cut[1][:, None])[:, None].to(x.dtype)
