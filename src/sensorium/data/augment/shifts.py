"""Shifts of a few pixels, which small pictures of CIFAR's kind are usually trained with (He et al., 2016, arXiv:1512.03385, section 4.2;
mirrored at the borders as in airbench, arXiv:2404.00498)."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.base.draw import Draw


def usual_shift(side: int) -> int:
    """By how many pixels pictures of ``side`` pixels are shifted to learn labels, or 0 if they are large and cropped: of small ones
    parts, enlarged, and other colors cost more steps than there are in minutes (docs/log.md)."""
    return max(1, side // 16) if side <= 64 else 0


def shifted(images: Tensor, draw: Draw, most: int) -> tuple[Tensor, Tensor]:
    """The pictures with ``most`` pixels mirrored at each border, and boxes [B, 4] of their own size at random places of that."""
    height, width = images.shape[-2:]
    if not 0 < most < min(height, width):
        raise ValueError(f"shifts of up to {most} pixels: must be above 0 and below the sides, {height} x {width}")
    mirrored = [torch.arange(-most, side + most, device=images.device).abs() for side in (height, width)]
    rows, columns = (
        torch.where(at < side, at, 2 * (side - 1) - at) for at, side in zip(mirrored, (height, width), strict=True)
    )
    place_B2 = (draw.rand(2) * (2 * most + 1)).long().clamp_(max=2 * most)
    size_B2 = torch.tensor([height, width]).expand(len(place_B2), 2)
    return images[:, :, rows][..., columns], torch.cat([place_B2, size_B2], 1)
