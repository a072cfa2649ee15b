"""SwAV: unsupervised learning of visual features by contrasting cluster assignments (Caron, Misra, Mairal, Goyal, Bojanowski,
Joulin, 2020, arXiv:2006.09882).

Images are clustered online: a crop's code says how much it belongs to each of K learned prototypes, and each crop of an
image predicts the code of another one ("swapped" prediction). With z the L2-normalized projections, c_k the prototypes and
q_s the code of the global crop s (eqs. 1-2, over all pairs of different crops, eq. 6):

    L = mean over s, t != s of  -sum_k q_s[k] log p_t[k]         p_t = softmax(z_t . c / tau)

The codes of a batch are computed by Sinkhorn-Knopp, so that they use the prototypes equally, which prevents collapse
(eqs. 3-5; ``parts/learning/sinkhorn.py``): those of the global crops of one kind, over the images of all processes.

    Q maximizes  sum of Q (z . c) + epsilon H(Q),   each code sums to 1, each prototype has an equal share

A batch of fewer images than prototypes can't use them equally; the projections of earlier batches, a queue for each kind of
global crop, are then assigned with it, and only the codes of the batch are used (section 3.1).

State changes in hooks only: prototypes are normalized before each step, not trained in the first ``freeze`` of the budget,
and the queues, filled after each step from ``queue_start`` on, are used once they are full.
Shapes: B images, V crops, G global crops (the first of the V), D dimensions of projections, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import ONE_DIRECTION, Method, Progress, Sign
from sensorium.parts.gather import rank, sum_over_processes, world_size
from sensorium.parts.learning.multicrop import across_crops, by_size
from sensorium.parts.learning.sinkhorn import sinkhorn
from sensorium.parts.moe.layer import update_biases
from sensorium.parts.queue import Queue


class SwAV(Method, HasBackbone, Encoder):
    """Swapped prediction of codes.

    backbone: an Encoder that takes crops of several sizes. head: [B, backbone.dim] -> [B, D]. prototypes: D -> K without
    bias. temperature: tau. epsilon, iterations: of Sinkhorn-Knopp. freeze: fraction of the budget during which the
    prototypes are not trained. global_crops: G. queue: entries of each queue, 0 for none; queue_start: fraction of the
    budget after which they are filled.
    """

    least_batch = 2
    # Codes have an equal share of each prototype, so that equal outputs are those that predict uniform codes exactly.
    signs = (
        Sign("kl", "outputs", "the same for all images", least=0.01),
        Sign("in_use", "assignments", "nearly all to the same prototypes", least=0.05),
        ONE_DIRECTION,
    )

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        prototypes: nn.Linear,
        *,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze: float = 0.01,
        global_crops: int = 2,
        queue: int = 0,
        queue_start: float = 0.075,
    ):
        super().__init__()
        require(backbone, Encoder, by="SwAV", choices="a ViT or a ResNet")
        if prototypes.bias is not None:
            raise ValueError("SwAV: the prototypes are directions, and have no bias")
        if temperature <= 0 or epsilon <= 0:
            raise ValueError(f"temperature {temperature:g} and epsilon {epsilon:g} must be above 0")
        self.backbone: Any = backbone
        self.dim: int = self.backbone.dim
        self.head, self.prototypes = head, prototypes
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.freeze, self.global_crops, self.queue_start = freeze, global_crops, queue_start
        queues = global_crops if queue else 0
        self.queues = nn.ModuleList(Queue(queue, prototypes.in_features) for _ in range(queues))
        self._queued = False
        # Projections of this step [G, B, D], a tensor per micro-batch.
        self._seen: list[Tensor] = []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["crops"]: V of [B, 3, H_v, W_v], the global ones first. Logs the scalars of :func:`swav_loss`."""
        crops = batch["crops"]
        V, G, B = len(crops), self.global_crops, len(crops[0])
        if not 1 < V >= G > 0:
            raise ValueError(f"SwAV needs at least two crops, {G} of them global; got {V} crops")
        projected = precise(self.head(by_size(self.backbone.features, crops)))
        with torch.autocast(projected.device.type, enabled=False):
            z_VBD = F.normalize(projected, dim=1).unflatten(0, (V, B))
            s_VBK = self._scores(z_VBD)
            q_GBK = torch.stack([self._codes(g, s_VBK[g].detach()) for g in range(G)])
        if self.training and self.queues:
            self._seen.append(z_VBD[:G].detach())
        return swav_loss(s_VBK, q_GBK, self.temperature)

    def _scores(self, z: Tensor) -> Tensor:
        """Unit vectors [..., D] -> cosines with the prototypes [..., K]."""
        return precise(self.prototypes(z.to(self.prototypes.weight.dtype)))

    @torch.no_grad()
    def _codes(self, g: int, s_BK: Tensor) -> Tensor:
        """Codes [B, K] of the global crops ``g``, with the queue of such crops, of which each process takes a part."""
        if self._queued:
            earlier = self.queues[g].rows[rank() :: world_size()]  # pyright: ignore[reportIndexIssue]
            s_BK = torch.cat([self._scores(earlier), s_BK])  # pyright: ignore[reportArgumentType]
            return sinkhorn(s_BK, self.epsilon, self.iterations)[len(earlier) :]  # pyright: ignore[reportArgumentType]
        return sinkhorn(s_BK, self.epsilon, self.iterations)

    @torch.no_grad()
    def before_step(self, at: Progress) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        self._queued = at.fraction >= self.queue_start and any(queue.full for queue in self.queues)
        self._seen = []

    def before_update(self, at: Progress) -> None:
        if at.fraction < self.freeze:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        if at.fraction >= self.queue_start:
            for g, queue in enumerate(self.queues):
                for z_GBD in self._seen:
                    queue.push(z_GBD[g])  # pyright: ignore[reportCallIssue]
        self._seen = []
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of uniform codes and predictions it is log K."""
        return 0.0, math.log(self.prototypes.out_features)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projection head."""
        return self.backbone.features(images)


def swav_loss(s_VBK: Tensor, q_GBK: Tensor, temperature: float = 0.1) -> dict[str, Tensor]:
    """The loss (eq. 2) of the scores of V crops against the codes of the first G.

    Returns ``loss``, ``entropy`` (of the codes: 0 if each is one prototype, log K if uniform), ``kl`` (loss - entropy), in
    nats, and ``in_use``: how many prototypes are the nearest of a global crop in the batch of all processes, as a fraction of
    the most that there can be. Scalars, float32 or better; all but the loss detached.
    """
    s_VBK = precise(s_VBK)
    G, B, K = q_GBK.shape
    with torch.autocast(s_VBK.device.type, enabled=False):
        loss = across_crops(q_GBK, F.log_softmax(s_VBK / temperature, dim=-1))
        entropy = torch.special.entr(q_GBK).sum(-1).mean()
        nearest = F.one_hot(s_VBK[:G].detach().argmax(-1).flatten(), K).sum(0)
        in_use = (sum_over_processes(nearest) > 0).sum() / min(K, G * B * world_size())
    return {"loss": loss, "entropy": entropy, "kl": loss.detach() - entropy, "in_use": in_use}
