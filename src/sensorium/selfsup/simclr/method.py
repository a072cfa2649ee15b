"""SimCLR: a simple framework for contrastive learning of visual representations (Chen et al., 2020, arXiv:2002.05709).

Contrastive learning: two random views of an image attract each other and repel the views of all other images. With z
the L2-normalized projections of the 2N views of a batch and j(i) the other view of i's image (NT-Xent, eq. 1):

    l_i = -log( exp(z_i . z_j(i) / tau) / sum over k != i of exp(z_i . z_k / tau) )        L = mean over i of l_i

As in the authors' code both views go through the network as one batch (their batch statistics are shared), and
the negatives are those of all processes. Shapes: B images of this process, N of all, D features, P projections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, require
from sensorium.method import Method, Progress
from sensorium.parts.gather import gather, rank
from sensorium.parts.moe.layer import update_biases


class SimCLR(Method, HasBackbone, BoundsInformation, Encoder):
    """Contrastive learning of two views.

    backbone: an Encoder. head: [B, backbone.dim] -> [B, P], see :class:`sensorium.parts.heads.ProjectionHead`; unused
    after training. temperature: tau.
    """

    least_batch = 2

    def __init__(self, backbone: nn.Module, head: nn.Module, *, temperature: float = 0.5):
        super().__init__()
        require(backbone, Encoder, by="SimCLR", choices="a ViT or a ResNet")
        self.backbone, self.head = backbone, head
        self.temperature = temperature
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W]. Logs the scalars of :func:`nt_xent`."""
        x1, x2 = batch["views"]
        z1, z2 = self.head(self.features(torch.cat([x1, x2]))).chunk(2)
        return _contrast(z1, z2, self.temperature)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projection head."""
        return self.backbone.features(images)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent between projections of two views [B, P] each, against all processes' views. Scalar float32.

    Each process returns the mean over its own 2B views; the mean over processes is the loss of the global batch.
    """
    return _contrast(z1, z2, temperature)["loss"]


def _contrast(z1: Tensor, z2: Tensor, temperature: float) -> dict[str, Tensor]:
    """The loss, ``contrast_top1`` (fraction of views whose nearest is their positive), ``alignment`` (mean cosine of
    positives), ``information`` (the bound of that of two views in nats, log K - loss for K = 2N - 1 candidates) and its
    ``ceiling``, log K."""
    B = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z_2BP = F.normalize(torch.stack([z1, z2]).to(torch.promote_types(z1.dtype, torch.float32)), dim=-1)
        k_2NP = gather(z_2BP.transpose(0, 1)).transpose(0, 1)
        N = k_2NP.shape[1]
        logits = z_2BP.flatten(0, 1) @ k_2NP.flatten(0, 1).T / temperature  # [2B, 2N]

        i = torch.arange(B, device=z1.device) + rank() * B
        self_, positive = torch.cat([i, i + N]), torch.cat([i + N, i])
        logits = logits.scatter(1, self_[:, None], -torch.inf)
        loss = F.cross_entropy(logits, positive)

        found = (logits.detach().argmax(1) == positive).to(loss.dtype).mean()
        alignment = (z_2BP[0] * z_2BP[1]).detach().sum(-1).mean()
        ceiling = loss.new_full((), math.log(2 * N - 1))
        information = ceiling - loss.detach()
    return {
        "loss": loss, "contrast_top1": found, "alignment": alignment, "information": information, "ceiling": ceiling
    }  # fmt: skip
