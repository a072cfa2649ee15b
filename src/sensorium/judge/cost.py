"""Cost of an encoder: floating-point operations per image, and parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sensorium.abilities import Encoder
from sensorium.judge.encode import judged


def flops_per_image(encoder: Encoder, size: int) -> int:
    """Operations (a multiply-add counts as two) of ``features`` on one image [1, 3, size, size]: matrix products,
    convolutions, attention; element-wise operations are not counted."""
    device = next((p.device for p in encoder.parameters()), "cpu") if isinstance(encoder, nn.Module) else "cpu"
    with judged(encoder, device), FlopCounterMode(display=False) as counter:
        encoder.features(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops()


def parameters(module: nn.Module) -> int:
    """Number of parameters, each shared one counted once."""
    return sum(p.numel() for p in module.parameters())
