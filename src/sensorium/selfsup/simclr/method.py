"""SimCLR: a simple framework for contrastive learning of visual representations (Chen et al., 2020, arXiv:2002.05709).

Contrastive learning: two random views of an image attract each other and repel the views of all other images. With z
the L2-normalized projections of the 2N views of a batch and j(i) the other view of i's image (NT-Xent, eq. 1):

    l_i = -log( exp(z_i . z_j(i) / tau) / sum over k != i of exp(z_i . z_k / tau) )        L = mean over i of l_i

As in the authors' code both views go through the network as one batch (their batch statistics are shared), and
the negatives are those of all processes. Shapes: B images of this process, N of all, D features, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, require
from sensorium.method import Method, Progress
from sensorium.parts.learning.nt_xent import nt_xent
from sensorium.parts.moe.layer import update_biases


class SimCLR(Method, HasBackbone, BoundsInformation, Encoder):
    """Contrastive learning of two views.

    backbone: an Encoder. head: [B, backbone.dim] -> [B, P], see :class:`sensorium.parts.heads.ProjectionHead`; unused
    after training. temperature: tau.
    """

    least_batch = 2

    def __init__(self, backbone: nn.Module, head: nn.Module, *, temperature: float = 0.5):
        super().__init__()
        require(backbone, Encoder, by="SimCLR", choices="a ViT or a ResNet")
        self.backbone, self.head = backbone, head
        self.temperature = temperature
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]. Logs the scalars of ``nt_xent``."""
        x1, x2 = batch["views"]
        z1, z2 = self.head(self.features(torch.cat([x1, x2]))).chunk(2)
        return nt_xent(z1, z2, self.temperature)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projection head."""
        return self.backbone.features(images)
