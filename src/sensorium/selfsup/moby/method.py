"""MoBY: self-supervised learning with Swin Transformers (Xie et al., 2021, arXiv:2105.04553).

MoCo v2's contrast against a queue of keys, with BYOL's asymmetry: an online network with a predictor makes the queries,
its moving average without one the keys, and only the online network drops paths. With q1, q2 the normalized predictions
of two views of an image, k1, k2 their normalized keys, and queues of the keys of earlier batches, one for each view:

    l(q, k, queue) = -log( exp(q . k / tau) / (exp(q . k / tau) + sum over k' in queue of exp(q . k' / tau)) )     (eq. 1)
    L = mean over images of  l(q1, k2, queue2) + l(q2, k1, queue1)
    teacher <- m teacher + (1 - m) online,   m from ``momentum`` to 1 on a cosine schedule

As in the authors' code each view goes through the networks by itself (its batch statistics are its own), the moving
average is taken before the keys are made, and the queues begin with random unit vectors.
State changes in hooks only, with one exception: the teacher's batch norms use and count the statistics of its own batches.
Shapes: B images, K entries of a queue, D dimensions of a projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, require
from sensorium.method import Method, Progress
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.learning.info_nce import info_nce
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.queue import Queue
from sensorium.parts.schedules import cosine


class MoBY(Method, HasBackbone, BoundsInformation, Encoder):
    """Contrastive learning of two views against queues of a moving average's keys.

    backbone: an Encoder. projector: [B, backbone.dim] -> [B, D]; predictor: [B, D] -> [B, D], see
    :func:`sensorium.parts.heads.mlp_head`. D: ``dim_keys``. negatives: K. temperature: tau. momentum: initial m.

    ``queue`` holds pairs, the keys of first views beside those of second ones: [K, 2 D].
    """

    least_batch = 2

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        dim_keys: int = 256,
        negatives: int = 4096,
        temperature: float = 0.2,
        momentum: float = 0.99,
    ):
        super().__init__()
        require(backbone, Encoder, by="MoBY", choices="a Swin, a ViT or a ResNet")
        if temperature <= 0:
            raise ValueError(f"temperature {temperature}: must be greater than 0")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum}: must be at least 0 and at most 1")
        self.backbone, self.projector, self.predictor = backbone, projector, predictor
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]
        self.teacher = frozen_copy(nn.ModuleDict({"backbone": backbone, "projector": projector}))
        self.queue = Queue(negatives, 2 * dim_keys)
        self.queue.rows.copy_(_beside(*self.queue.rows.chunk(2, dim=1)))
        self.temperature, self.momentum = temperature, momentum
        # The keys of this step's micro-batches. Not a buffer: wrappers broadcast buffers before each forward.
        self._keys: list[Tensor] = []
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W].

        Logs ``contrast_top1``, the fraction of queries whose key is nearer than all of the queue, and ``alignment``, the
        mean cosine of a query and its key; 0 and 1 together mean collapse.
        """
        x1, x2 = batch["views"]
        q1, q2 = (self.predictor(self.projector(self.features(x))) for x in (x1, x2))
        with torch.no_grad():
            k1, k2 = (self._key(x) for x in (x1, x2))
        queue1, queue2 = self.queue.rows.chunk(2, dim=1)
        first, second = info_nce(q1, k2, queue2, self.temperature), info_nce(q2, k1, queue1, self.temperature)
        if self.training:
            self._keys.append(_beside(k1, k2))
        means = {name: (first[name] + second[name]) / 2 for name in first}
        return means | {"loss": first["loss"] + second["loss"]}

    def before_step(self, at: Progress) -> None:
        self._keys = []
        ema_(self.teacher, self._taught(), cosine(self.momentum, 1.0, at.fraction), buffers=False)

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        if self._keys:
            self.queue.push(torch.cat(self._keys))
            self._keys = []
        update_biases(self.backbone)
        copy_biases(self.teacher, self._taught())

    def train(self, mode: bool = True) -> MoBY:
        super().train(mode)
        teaching_(self.teacher, mode)
        return self

    def backbones(self) -> tuple[Any, ...]:
        return self.backbone, self.teacher["backbone"]

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of the sum of both views' InfoNCE: 0 and 2 log K."""
        return (0.0, 2 * scalars["ceiling"]) if "ceiling" in scalars else None

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the online backbone, which the paper evaluates."""
        return self.backbone.features(images)

    def _key(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        backbone, projector = self.teacher["backbone"], self.teacher["projector"]
        return projector(backbone.features(images))  # pyright: ignore[reportCallIssue]

    def _taught(self) -> nn.ModuleDict:
        """What the teacher is a moving average of."""
        return nn.ModuleDict({"backbone": self.backbone, "projector": self.projector})


def _beside(first: Tensor, second: Tensor) -> Tensor:
    """Two of [N, D] -> [N, 2 D], each normalized."""
    precise = torch.promote_types(first.dtype, torch.float32)
    return torch.cat([F.normalize(keys.to(precise), dim=1) for keys in (first, second)], dim=1)
