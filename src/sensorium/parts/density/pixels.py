"""The values of pictures as models of their distribution see them."""

from __future__ import annotations

import torch
from torch import Tensor


def binarise(values: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Intensities (uint8, or floats in 0..1) to float32 zeros and ones of the same shape.

    By a threshold of one half; or with ``uniform`` (random numbers in [0, 1), one per value) stochastically, with the
    intensity as the probability of a one.
    """
    bright = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    return (bright > (0.5 if uniform is None else uniform)).float()


def black_and_white(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> zeros and ones [B, 1, H, W], gray by threshold."""
    return binarise(pixels.float().mean(1, keepdim=True) / 255)


def shown(values: Tensor) -> Tensor:
    """Zeros and ones, or probabilities of a one [B, 1, H, W] -> uint8 [B, 3, H, W]."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
