"""The supervised baseline: cross-entropy on the available labels.

    L = mean over labeled images of  -sum_k q_k log p_k      p = softmax(W f(x) + b)
    q = 1 - eps on the label + eps / K everywhere             (label smoothing, Szegedy et al., 2016, arXiv:1512.00567)
Of two pictures that are mixed (see data/augment/mixing.py) L is w times that of one label and 1 - w times that of the other.

Of a trained backbone f all may be trained, or nothing but the head, or low-rank products (see parts/lowrank.py).

The mean is over the labeled images of all processes, so that one process equals N however the labels are distributed.
Shapes: B images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.method import Progress
from sensorium.parts.gather import sum_over_processes, world_size
from sensorium.parts.moe.layer import update_biases
from sensorium.selfsup.classifier import UNKNOWN, LinearClassifier


class Supervised(LinearClassifier):
    """Cross-entropy. backbone: an Encoder, of which the parameters are trained that require a gradient. classes: K.
    label_smoothing: eps in [0, 1)."""

    def __init__(self, backbone: nn.Module, classes: int, *, label_smoothing: float = 0.0):
        super().__init__(backbone, classes, "Supervised")
        self.label_smoothing = label_smoothing

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["image"]: [B, 3, H, W]; batch["label"]: int64 [B], -1 where unknown (no loss; all unknown: loss 0); of mixed
        images batch["other"], the second label, and batch["weight"], that of the first, [B].

        Logs ``top1``, the accuracy on the labeled images.
        """
        labels = batch["label"]
        logits = self.logits(batch["image"])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        known = labels != UNKNOWN
        # Each process divides by the mean number of labels per process, not by its own.
        count = (sum_over_processes(known.sum().to(logits.dtype)) / world_size()).clamp(min=1 / world_size())
        if "weight" in batch:
            weight = batch["weight"]
            loss = (weight * self._losses(logits, labels) + (1 - weight) * self._losses(logits, batch["other"])).sum()
            labels = torch.where(weight < 0.5, batch["other"], labels)
        else:
            loss = self._losses(logits, labels, "sum")
        right = (logits.detach().argmax(1) == labels) & known
        return {"loss": loss / count, "top1": right.sum() / count}

    def _losses(self, logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
        return F.cross_entropy(
            logits, labels, ignore_index=UNKNOWN, label_smoothing=self.label_smoothing, reduction=reduction
        )

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any and they were trained."""
        update_biases(self.backbone)

    def train(self, mode: bool = True) -> Supervised:
        """What is not trained keeps its statistics, and has no dropout."""
        super().train(mode)
        if not _trained(self.backbone):
            self.backbone.eval()
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not _trained(module):
                module.eval()
        return self


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
