"""MoCo v3: an empirical study of training self-supervised vision transformers (Chen et al., 2021, arXiv:2104.02057).

Momentum contrast without a queue: the negatives are the keys of the same batch, of all processes, which are many enough
in large batches. A predictor on the queries, and the loss of both views in turn (algorithm 1), with unit vectors q and k:

    q = predict(base(x))       k = momentum(x)       base, momentum: an encoder and its projector
    ctr(q, k) = 2 tau mean over i of  -log( exp(q_i . k_i / tau) / sum over j of exp(q_i . k_j / tau) )
    L = ctr(q_1, k_2) + ctr(q_2, k_1)
    momentum <- m momentum + (1 - m) base,   m from ``momentum`` to 1 on a cosine schedule

A ViT's patch projection stays as it was initialized (section 4.1), which avoids the dips of accuracy that training it
causes. As in the authors' code the views pass one after the other, each with batch statistics of its own, and the batch
norms of the momentum encoder use those of its own batch. They leak nothing here: all keys are of that batch.

Shapes: B images of this process, N of all, D features, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import AttentionMaps, BoundsInformation, Encoder, HasBackbone, TokenEncoder, require
from sensorium.method import Method, Progress
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.gather import gather, rank
from sensorium.parts.learning.information import bound_scalars
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.schedules import cosine


class MoCoV3(Method, HasBackbone, BoundsInformation, Encoder, AttentionMaps):
    """Momentum contrast within the batch, with a predictor.

    backbone: an Encoder. head: the projector, [B, backbone.dim] -> [B, P]. predictor: [B, P] -> [B, P]; both are unused
    after training. temperature: tau. momentum: initial m. freeze_patches: whether a ViT's patch projection stays as it
    is. Raises ValueError if a number is out of its range.
    """

    least_batch = 2

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        predictor: nn.Module,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patches: bool = True,
    ):
        super().__init__()
        require(backbone, Encoder, by="MoCo v3", choices="a ViT or a ResNet")
        if not 0 <= momentum <= 1:
            raise ValueError(f"MoCo v3: momentum {momentum} is not between 0 and 1")
        if temperature <= 0:
            raise ValueError(f"MoCo v3: temperature {temperature} is not above 0")
        if freeze_patches and isinstance(backbone, TokenEncoder):
            backbone.get_submodule("patch_embed").requires_grad_(False)
        self.base = nn.ModuleDict({"backbone": backbone, "head": head})
        self.predictor = predictor
        self.teacher = frozen_copy(self.base)
        self.temperature, self.momentum = temperature, momentum
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]. Logs the scalars of :func:`contrast`, means over both views."""
        x1, x2 = batch["views"]
        q1, q2 = (self.predictor(_project(self.base, x)) for x in (x1, x2))
        with torch.no_grad():
            k1, k2 = (_project(self.teacher, x) for x in (x1, x2))
        one, two = contrast(q1, k2, self.temperature), contrast(q2, k1, self.temperature)
        means = {name: (one[name] + two[name]) / 2 for name in one}
        return means | {"loss": one["loss"] + two["loss"]}

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        ema_(self.teacher, self.base, cosine(self.momentum, 1.0, at.fraction), buffers=False)
        update_biases(self.base)
        copy_biases(self.teacher, self.base)

    def train(self, mode: bool = True) -> MoCoV3:
        super().train(mode)
        teaching_(self.teacher, mode)
        return self

    @property
    def backbone(self) -> Any:
        """The base encoder's, not its moving average's: the authors' linear probe evaluates it."""
        return self.base["backbone"]

    def backbones(self) -> tuple[Any, ...]:
        return self.base["backbone"], self.teacher["backbone"]

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of the sum of both views', each times 2 tau: 0 and 4 tau log N."""
        return (0.0, 4 * self.temperature * scalars["ceiling"]) if "ceiling" in scalars else None

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the base encoder, before its head."""
        return self.backbone.features(images)

    def attention(self, images: Tensor) -> Tensor | None:
        """[B, 3, H, W] -> [B, heads, H', W'] of the base encoder; None if it has no attention."""
        return self.backbone.attention(images) if isinstance(self.backbone, AttentionMaps) else None


def contrast(q_BP: Tensor, k_BP: Tensor, temperature: float) -> dict[str, Tensor]:
    """2 tau times InfoNCE between queries and the keys of all processes, to which no gradient goes.

    Returns ``loss``, the mean over this process's queries in float32 or better, ``contrast_top1`` (fraction of queries
    whose nearest key is their own), ``alignment`` (mean cosine of queries and their keys), ``information`` and ``ceiling``
    (:func:`sensorium.parts.learning.information.bound_scalars`); all but the loss detached.
    """
    precise = torch.promote_types(q_BP.dtype, torch.float32)
    with torch.autocast(q_BP.device.type, enabled=False):
        q_BP, k_BP = F.normalize(q_BP.to(precise), dim=1), F.normalize(k_BP.detach().to(precise), dim=1)
        logits = q_BP @ gather(k_BP).T / temperature  # [B, N]
        own = torch.arange(len(q_BP), device=q_BP.device) + rank() * len(q_BP)
        nats = F.cross_entropy(logits, own)
        found = (logits.detach().argmax(1) == own).to(nats.dtype).mean()
        alignment = (q_BP.detach() * k_BP).sum(1).mean()
    scalars = {"loss": 2 * temperature * nats, "contrast_top1": found, "alignment": alignment}
    return scalars | bound_scalars(nats, logits.shape[1])


def _project(network: nn.ModuleDict, images: Tensor) -> Tensor:
    return network["head"](network["backbone"].features(images))  # pyright: ignore[reportCallIssue]
