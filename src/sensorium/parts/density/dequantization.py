"""Noise that makes pixels a density: variational dequantization (Flow++: Ho, Chen, Srinivas, Duan & Abbeel, 2019,
arXiv:1902.00275, section 3.1).

Levels k of 0 .. 255 have the probability P(k) = integral of p(k + u) over u in [0, 1)^D, where p is a density. For any q(u | k)
    log P(k) >= E log p(k + u) - log q(u | k),   u of q
and equal for q = p(k + u) / P(k), which depends on the pixels; uniform noise is q = 1. Here q is a flow of uniform noise e:
    h = logit(e);   h = b h + (1 - b) (h exp(s(b h, k)) + t(b h, k)), four times with b of a checkerboard;   u = sigmoid(h)
    log q(u | k) = -log |det du/de|
s and t are zeros at first, so that it begins as uniform noise, and the bound as that of uniform noise. The authors' couplings
have mixtures of logistics and attention; these are affine, of convolutions.
Shapes: B images, C channels, H x W pixels, D values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.density.coupling import Coupling, ResidualNet, checkerboard
from sensorium.parts.density.pixels import LEVELS

Dequantization = Literal["uniform", "variational"]
COUPLINGS = 4
EDGE = 2**-17  # half of what float32 tells apart within the highest level


class LearnedNoise(nn.Module):
    """q(u | k) of images ``shape`` [C, H, W]. width: channels of the couplings' networks."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, height, across = shape
        self.couplings = nn.ModuleList(
            Coupling(
                ResidualNet(2 * channels, 2 * channels, width, 1),
                checkerboard(height, across, bool(k % 2)),
                "tanh",
                channels,
            )
            for k in range(COUPLINGS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels with uniform noise, (k + e) / 256 [B, C, H, W] -> (k + u) / 256, and log q(u | k) [B]."""
        x = precise(x) * LEVELS
        levels = x.floor()
        h = (x - levels).clamp(EDGE, 1 - EDGE).logit()
        seen = levels / (LEVELS - 1) - 0.5
        log_q = log_slope(h)
        for coupling in self.couplings:
            h, log_det = coupling(h, seen)
            log_q = log_q - precise(log_det)
        return (levels + torch.sigmoid(h)) / LEVELS, log_q - log_slope(h)


def log_slope(h: Tensor) -> Tensor:
    """log |det| of the sigmoid of each value: [B, ...] -> [B]."""
    return (F.logsigmoid(h) + F.logsigmoid(-h)).flatten(1).sum(1)
