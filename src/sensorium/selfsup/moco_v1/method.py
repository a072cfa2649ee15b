"""MoCo: momentum contrast for unsupervised visual representation learning (He et al., 2019, arXiv:1911.05722).

Contrastive learning as a look-up in a dictionary: the query, one view of an image, must find its key, the other view,
among the keys of earlier batches, which wait in a queue. The dictionary is so as large as the queue whatever the batch,
and consistent, because a slowly moving average of the query encoder makes its keys. With unit vectors q and k:

    L = mean over q of  -log( exp(q . k_+ / tau) / (exp(q . k_+ / tau) + sum over k in queue of exp(q . k / tau)) )   (eq. 1)
    key   <- m key + (1 - m) query                                                                                   (eq. 2)
    queue <- the newest K keys

MoCo v2 (Chen et al., 2020, arXiv:2003.04297) is the same method with another head, augmentation and schedule. As in the
authors' code the queue starts with random unit vectors, which are easy negatives until keys have replaced them.

**Shuffled batch normalization** (section 3.3). The positive key is the only one in the dictionary that was computed with
this batch: if its statistics are those of the queries' images, they tell it from the others. So the authors normalize
each GPU's queries and keys apart, and exchange the keys' images between GPUs. Here the batch of all processes is
normalized in G groups, which cross: image i is in group i mod G of the queries and (i div G) mod G of the keys, so that
the images of a key's group are 1/G of them in the group of its query. Batches are drawn in random order, which is why
the places need not be. Groups are of all processes, so that one process equals N.

Shapes: B images of this process, D features, P projections, K keys in the queue, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, require
from sensorium.method import Method, Progress
from sensorium.parts.batchnorm import in_groups
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.gather import rank
from sensorium.parts.learning.info_nce import info_nce
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.queue import Queue


class MoCo(Method, HasBackbone, BoundsInformation, Encoder):
    """Momentum contrast, v1 and v2.

    backbone: an Encoder. head: [B, backbone.dim] -> [B, projection], one linear layer in v1, two with a ReLU between
    them in v2; unused after training. queue: K. temperature: tau. momentum: m.
    Raises ValueError if the head does not give ``projection`` numbers, or a number is out of its range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        projection: int = 128,
        queue: int = 65_536,
        temperature: float = 0.07,
        momentum: float = 0.999,
        groups: int = 8,
    ):
        super().__init__()
        require(backbone, Encoder, by="MoCo", choices="a ViT or a ResNet")
        if not 0 <= momentum <= 1:
            raise ValueError(f"MoCo: momentum {momentum} is not between 0 and 1")
        if temperature <= 0:
            raise ValueError(f"MoCo: temperature {temperature} is not above 0")
        if groups < 1:
            raise ValueError(f"MoCo: groups {groups} is less than 1")
        self.query = nn.ModuleDict({"backbone": backbone, "head": head})
        self.key = frozen_copy(self.query)
        self.queue = Queue(queue, projection)
        self.temperature, self.momentum = temperature, momentum
        self.groups = groups if any(isinstance(part, _BatchNorm) for part in self.query.modules()) else 1
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]
        # The keys of this step's micro-batches. Not a buffer, because wrappers broadcast buffers from the first process.
        self._keys: list[Tensor] = []
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W], the queries' and the keys'. Logs the scalars of :func:`info_nce`."""
        x_q, x_k = batch["views"]
        G = self.groups if self.training and len(x_q) >= self.groups**2 else 1
        i = torch.arange(len(x_q), device=x_q.device) + rank() * len(x_q)
        q_BP = _unit(_project(self.query, x_q, i % G, G))
        with torch.no_grad():
            k_BP = _unit(_project(self.key, x_k, i // G % G, G))
        if self.training:
            self._keys.append(k_BP)
        return info_nce(q_BP, k_BP, self.queue.rows, self.temperature)

    def before_step(self, at: Progress) -> None:
        self._keys = []

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        ema_(self.key, self.query, self.momentum, buffers=False)
        update_biases(self.query)
        copy_biases(self.key, self.query)
        if self._keys:
            self.queue.push(torch.cat(self._keys))
            self._keys = []

    def train(self, mode: bool = True) -> MoCo:
        super().train(mode)
        teaching_(self.key, mode)
        return self

    @property
    def backbone(self) -> Any:
        """The query encoder's, which the authors' linear probe evaluates."""
        return self.query["backbone"]

    def backbones(self) -> tuple[Any, ...]:
        return self.query["backbone"], self.key["backbone"]

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the query encoder, before its head."""
        return self.backbone.features(images)


def _project(network: nn.ModuleDict, images: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """[B, 3, H, W] -> [B, P], the images of each group normalized apart."""
    backbone, head = network["backbone"], network["head"]
    if groups == 1:
        return head(backbone.features(images))  # pyright: ignore[reportCallIssue]
    order = group_B.argsort(stable=True)
    with in_groups(network, torch.bincount(group_B, minlength=groups).tolist()):
        return head(backbone.features(images[order]))[order.argsort()]  # pyright: ignore[reportCallIssue]


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
