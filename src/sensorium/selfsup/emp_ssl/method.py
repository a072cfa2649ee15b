"""EMP-SSL: towards self-supervised learning in one training epoch (Tong et al., 2023, arXiv:2304.03977).

Many small crops of each picture, projected to unit vectors z, should all point where their mean does, while the crops of
one index, one of each picture, span as large a volume as they can (section 2, eq. 4):

    zbar_n = mean over v of z_vn
    L = - mean over v of R(Z_v)  -  lambda mean over v, n of cos(z_vn, zbar_n)

with R the total coding rate, :func:`sensorium.parts.learning.coding_rate.coding_rate`, of the batch of all processes. The
more crops a picture gives, the fewer passes over the data are needed. Shapes: B pictures, V crops, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.learning.coding_rate import coding_rate
from sensorium.parts.learning.multicrop import by_size
from sensorium.parts.moe.layer import update_biases


class EMPSSL(Method, HasBackbone, Encoder):
    """Invariance and coding rate of many crops.

    backbone: an Encoder. head: [B, backbone.dim] -> [B, P], see :func:`sensorium.parts.heads.mlp_head`; unused after
    training. invariance: lambda. eps: the squared distortion of R.
    """

    least_batch = 2

    def __init__(self, backbone: nn.Module, head: nn.Module, *, invariance: float = 200.0, eps: float = 0.2):
        super().__init__()
        require(backbone, Encoder, by="EMP-SSL", choices="a ViT or a ResNet")
        if invariance < 0 or eps <= 0:
            raise ValueError(
                f"invariance {invariance}, eps {eps}: the first must not be negative, the second be positive"
            )
        self.backbone, self.head = backbone, head
        self.invariance, self.eps = invariance, eps
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["crops"]: V of [B, 3, H, W]. Logs the scalars of :func:`emp_loss`."""
        crops = batch["crops"]
        if len(crops) < 2:
            raise ValueError(f"EMP-SSL needs at least two crops of a picture, got {len(crops)}")
        z_VBP = self.head(by_size(self.backbone.features, crops)).unflatten(0, (len(crops), -1))
        return emp_loss(z_VBP, self.invariance, self.eps)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the whole picture, before the projection head."""
        return self.backbone.features(images)


def emp_loss(z_VBP: Tensor, invariance: float, eps: float) -> dict[str, Tensor]:
    """The loss of the projections of V crops, of any length; scalars, float32 or better.

    Also ``alignment`` (mean cosine of a crop and the mean of its picture's) and ``coding_rate`` (R in nats; low:
    collapse). The mean of ``loss`` over the processes is that of the global batch.
    """
    z_VBP = precise(z_VBP)
    with torch.autocast(z_VBP.device.type, enabled=False):
        z_VBP = F.normalize(z_VBP, dim=-1)
        alignment = F.cosine_similarity(z_VBP, z_VBP.mean(0, keepdim=True), dim=-1).mean()
        rate = coding_rate(z_VBP, eps).mean()
        loss = -rate - invariance * alignment
    return {"loss": loss, "alignment": alignment.detach(), "coding_rate": rate.detach()}
