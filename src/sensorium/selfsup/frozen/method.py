"""A network that is judged as it is: published weights, as a row of a comparison that costs no training.

    features(x) = f(preprocess(x))

preprocess: pictures normalized by the data's mean and deviation -> as f was trained to see them (:mod:`sensorium.networks.preprocess`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, Statistics, require
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.networks.preprocess import Preprocess


class Frozen(Method, HasBackbone, Encoder):
    """backbone: an Encoder. given, own: (mean, std) of the pictures that come and of those that it was trained with. side:
    that pictures are resized to; None: as they come."""

    def __init__(self, backbone: nn.Module, given: Statistics, own: Statistics | None = None, side: int | None = None):
        super().__init__()
        require(backbone, Encoder, by="Frozen", choices="a ViT or a ResNet")
        self.backbone: Any = backbone.requires_grad_(False)
        self.dim: int = self.backbone.dim
        self.preprocess = Preprocess(given, own, side)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise SensoriumError("a frozen network learns nothing: there is no loss.")

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized by the data's statistics -> [B, dim]."""
        return self.backbone.features(self.preprocess(images))
