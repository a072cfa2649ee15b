"""A classifier: a network with a linear head on its features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sensorium.abilities import Classifier, Encoder, HasBackbone, require
from sensorium.method import ALL_EQUAL, Method

UNKNOWN = -1  # the label of an image without one


class LinearClassifier(Method, HasBackbone, Encoder, Classifier):
    """backbone: an Encoder. classes: K. by: the system's name, for an error."""

    signs = (ALL_EQUAL,)  # two classes need no more than one direction

    def __init__(self, backbone: nn.Module, classes: int, by: str) -> None:
        super().__init__()
        require(backbone, Encoder, by=by, choices="a ViT or a ResNet")
        self.backbone: Any = backbone
        self.dim: int = self.backbone.dim
        self.classes = classes
        self.head = nn.Linear(self.dim, classes)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""
        return self.backbone.features(images)

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""
        return self.head(self.features(images))
