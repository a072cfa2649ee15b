"""Barlow Twins: self-supervised learning via redundancy reduction (Zbontar et al., 2021, arXiv:2103.03230).

The projections of two views of a picture should agree in every dimension, and no two dimensions should tell the same. With h
the projections, standardized in each dimension over the batch, and C their cross-correlation:

    C_ij = 1/N sum over n of h1_ni h2_nj                                       (eq. 2)
    L = sum_i (1 - C_ii)^2  +  lambda sum_i sum over j != i of C_ij^2            (eq. 1)

The first term is the invariance, the second the redundancy. As in the authors' code each view is a pass of its own
through the network. Shapes: B pictures of this process, N of all, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress, Sign
from sensorium.parts.gather import gather
from sensorium.parts.learning.covariance import off_diagonal_energy
from sensorium.parts.moe.layer import update_biases


class BarlowTwins(Method, HasBackbone, Encoder):
    """Redundancy reduction between two views.

    backbone: an Encoder. head: [B, backbone.dim] -> [B, P], see :func:`sensorium.parts.heads.mlp_head`; unused after
    training. redundancy: lambda.
    """

    least_batch = 2
    signs = (Sign("redundancy", "projections", "all dimensions tell the same", most=0.9), *Method.signs)

    def __init__(self, backbone: nn.Module, head: nn.Sequential, *, redundancy: float = 0.0051):
        super().__init__()
        require(backbone, Encoder, by="Barlow Twins", choices="a ViT or a ResNet")
        if redundancy < 0:
            raise ValueError(f"redundancy {redundancy}: must not be negative")
        self.backbone, self.head, self.redundancy = backbone, head, redundancy
        self.bn = nn.BatchNorm1d(head[-1].out_features, affine=False)  # pyright: ignore[reportArgumentType]
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]. Logs the scalars of :func:`barlow_loss`."""
        z1, z2 = (self.head(self.features(view)) for view in batch["views"])
        with torch.autocast(z1.device.type, enabled=False):
            return barlow_loss(self.bn(precise(z1)), self.bn(precise(z2)), self.redundancy)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of views without any correlation it is the number of dimensions."""
        return 0.0, float(self.bn.num_features)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projection head."""
        return self.backbone.features(images)


def barlow_loss(h1: Tensor, h2: Tensor, redundancy: float) -> dict[str, Tensor]:
    """The loss (eq. 1) of two views' projections [B, P], standardized over the batch of all processes; scalars.

    Also ``correlation`` (mean of the diagonal of C; 1: the views agree) and ``redundancy`` (root mean square of the
    other entries; 0: decorrelated).
    """
    P = h1.shape[1]
    h1, h2 = gather(torch.stack([h1, h2], 1)).unbind(1)
    N = len(h1)
    diagonal = (h1 * h2).sum(0) / N
    others = off_diagonal_energy(h1, h2) / N**2
    loss = (1 - diagonal).square().sum() + redundancy * others
    spread = (others.detach().clamp_min(0) / max(P * (P - 1), 1)).sqrt()
    return {"loss": loss, "correlation": diagonal.detach().mean(), "redundancy": spread}
