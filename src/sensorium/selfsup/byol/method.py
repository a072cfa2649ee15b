"""BYOL: bootstrap your own latent (Grill et al., 2020, arXiv:2006.07733).

An online network (encoder f, projector g, predictor q) predicts from one view of an image the projection that a target
network, the moving average of the online encoder and projector, gives of another view. There are no negatives. With
q_i = q(g(f(x_i))) and z'_i = g'(f'(x_i)) of the target, both L2-normalized (eq. 2, for both orders of the views):

    L = |q_1 - z'_2|^2 + |q_2 - z'_1|^2 = (2 - 2 cos(q_1, z'_2)) + (2 - 2 cos(q_2, z'_1))
    (f', g') <- tau (f', g') + (1 - tau) (f, g),   tau = 1 - (1 - momentum) (cos(pi k / K) + 1) / 2      (step k of K)

As in the authors' code each view passes through the networks as a batch of its own, and the target's batch norms use
the statistics of its batch. Shapes: B images, D features, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.method import ONE_DIRECTION, Method, Progress, Sign
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.schedules import cosine
from sensorium.parts.similarity import mean_cosine, spread


class BYOL(Method, HasBackbone, Encoder):
    """Prediction of a moving average's projection of another view.

    backbone: an Encoder. projector: [B, backbone.dim] -> [B, P]; predictor: [B, P] -> [B, P]; see
    :func:`sensorium.parts.heads.mlp_head`. momentum: initial tau, from 0 (the target is the online network) to 1.
    """

    least_batch = 2
    signs = (Sign("output_spread", "outputs", "nearly equal for all images", least=0.05), ONE_DIRECTION)

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module, *, momentum: float = 0.996):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum}")
        require(backbone, Encoder, by="BYOL", choices="a ViT or a ResNet")
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]
        self.online = nn.ModuleDict({"backbone": backbone, "projector": projector})
        self.predictor = predictor
        self.target = frozen_copy(self.online)
        self.momentum = momentum
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W].

        Logs ``alignment``, the mean cosine of the online projections of both views, and ``output_spread`` of the first
        (:func:`sensorium.parts.similarity.spread`): 0 if all images give the same.
        """
        x1, x2 = batch["views"]
        z1, z2 = _project(self.online, x1), _project(self.online, x2)
        with torch.no_grad():
            t1, t2 = _project(self.target, x1), _project(self.target, x2)
        loss = byol_loss(self.predictor(z1), self.predictor(z2), t1, t2)
        return {"loss": loss, "alignment": mean_cosine(z1.detach(), z2.detach()), "output_spread": spread(z1)}

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Move the target; update the biases that balance the backbone's experts, if it has any."""
        ema_(self.target, self.online, cosine(self.momentum, 1.0, at.fraction), buffers=False)
        update_biases(self.online)
        copy_biases(self.target, self.online)

    def train(self, mode: bool = True) -> BYOL:
        super().train(mode)
        teaching_(self.target, mode)
        return self

    @property
    def backbone(self) -> Any:
        """The online network's, which the paper evaluates."""
        return self.online["backbone"]

    def backbones(self) -> tuple[Any, ...]:
        return self.online["backbone"], self.target["backbone"]

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of unrelated directions each distance is 2."""
        return 0.0, 4.0

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the online backbone."""
        return self.backbone.features(images)


def byol_loss(q1: Tensor, q2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """The loss between the predictions q of two views and the target's projections z of them, [B, P] each, from 0 to 8.

    A scalar, float32 or better; z gets no gradient.
    """
    return 4 - 2 * (mean_cosine(q1, z2.detach()) + mean_cosine(q2, z1.detach()))


def _project(network: nn.ModuleDict, images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, P]."""
    return network["projector"](network["backbone"].features(images))  # pyright: ignore[reportCallIssue]
