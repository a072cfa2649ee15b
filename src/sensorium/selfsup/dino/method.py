"""DINO: emerging properties in self-supervised vision transformers (Caron et al., 2021, arXiv:2104.14294).

The student gets every crop of an image; its moving average, the teacher, gets only the global ones. The student learns
to predict the teacher's output across crops (eq. 3), as a mean over the pairs of different crops:

    L = mean over g, v != g of  -sum_k P_t[g, k] log P_s[v, k]
    P_t = softmax((teacher(x_g) - c) / tau_t)        P_s = softmax(student(x_v) / tau_s)
    c       <- m_c c + (1 - m_c) mean over g of teacher(x_g)                    (eq. 4)
    teacher <- m teacher + (1 - m) student,   m from ``momentum`` to 1 on a cosine schedule

The center c spreads the teacher's output, a small tau_t sharpens it; together they prevent collapse. With ``sinkhorn`` the
teacher's outputs of a batch are spread over the prototypes by Sinkhorn-Knopp instead, as SwAV's codes are (table 7;
DINOv2: Oquab et al., 2023, arXiv:2304.07193, section 4):

    P_t = sinkhorn(teacher(x) / tau_t) of the G B global crops of all processes, 3 iterations

State changes in hooks only, with one exception, batch normalization. As in the authors' code the teacher's batch norms
use the statistics of its own batch in training, and keep their own running statistics; dropout and drop-path are off in
the teacher.
Shapes: B images, V crops, G global crops (the first of the V), K prototypes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import AttentionMaps, Encoder, HasBackbone, require
from sensorium.method import ONE_DIRECTION, Method, Progress, Sign
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.gather import sum_over_processes
from sensorium.parts.heads import DINOHead
from sensorium.parts.learning.multicrop import across_crops, by_size
from sensorium.parts.learning.sinkhorn import log_sinkhorn
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.schedules import cosine, linear


class DINO(Method, HasBackbone, Encoder, AttentionMaps):
    """Self-distillation without labels.

    backbone: an Encoder that takes crops of several sizes. head: a DINOHead of K outputs. tau_s: the student's
    temperature; tau_t: the teacher's, linear from the first value to the second over the first ``tau_warmup`` of the
    budget. momentum: initial m. center_momentum: m_c. freeze_last: fraction of the budget during which the head's
    prototypes are frozen. global_crops: G. sinkhorn: instead of the center, which is then only tracked.
    """

    # Both kinds of collapse, to one output and to the uniform one, make the divergence vanish (section 5.3 and figure 7).
    signs = (Sign("kl", "outputs", "the same for all images", least=0.01), ONE_DIRECTION)
    center: Tensor
    tau_t: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: DINOHead,
        *,
        tau_s: float = 0.1,
        tau_t: tuple[float, float] = (0.04, 0.07),
        tau_warmup: float = 0.3,
        momentum: float = 0.996,
        center_momentum: float = 0.9,
        freeze_last: float = 0.01,
        global_crops: int = 2,
        sinkhorn: bool = False,
    ):
        super().__init__()
        require(backbone, Encoder, by="DINO", choices="a ViT or a ResNet")
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]
        if head.in_features != self.dim:
            raise ValueError(f"DINO: the head takes {head.in_features} features, the backbone gives {self.dim}")
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = frozen_copy(self.student)
        self.tau_s, self.tau_schedule, self.tau_warmup = tau_s, tau_t, tau_warmup
        self.momentum, self.center_momentum = momentum, center_momentum
        self.freeze_last, self.global_crops, self.sinkhorn = freeze_last, global_crops, sinkhorn
        self.register_buffer("center", torch.zeros(head.out_features))  # c  [K]
        self.register_buffer("tau_t", torch.tensor(tau_t[0]))
        # The teacher's outputs in this step: their sum [K] and count. Not a buffer, because wrappers
        # broadcast buffers from the first process before each forward.
        self._seen: tuple[Tensor, int] | None = None
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["crops"]: V of [B, 3, H_v, W_v], the global ones first.

        Logs ``entropy`` of the teacher in nats (0: always one prototype; log K: uniform; both mean collapse) and
        ``kl``, the divergence of the student from the teacher.
        """
        crops = batch["crops"]
        V, G, B = len(crops), self.global_crops, len(crops[0])
        if not 1 < V >= G > 0:
            raise ValueError(f"DINO needs at least two crops, {G} of them global; got {V} crops")
        with torch.no_grad():
            t_GBK = _project(self.teacher, crops[:G]).unflatten(0, (G, B))
        s_VBK = _project(self.student, crops).unflatten(0, (V, B))
        if self.training:
            total, count = self._seen or (0, 0)
            self._seen = (total + t_GBK.sum((0, 1), dtype=self.center.dtype), count + G * B)
        center = None if self.sinkhorn else self.center
        return dino_loss(t_GBK, s_VBK, center, tau_t=self.tau_t, tau_s=self.tau_s)

    def before_step(self, at: Progress) -> None:
        warm = at.fraction / self.tau_warmup if self.tau_warmup > 0 else 1.0
        self.tau_t.fill_(linear(*self.tau_schedule, warm))
        self._seen = None

    def before_update(self, at: Progress) -> None:
        if at.fraction < self.freeze_last:
            for parameter in self.student["head"].last_layer.parameters():  # pyright: ignore
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        ema_(self.teacher, self.student, cosine(self.momentum, 1.0, at.fraction), buffers=False)
        update_biases(self.student)
        copy_biases(self.teacher, self.student)
        if self._seen is not None:
            total, count = self._seen
            seen = sum_over_processes(torch.cat([total, total.new_full((1,), count)]))
            self.center.lerp_(seen[:-1] / seen[-1], 1 - self.center_momentum)
            self._seen = None

    def train(self, mode: bool = True) -> DINO:
        super().train(mode)
        teaching_(self.teacher, mode)
        return self

    @property
    def backbone(self) -> Any:
        """The teacher's, which the paper evaluates."""
        return self.teacher["backbone"]

    def backbones(self) -> tuple[Any, ...]:
        return self.student["backbone"], self.teacher["backbone"]

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of uniform outputs it is log K."""
        return 0.0, math.log(len(self.center))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the teacher's backbone."""
        return self.backbone.features(images)

    def attention(self, images: Tensor) -> Tensor | None:
        """[B, 3, H, W] -> [B, heads, H', W'] of the teacher's backbone; None if it has no attention."""
        return self.backbone.attention(images) if isinstance(self.backbone, AttentionMaps) else None


