"""SimCLR v2, its first step, pretraining: big self-supervised models are strong semi-supervised learners (Chen, Kornblith,
Swersky, Norouzi, Hinton, 2020, arXiv:2006.10029, section 2).

SimCLR (arXiv:2002.05709) with a deeper projection head g, whose first layer is kept as a part of the network: what is judged,
and fine-tuned with a few labels, is

    relu(BN(W1 f(x)))        in place of  f(x)

The loss is NT-Xent, over the views of all processes (``parts/learning/nt_xent.py``). With a ``memory`` (MoCo: He et al., 2019,
arXiv:1911.05722) the projections that a moving average of the network gave for earlier images are more negatives n_m:

    l_i = -log( exp(z_i . z_j(i) / tau) / (sum over k != i of exp(z_i . z_k / tau) + sum over m of exp(z_i . n_m / tau)) )
    memory network <- m (memory network) + (1 - m) network

Here one view of each image goes into the memory, which is used once it is full. State changes in hooks only, but for running
statistics of batch normalization; the memory network normalizes by its own batch.
Fine-tuning is ``supervised --start RUN``, and the third step, distillation with unlabeled images, ``self_training``.
Shapes: B images of this process, D features, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, HasBody, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.learning.nt_xent import nt_xent
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.queue import Queue


class Extended(nn.Module, HasBody, Encoder):
    """An Encoder ``body`` with the first ``layers`` of its projection head: [B, 3, H, W] -> [B, body.dim].

    As wide as the body's features (section 2), and without bias before batch normalization, as in the authors' code.
    """

    def __init__(self, body: nn.Module, layers: int = 1) -> None:
        super().__init__()
        require(body, Encoder, by="SimCLR v2", choices="a ViT or a ResNet")
        self.body: Any = body
        self.dim: int = self.body.dim
        self.image_size, self.trained_size = self.body.image_size, self.body.trained_size
        self.normalization = self.body.normalization
        wide = [(nn.Linear(self.dim, self.dim, bias=False), nn.BatchNorm1d(self.dim), nn.ReLU()) for _ in range(layers)]
        self.layers = nn.Sequential(*(part for layer in wide for part in layer))

    def features(self, images: Tensor) -> Tensor:
        return self.layers(self.body.features(images))

    def layers_for_decay(self) -> dict[str, int]:
        """Those of the body; then the head's, at the depth of the next."""
        inside: dict[str, int] = self.body.layers_for_decay()
        last = max(inside.values(), default=0) + 1
        found = {f"body.{name}": depth for name, depth in inside.items()}
        return found | {f"layers.{name}": last for name, _ in self.layers.named_parameters()}


class SimCLRv2(Method, HasBackbone, BoundsInformation, Encoder):
    """Contrastive learning of two views, with a deep head and a memory.

    backbone: an Encoder, :class:`Extended` by the layers of the head that are kept. head: its other layers, [B,
    backbone.dim] -> [B, P]. temperature: tau. memory: entries, 0 for none. momentum: m.
    """

    least_batch = 2

    def __init__(
        self,
        backbone: nn.Module,
        head: ProjectionHead,
        *,
        temperature: float = 0.1,
        memory: int = 0,
        momentum: float = 0.999,
    ):
        super().__init__()
        require(backbone, Encoder, by="SimCLR v2", choices="a ViT or a ResNet")
        if temperature <= 0:
            raise ValueError(f"temperature {temperature:g} must be above 0")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum:g} must be from 0 to 1")
        self.backbone: Any = backbone
        self.head, self.temperature, self.momentum = head, temperature, momentum
        self.dim: int = self.backbone.dim
        self.memory = Queue(memory, head.out_features) if memory else None
        online = nn.ModuleDict({"backbone": backbone, "head": head})
        self.memory_network = frozen_copy(online) if memory else None
        self._recalled = False
        self._seen: list[Tensor] = []  # what this step's micro-batches put into the memory
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]. Logs the scalars of ``nt_xent``."""
        x1, x2 = batch["views"]
        z1, z2 = self.head(self.features(torch.cat([x1, x2]))).chunk(2)
        if self.memory_network is not None and self.training:
            with torch.no_grad():
                network: Any = self.memory_network
                self._seen.append(F.normalize(precise(network["head"](network["backbone"].features(x2))), dim=1))
        negatives = self.memory.rows if self.memory is not None and self._recalled else None
        return nt_xent(z1, z2, self.temperature, negatives)

    def before_step(self, at: Progress) -> None:
        self._recalled = self.memory is not None and self.memory.full
        self._seen = []

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        update_biases(self.backbone)
        if self.memory is not None and self.memory_network is not None:
            for z in self._seen:
                self.memory.push(z)
            online = nn.ModuleDict({"backbone": self.backbone, "head": self.head})
            ema_(self.memory_network, online, self.momentum, buffers=False)
            copy_biases(self.memory_network, online)
        self._seen = []

    def train(self, mode: bool = True) -> SimCLRv2:
        super().train(mode)
        if self.memory_network is not None:
            teaching_(self.memory_network, mode)
        return self

    def backbones(self) -> tuple[Any, ...]:
        """Without the layers of the head that are kept, which are as new as the others."""
        memory: Any = self.memory_network
        networks = [self.backbone] if memory is None else [self.backbone, memory["backbone"]]
        return tuple(one.body if isinstance(one, Extended) else one for one in networks)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], after the layers of the head that are kept."""
        return self.backbone.features(images)
