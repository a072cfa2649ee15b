"""CLIP: learning transferable visual models from natural language supervision (Radford et al., 2021, arXiv:2103.00020).

Contrastive learning: an image and its caption should be each other's best match among all of a batch. The two towers'
features are projected linearly to one space (figure 3 of the paper):

    I = normalize(W_i f_i(image))     T = normalize(W_t f_t(text))     s = exp(logit_scale)
    L = 1/2 ( mean_i -log softmax_j(s I_i . T_j)[i]  +  mean_i -log softmax_j(s T_i . I_j)[i] )

The temperature 1 / s is learned, as its logarithm; s is clipped to at most 100 (section 2.5), in a hook after the step.
Each process scores its own B rows against the N of all, so the scores take B N values and no process ever holds N^2;
with ``chunk`` they are computed that many rows at a time, and again in the backward pass: chunk N values.
Shapes: B pairs of this process, N of all, T tokens, D features of the image tower, E of the common space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, HasTextTower, ImageText, TextEncoder, require
from sensorium.method import Method, Progress
from sensorium.parts.gather import gather, rank, world_size
from sensorium.parts.moe.layer import update_biases


class CLIP(Method, HasBackbone, HasTextTower, BoundsInformation, Encoder, ImageText):
    """Two towers with a common embedding space.

    image: an Encoder. text: a TextEncoder, see :class:`sensorium.networks.text.TextTower`. embed_dim: E. temperature:
    initial value. max_scale: maximum s. chunk: rows of scores at a time; None computes them all at once. ``resample``:
    PIL's resampling filter for the images.
    """

    resample: int = 3  # bicubic, as the authors do
    least_batch = 2

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        embed_dim: int,
        *,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        require(image, Encoder, by="CLIP", choices="a CLIPVision, a ViT or a ResNet")
        require(text, TextEncoder, by="CLIP", choices="a TextTower for the texts")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.backbone, self.text = image, text
        self.dim: int = image.dim  # pyright: ignore[reportAttributeAccessIssue]
        self.context: int = text.context  # pyright: ignore[reportAttributeAccessIssue]
        self.image_size = image.image_size  # pyright: ignore[reportAttributeAccessIssue]
        self.embed_dim, self.max_scale, self.chunk = embed_dim, max_scale, chunk
        self.image_projection = nn.Linear(self.dim, embed_dim, bias=False)
        self.text_projection = nn.Linear(text.dim, embed_dim, bias=False)  # pyright: ignore[reportArgumentType]
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W] and ``tokens`` int64 [B, T], paired by row -> the loss.

        Logs the ``temperature``, the ``accuracy`` (the fraction of images and texts whose best match is their own), the
        ``information`` (log N - loss) and its ``ceiling``, log N, for N pairs of all processes.
        """
        images, texts = self.embed_image(batch["image"]), self.embed_text(batch["tokens"])
        loss, accuracy = contrast(images, texts, self.logit_scale.exp(), chunk=self.chunk)
        ceiling = loss.new_full((), math.log(len(images) * world_size()))
        told = {"temperature": (-self.logit_scale.detach()).exp(), "accuracy": accuracy}
        return {"loss": loss, **told, "information": ceiling - loss.detach(), "ceiling": ceiling}

    def embed_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E] of unit length, float32."""
        return _unit(self.image_projection(self.features(images)))

    def embed_text(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, E] of unit length, float32."""
        return _unit(self.text_projection(self.text.features(tokens)))  # pyright: ignore[reportCallIssue]

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Embeddings [B, E] and [M, E] -> s I . T, [B, M]."""
        return self.logit_scale.exp() * images @ texts.T

    def similarity_scale(self) -> float:
        """s."""
        return float(self.logit_scale.detach().exp())

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the image tower's features, before the projection."""
        return self.backbone.features(images)

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        self.logit_scale.clamp_(max=math.log(self.max_scale))
        update_biases(self)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """(loss, accuracy) of pairs of unit vectors [B, E] each, against those of all processes; float32 scalars.

    Each process returns the mean over its own B pairs; the mean over processes is the loss of the global batch.
    """
    if images.shape != texts.shape:
        raise ValueError(f"images {list(images.shape)} and texts {list(texts.shape)} are not pairs")
    own = torch.arange(len(images), device=images.device) + rank() * len(images)
    with torch.autocast(images.device.type, enabled=False):
        ways = [
            _one_way(queries, gather(keys), scale, own, chunk) for queries, keys in ((images, texts), (texts, images))
        ]
    (loss_i, right_i), (loss_t, right_t) = ways
    return (loss_i + loss_t) / 2, (right_i + right_t) / 2


def _one_way(queries: Tensor, keys: Tensor, scale: Tensor, own: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
    """Queries [B, E], whose right keys [N, E] are at ``own`` [B] -> (cross-entropy, fraction found)."""

    def scored(rows: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        logits = scale * rows @ keys.T
        found = (logits.detach().argmax(1) == truth).to(logits.dtype)
        return F.cross_entropy(logits, truth, reduction="sum"), found.sum()

    if chunk is None:
        loss, right = scored(queries, own)
        return loss / len(queries), right / len(queries)
    parts = [
        checkpoint(scored, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(queries.split(chunk), own.split(chunk), strict=True)
    ]
    loss, right = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    return loss / len(queries), right / len(queries)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
