"""I-JEPA: self-supervised learning from images with a joint-embedding predictive architecture (Assran et al., 2023,
arXiv:2301.08243).

A context encoder sees a part of an image, and a predictor predicts from it what a target encoder, the moving average of
the context encoder, gives at blocks that the context lacks. Pixels are never predicted, and there are no second views.
    z = encoder(embed(x)[context])                                                  (section 3, "context")
    y = predictor(z, positions of block i),       i = 1 .. M                        ("prediction")
    s = LayerNorm(target_encoder(embed(x)))[block i], no gradient                   ("targets")
    L = mean over blocks, patches and channels of smooth_l1(y - s)
    target_encoder <- m target_encoder + (1 - m) encoder,   m linear from ``momentum`` to 1
The targets come of the whole image: they are masked at the target encoder's output, not at its input. The paper writes a
squared distance; the authors' code has the smooth L1 and the norm of the targets, without learned scale.
Shapes: B images, N patches, n of a context, M targets of m patches, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, TokenEncoder, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.ema import ema_, frozen_copy, teaching_
from sensorium.parts.moe.layer import copy_biases, update_biases
from sensorium.parts.patches import rows_at
from sensorium.parts.schedules import linear
from sensorium.parts.similarity import mean_cosine, spread
from sensorium.selfsup.i_jepa.predictor import Predictor

ZERO = 0.4247  # mean smooth L1 between normal targets and predictions of zero


class IJEPA(Method, HasBackbone, Encoder):
    """Prediction of a moving average's features of hidden blocks.

    backbone: a TokenEncoder; a class token takes part in its encoder, but is neither predicted from nor predicted.
    predictor: of its width and grid. momentum: initial m, from 0 (the target encoder is the context encoder) to 1.
    """

    def __init__(self, backbone: TokenEncoder, predictor: Predictor, *, momentum: float = 0.996) -> None:
        super().__init__()
        require(backbone, TokenEncoder, by="I-JEPA", choices="a ViT (vit-micro ... vit-huge)")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum}")
        self.dim, self.image_size = backbone.dim, backbone.image_size
        self.encoder: Any = backbone
        self.target_encoder: Any = frozen_copy(self.encoder)
        self.predictor = predictor
        self.momentum = momentum
        self.train()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W], ``context`` [B, n] and ``targets`` [B, M, m], indices of patches -> the loss.

        Logs ``alignment``, the mean cosine of predictions and targets, and ``output_spread`` of the target encoder's features
        (:func:`sensorium.parts.similarity.spread`): 0 if all images give the same.
        """
        images, blocks = batch["image"], batch["targets"]
        whole = self.normed_targets(images)
        wanted = rows_at(whole, blocks.flatten(1)).unflatten(1, blocks.shape[1:])
        predicted = precise(self.predict(images, batch["context"], blocks))
        loss = F.smooth_l1_loss(predicted, wanted)
        alignment = mean_cosine(predicted.detach(), wanted)
        return {"loss": loss, "alignment": alignment, "output_spread": spread(whole.mean(dim=1))}

    @torch.no_grad()
    def normed_targets(self, images: Tensor) -> Tensor:
        """What the target encoder gives for each patch of the whole images, normed over channels: [B, N, D], float32 or
        better."""
        encoded = precise(self.target_encoder.encode(self.target_encoder.embed(images))[:, 1:])
        return F.layer_norm(encoded, encoded.shape[-1:])

    def predict(self, images: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """[B, 3, H, W], patches of contexts [B, n] and of targets [B, M, m] -> predictions [B, M, m, D]."""
        seen = self.encoder.encode(self.encoder.embed(images, context))[:, 1:]
        return self.predictor(seen, context, targets, self.encoder.grid_of(images))

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Move the target encoder; update the biases that balance the encoder's experts, if it has any."""
        ema_(self.target_encoder, self.encoder, linear(self.momentum, 1.0, at.fraction), buffers=False)
        update_biases(self.encoder)
        copy_biases(self.target_encoder, self.encoder)

    def train(self, mode: bool = True) -> IJEPA:
        super().train(mode)
        teaching_(self.target_encoder, mode)
        return self

    @property
    def backbone(self) -> Any:
        """The target encoder, which the paper evaluates (appendix A.1)."""
        return self.target_encoder

    def backbones(self) -> tuple[Any, ...]:
        return self.encoder, self.target_encoder

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of predictions of zero and normal targets it is 0.42."""
        return 0.0, ZERO

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim] of the target encoder: the mean of its patches."""
        return self.target_encoder.features(images)
