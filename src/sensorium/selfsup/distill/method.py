"""Distillation of features: a student network predicts those of a frozen teacher, without labels (SimReg: regression as a
simple yet effective tool for self-supervised knowledge distillation, Navaneet et al., 2022, arXiv:2201.05131).

Teacher t and student f see the same crop x (Beyer et al., 2021, arXiv:2106.05237). A head h on the student's pooled
features, unused after training, predicts the direction of the teacher's, whose channels are standardized first, because few
of them would dominate it (PHI-S, Ranzinger et al., 2024, arXiv:2410.01680, compares ways to do so); here with the mean and
deviation of the batch:

    u = (t(x) - mean) / deviation              L = mean over the batch of  1 - cos(h(f(x)), u)

With ``spatial``, the weight w of a second term, a 1x1 convolution g of the student's last feature map (of a ViT: the patch
tokens on their grid) predicts the teacher's, v, standardized too; both are averaged to the smaller grid (AM-RADIO, Ranzinger
et al., 2023, arXiv:2312.06709: alpha = 0.9, beta = 0.1; it interpolates instead):

    L + w mean over the batch and the grid of  alpha (1 - cos(g, v)) + beta smooth-L1(g, v)

Shapes: B images, D features of the student, T of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, MapEncoder, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.gather import gather, rank
from sensorium.parts.moe.layer import update_biases

ALPHA, BETA = 0.9, 0.1


class Teacher(Protocol):
    """Gives the targets. No part of the method: it is neither trained nor saved with the student."""

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], as the student gets them -> [B, T]."""
        ...

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, T] and [B, T, h, w]."""
        ...


class Distill(Method, HasBackbone, Encoder):
    """A student and its heads.

    backbone: an Encoder, the student; with ``spatial`` a MapEncoder. head: [B, backbone.dim] -> [B, T]. teacher: of T
    features. spatial: w; 0: the maps are not compared.
    """

    least_batch = 2

    def __init__(self, backbone: nn.Module, head: nn.Module, teacher: Teacher, width: int, *, spatial: float = 0.0):
        super().__init__()
        require(backbone, MapEncoder if spatial else Encoder, by="Distill", choices="a ViT or a ResNet")
        if spatial < 0:
            raise ValueError(f"spatial {spatial}: must not be negative")
        self.backbone: Any = backbone
        self.dim: int = self.backbone.dim
        self.head, self.teacher, self.spatial = head, teacher, spatial
        self.standardize = nn.BatchNorm1d(width, affine=False)
        if spatial:
            self.map_head = nn.Conv2d(self.backbone.channels[-1], width, 1)
            self.standardize_map = nn.BatchNorm2d(width, affine=False)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["image"]: [B, 3, H, W].

        Logs ``cosine`` (mean between prediction and target), ``found`` (fraction of predictions whose nearest target in
        the batch of all processes is their own), with ``spatial`` also ``map_cosine``.
        """
        images = batch["image"]
        if not self.spatial:
            with torch.no_grad():
                t = self.teacher.features(images)
            return self._summary(self.features(images), t)
        with torch.no_grad():
            t, t_map = self.teacher.features_and_map(images)
        s, s_map = cast(MapEncoder, self.backbone).features_and_map(images)
        out = self._summary(s, t)
        g, v = self.map_head(s_map), precise(t_map)
        with torch.autocast(g.device.type, enabled=False):
            g, v = smaller(precise(g), self.standardize_map(v))
            out["loss"] = out["loss"] + self.spatial * spatial_loss(g, v)
        return {**out, "map_cosine": F.cosine_similarity(g.detach(), v).mean()}

    def _summary(self, s: Tensor, t: Tensor) -> dict[str, Tensor]:
        p = self.head(s)
        with torch.autocast(p.device.type, enabled=False):
            p, u = precise(p), self.standardize(precise(t))
            loss = cosine_loss(p, u)
            nearest = (p.detach() @ F.normalize(gather(u), dim=1).T).argmax(1)
            own = torch.arange(len(u), device=u.device) + rank() * len(u)
            found = (nearest == own).to(loss.dtype).mean()
        return {"loss": loss, "cosine": 1 - loss.detach(), "found": found}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of unrelated directions each cosine is 0."""
        return 0.0, 1 + self.spatial * ALPHA

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the student."""
        return self.backbone.features(images)


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """[B, T, ...] twice -> the mean of 1 - cos over the second dimension: 0 (same directions) to 2. Scalar."""
    return 1 - F.cosine_similarity(prediction, target, dim=1).mean()


def spatial_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Of maps [B, T, h, w] of one size: 0 if they are equal. Scalar (AM-RADIO, section 3.2)."""
    return ALPHA * cosine_loss(prediction, target) + BETA * F.smooth_l1_loss(prediction, target)


def smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, T, ., .], each averaged to the smaller number of rows and of columns of both."""
    size = min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)
