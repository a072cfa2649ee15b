"""VICReg: variance-invariance-covariance regularization (Bardes, Ponce, LeCun, 2022, arXiv:2105.04906).

Two views of a picture should have equal embeddings z and z'. The embeddings cannot collapse, because in each view of the
batch every dimension must keep a standard deviation of 1, and no two dimensions may be correlated:

    s = 1/P mean over n of |z_n - z'_n|^2                                              (eq. 5; the code divides by P)
    v(Z) = 1/P sum_j max(0, 1 - sqrt(Var(z_j) + eps))                                  (eqs. 1, 2)
    c(Z) = 1/P sum_i sum over j != i of C(Z)_ij^2,    C(Z) = 1/(N-1) sum_n (z_n - mean)(z_n - mean)^T    (eqs. 3, 4)
    L = lambda s + mu [v(Z) + v(Z')] / 2 + nu [c(Z) + c(Z')]                           (eq. 6; the half is the code's)

The statistics are of the batch of all processes. As in the authors' code each view is a pass of its own through the
network. Shapes: B pictures of this process, N of all, P dimensions of the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import ONE_DIRECTION, Method, Progress, Sign
from sensorium.parts.gather import gather
from sensorium.parts.learning.covariance import off_diagonal_energy
from sensorium.parts.moe.layer import update_biases

EPS = 1e-4


class VICReg(Method, HasBackbone, Encoder):
    """Variance, invariance and covariance of two views.

    backbone: an Encoder. head: the expander, [B, backbone.dim] -> [B, P]; unused after training. invariance, variance,
    covariance: the weights lambda, mu and nu.
    """

    least_batch = 2
    # The variance term asks for 1 (section 4.1).
    signs = (Sign("std", "embeddings", "nearly equal for all images", least=0.1), ONE_DIRECTION)

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ):
        super().__init__()
        require(backbone, Encoder, by="VICReg", choices="a ViT or a ResNet")
        if min(invariance, variance, covariance) < 0:
            raise ValueError(f"weights {invariance}, {variance}, {covariance}: none may be negative")
        self.backbone, self.head = backbone, head
        self.weights = invariance, variance, covariance
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]. Logs the scalars of :func:`vicreg_loss`."""
        z1, z2 = (self.head(self.features(view)) for view in batch["views"])
        return vicreg_loss(z1, z2, *self.weights)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of equal embeddings of all images it is mu."""
        return (0.0, self.weights[1]) if self.weights[1] else None

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the expander."""
        return self.backbone.features(images)


def vicreg_loss(z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float) -> dict[str, Tensor]:
    """The loss (eq. 6) of two views' embeddings [B, P]; scalars, float32 or better.

    Also ``invariance`` (s), ``covariance`` (c, the sum of both views') and ``std``, the mean standard deviation (0:
    collapse; 1: what the variance term asks for). The mean of ``loss`` over the processes is that of the global batch.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = precise(z1), precise(z2)
        s = F.mse_loss(z1, z2)
        views = [z - z.mean(0) for z in gather(torch.stack([z1, z2], 1)).unbind(1)]
        N, P = views[0].shape
        std = torch.stack([(z.square().sum(0) / (N - 1) + EPS).sqrt() for z in views])
        v = F.relu(1 - std).mean()
        c = torch.stack([off_diagonal_energy(z, z) for z in views]).sum() / ((N - 1) ** 2 * P)
        loss = invariance * s + variance * v + covariance * c
    return {"loss": loss, "invariance": s.detach(), "std": std.detach().mean(), "covariance": c.detach()}