def dino_loss(
    t_GBK: Tensor, s_VBK: Tensor, center: Tensor | None, *, tau_t: float | Tensor, tau_s: float
) -> dict[str, Tensor]:
    """The loss (eq. 3) between the teacher's logits of G crops and the student's of V, whose first G are the same crops;
    without a center by Sinkhorn-Knopp over the batch.

    Returns ``loss``, ``entropy`` (the teacher's) and ``kl`` (loss - entropy): scalars in nats, float32 or better, means
    over the batch; the last two detached.
    """
    precise = torch.promote_types(s_VBK.dtype, torch.float32)
    t_GBK, s_VBK = t_GBK.detach().to(precise), s_VBK.to(precise)
    with torch.autocast(s_VBK.device.type, enabled=False):
        if center is None:
            log_t = log_sinkhorn(t_GBK.flatten(0, 1) / tau_t, epsilon=1.0).view_as(t_GBK)
        else:
            log_t = F.log_softmax((t_GBK - center) / tau_t, dim=-1)
        log_s = F.log_softmax(s_VBK / tau_s, dim=-1)
        p_t = log_t.exp()
        loss = across_crops(p_t, log_s)
        entropy = -(p_t * log_t).sum(-1).mean()
    return {"loss": loss, "entropy": entropy, "kl": loss.detach() - entropy}


def _project(network: nn.ModuleDict, crops: Sequence[Tensor]) -> Tensor:
    """Crops of [B, 3, H_v, W_v] -> logits [V * B, K]; the head gets all crops at once."""
    return network["head"](by_size(network["backbone"].features, crops))  # pyright: ignore[reportArgumentType]
