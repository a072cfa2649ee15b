"""LeJEPA: provable and scalable self-supervised learning without the heuristics (Balestriero & LeCun, 2025,
arXiv:2511.08544).

Every view of a picture should predict the mean of its global views, and the embeddings of each view should be distributed
as an isotropic Gaussian, which excludes collapse without a teacher, stopped gradients or negatives (section 5, algorithm 2):

    mu_n = mean over the global views g of z_gn
    L = (1 - lambda) mean over v, n, k of (mu_nk - z_vnk)^2  +  lambda mean over v of SIGReg(z_v)

with :func:`sensorium.parts.learning.gaussianity.sigreg` of the batch of all processes, on random directions that are drawn
anew for each step from its number. Shapes: B pictures, V views (the first G global), K dimensions, M directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress, Sign
from sensorium.parts.learning.gaussianity import directions, sigreg
from sensorium.parts.learning.multicrop import by_size
from sensorium.parts.moe.layer import update_biases


class LeJEPA(Method, HasBackbone, Encoder):
    """Prediction between views of Gaussian embeddings.

    backbone: an Encoder that takes views of several sizes. head: [B, backbone.dim] -> [B, K], see
    :func:`sensorium.parts.heads.mlp_head`; unused after training. trade_off: lambda, in [0, 1]. slices: M.
    global_views: G.
    """

    least_batch = 2
    signs = (Sign("power", "embeddings", "nearly zero for all images", least=0.05), *Method.signs)
    directions: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Sequential,
        *,
        trade_off: float = 0.05,
        slices: int = 1024,
        global_views: int = 2,
    ):
        super().__init__()
        require(backbone, Encoder, by="LeJEPA", choices="a ViT or a ResNet")
        if not 0 <= trade_off <= 1:
            raise ValueError(f"trade_off {trade_off}: must be from 0 to 1")
        if slices < 1:
            raise ValueError(f"slices {slices}: must be at least 1")
        self.backbone, self.head = backbone, head
        self.trade_off, self.global_views = trade_off, global_views
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]
        K: Any = head[-1].out_features
        # [K, M]; follows from the step, so that no checkpoint needs it
        self.register_buffer("directions", directions(K, slices, 0), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["crops"]: V of [B, 3, H_v, W_v], the global ones first. Logs the scalars of :func:`lejepa_loss`."""
        crops = batch["crops"]
        V, G = len(crops), self.global_views
        if not 1 < V >= G > 0:
            raise ValueError(f"LeJEPA needs at least two views, {G} of them global; got {V}")
        z_VBK = self.head(by_size(self.backbone.features, crops)).unflatten(0, (V, -1))
        return lejepa_loss(z_VBK, self.directions, global_views=G, trade_off=self.trade_off)

    def before_step(self, at: Progress) -> None:
        dim, count = self.directions.shape
        self.directions.copy_(directions(dim, count, at.step))

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Both terms are about 1 at most."""
        return 0.0, 1.0

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projection head."""
        return self.backbone.features(images)


def lejepa_loss(z_VBK: Tensor, directions: Tensor, *, global_views: int, trade_off: float) -> dict[str, Tensor]:
    """The loss of the embeddings of V views, the first ``global_views`` of which are predicted; scalars, float32 or better.

    Also ``prediction`` (its mean squared error), ``sigreg`` (the statistic; about 1: Gaussian) and ``power``, the mean
    square of the embeddings (0: collapse; 1: Gaussian). The mean of ``loss`` over the processes is that of the global
    batch.
    """
    z_VBK = precise(z_VBK)
    with torch.autocast(z_VBK.device.type, enabled=False):
        center_BK = z_VBK[:global_views].mean(0)
        prediction = (center_BK - z_VBK).square().mean()
        statistic = sigreg(z_VBK, directions)
        loss = (1 - trade_off) * prediction + trade_off * statistic
        power = z_VBK.detach().square().mean()
    return {"loss": loss, "prediction": prediction.detach(), "sigreg": statistic.detach(), "power": power}
