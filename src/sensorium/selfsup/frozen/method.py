"""A network that is judged as it is: published weights, as a row of a comparison that costs no training.

    features(x) = f(resize((x s + m - m_f) / s_f))

x: pictures normalized by the data's mean m and deviation s; m_f, s_f and the size: those that f was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, Statistics, require
from sensorium.errors import SensoriumError
from sensorium.method import Method


class Frozen(Method, HasBackbone, Encoder):
    """backbone: an Encoder. given, own: (mean, std) of the pictures that come and of those that it was trained with. side:
    that pictures are resized to; None: as they come."""

    def __init__(self, backbone: nn.Module, given: Statistics, own: Statistics | None = None, side: int | None = None):
        super().__init__()
        require(backbone, Encoder, by="Frozen", choices="a ViT or a ResNet")
        self.backbone: Any = backbone.requires_grad_(False)
        self.dim: int = self.backbone.dim
        (mean, std), (own_mean, own_std) = given, own or given
        self.scale = tuple(s / t for s, t in zip(std, own_std, strict=True))
        self.shift = tuple((m - n) / t for m, n, t in zip(mean, own_mean, own_std, strict=True))
        self.side = side

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise SensoriumError("a frozen network learns nothing: there is no loss.")

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized by the data's statistics -> [B, dim]."""
        scale, shift = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.scale, self.shift))
        x = images * scale[:, None, None] + shift[:, None, None]
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        return self.backbone.features(x)
