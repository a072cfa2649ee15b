"""A network that is judged as it is: published weights, as a row of a comparison that costs no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.errors import SensoriumError
from sensorium.method import Method


class Frozen(Method, HasBackbone, Encoder):
    """backbone: an Encoder, of which nothing is trained."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        require(backbone, Encoder, by="Frozen", choices="a ViT or a ResNet")
        self.backbone: Any = backbone.requires_grad_(False)
        self.dim: int = self.backbone.dim

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        raise SensoriumError("a frozen network learns nothing: there is no loss.")

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""
        return self.backbone.features(images)
