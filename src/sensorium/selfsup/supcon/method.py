"""SupCon: supervised contrastive learning (Khosla et al., 2020, arXiv:2004.11362).

Views of images of the same class attract each other and repel all others. With z the L2-normalized projections of the
2N views of a batch, A(i) all views but i, and P(i) those of A(i) with i's label, its own other view among them (L_out,
eq. 2, as a mean over i):

    l_i = -1/|P(i)| sum over p in P(i) of  log( exp(z_i . z_p / tau) / sum over a in A(i) of exp(z_i . z_a / tau) )

An image without a label attracts only its own other view: for it the loss is the self-supervised one (eq. 1). It is kept
because eq. 1 needs no label, and because where few images have one, those without are most of what there is to learn from.
As in the authors' code both views go through the network as one batch. Shapes: B images of this process, N of all, D
features, P projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.method import ALL_EQUAL, Method, Progress
from sensorium.parts.gather import gather, rank
from sensorium.parts.moe.layer import update_biases
from sensorium.parts.similarity import view_cosines


class SupCon(Method, HasBackbone, Encoder):
    """Contrastive learning of classes.

    backbone: an Encoder. head: [B, backbone.dim] -> [B, P], unused after training. temperature: tau, above 0.
    """

    least_batch = 2
    signs = (ALL_EQUAL,)  # two classes need no more than one direction

    def __init__(self, backbone: nn.Module, head: nn.Module, *, temperature: float = 0.1):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        require(backbone, Encoder, by="SupCon", choices="a ViT or a ResNet")
        self.backbone, self.head, self.temperature = backbone, head, temperature
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]; batch["label"]: int64 [B], -1 where unknown.

        Logs ``contrast_top1``, the fraction of views whose nearest is a positive, and ``alignment``, the mean cosine of
        positives.
        """
        x1, x2 = batch["views"]
        z1, z2 = self.head(self.features(torch.cat([x1, x2]))).chunk(2)
        return _contrast(z1, z2, batch["label"], self.temperature)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projection head."""
        return self.backbone.features(images)


def supcon_loss(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """L_out between projections of two views [B, P] each, of images with ``labels`` int64 [B] (-1: unknown), against
    all processes' views. A scalar, float32 or better.

    Each process returns the mean over its own 2B views; the mean over processes is the loss of the global batch.
    """
    return _contrast(z1, z2, labels, temperature)["loss"]


def _contrast(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    cosines, own, _ = view_cosines(z1, z2)
    same = _same(labels).tile(2, 2).scatter(1, own[:, None], False)  # [2B, 2N]
    count = same.sum(1)
    with torch.autocast(z1.device.type, enabled=False):
        logits = (cosines / temperature).scatter(1, own[:, None], -torch.inf)
        log_p = logits.log_softmax(1)
        loss = -(log_p.masked_fill(~same, 0).sum(1) / count).mean()
    found = same.gather(1, logits.detach().argmax(1, keepdim=True)).to(loss.dtype).mean()
    alignment = (cosines.detach().masked_fill(~same, 0).sum(1) / count).mean()
    return {"loss": loss, "contrast_top1": found, "alignment": alignment}


def _same(labels: Tensor) -> Tensor:
    """int64 [B] -> bool [B, N]: whether two images have one class; one without a label has a class of its own."""
    i = torch.arange(len(labels), device=labels.device) + rank() * len(labels)
    classes = torch.where(labels >= 0, labels, -1 - i)
    return classes[:, None] == gather(classes)
