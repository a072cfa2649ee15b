"""Margin contrastive: dimensionality reduction by learning an invariant mapping (Hadsell, Chopra, LeCun, CVPR 2006).

The ancestor of contrastive learning: outputs of similar pairs are pulled together, those of dissimilar ones are pushed
apart until their distance is the margin m. With D the Euclidean distance of two outputs and Y = 0 for a similar pair, 1
for a dissimilar one (eq. 4):

    L(Y, x_a, x_b) = (1 - Y) 1/2 D^2 + Y 1/2 max(0, m - D)^2

Similar pairs are the two views of an image, dissimilar ones views of different images of the batch (of all processes).
A batch has 2N - 2 times as many dissimilar pairs, so the loss is the mean over the similar ones plus the mean over the
others: both kinds weigh the same. Outputs are not normalized. Shapes: B images of this process, N of all, D features, P
dimensions of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.gather import gather, rank
from sensorium.parts.moe.layer import update_biases


class MarginContrastive(Method, HasBackbone, Encoder):
    """Contrastive learning of pairs. backbone: an Encoder. head: [B, backbone.dim] -> [B, P], unused after training.
    margin: m, above 0."""

    least_batch = 2

    def __init__(self, backbone: nn.Module, head: nn.Module, *, margin: float = 1.0):
        super().__init__()
        if margin <= 0:
            raise ValueError(f"margin must be above 0, got {margin}")
        require(backbone, Encoder, by="Margin contrastive", choices="a ViT or a ResNet")
        self.backbone, self.head, self.margin = backbone, head, margin
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W].

        Logs the mean distances of similar and of dissimilar pairs, ``near`` and ``far``, and ``inside``, the fraction of
        dissimilar pairs within the margin, which are pushed.
        """
        x1, x2 = batch["views"]
        z1, z2 = self.head(self.features(torch.cat([x1, x2]))).chunk(2)
        return _contrast(z1, z2, self.margin)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of equal outputs of all images it is m^2 / 2."""
        return 0.0, self.margin**2 / 2

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the head."""
        return self.backbone.features(images)


def margin_loss(z1: Tensor, z2: Tensor, margin: float = 1.0) -> Tensor:
    """The loss between outputs of two views [B, P] each, against all processes' views. A scalar, float32 or better.

    Each process returns the mean over pairs with its own 2B views; the mean over processes is the loss of the global
    batch. The global batch must have at least two images.
    """
    return _contrast(z1, z2, margin)["loss"]


def _contrast(z1: Tensor, z2: Tensor, margin: float) -> dict[str, Tensor]:
    B = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z_2BP = precise(torch.stack([z1, z2]))
        k_2NP = gather(z_2BP.transpose(0, 1)).transpose(0, 1)
        N = k_2NP.shape[1]
        if N < 2:
            raise ValueError("a dissimilar pair needs a batch of at least two images")
        square = (z_2BP[0] - z_2BP[1]).square().sum(-1)  # [B]
        # Not by a product of matrices, whose rounding is largest where two outputs are close.
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(z_2BP.flatten(0, 1), k_2NP.flatten(0, 1), compute_mode=exact)  # [2B, 2N]
        i = torch.arange(B, device=z1.device) + rank() * B
        other = (i[:, None] != torch.arange(N, device=z1.device)).tile(2, 2)
        pushed = (margin - distance).clamp(min=0).square().masked_fill(~other, 0)
        pairs = 2 * B * (2 * N - 2)
        loss = square.mean() / 2 + pushed.sum() / pairs / 2
        distance = distance.detach().masked_fill(~other, 0)
        inside = ((distance < margin) & other).sum().to(loss.dtype) / pairs
    return {"loss": loss, "near": square.detach().sqrt().mean(), "far": distance.sum() / pairs, "inside": inside}
