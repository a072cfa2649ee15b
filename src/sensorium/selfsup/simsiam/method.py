"""SimSiam: exploring simple Siamese representation learning (Chen & He, 2020, arXiv:2011.10566).

A predictor h predicts from one view of an image the projection of another by the same network. Without negatives and
without a moving average, only that no gradient flows into the predicted side (stopgrad) keeps the outputs from
collapsing. With z_i = f(x_i), encoder and projector, and p_i = h(z_i) (eq. 1 and 4):

    D(p, z) = -cos(p, z)        L = 1/2 D(p_1, stopgrad(z_2)) + 1/2 D(p_2, stopgrad(z_1))

As in the authors' code each view passes through the network as a batch of its own. Shapes: B images, D features, P
projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, require
from sensorium.method import ONE_DIRECTION, Method, Progress, Sign
from sensorium.parts.moe.layer import update_biases
from sensorium.parts.similarity import mean_cosine, spread


class SimSiam(Method, HasBackbone, Encoder):
    """Prediction of one's own projection of another view.

    backbone: an Encoder. projector: [B, backbone.dim] -> [B, P], whose last normalization has no scale and shift.
    predictor: [B, P] -> [B, P], with a narrow hidden layer. See :func:`sensorium.parts.heads.mlp_head`.
    """

    least_batch = 2
    signs = (Sign("output_spread", "outputs", "nearly equal for all images", least=0.05), ONE_DIRECTION)

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module):
        super().__init__()
        require(backbone, Encoder, by="SimSiam", choices="a ViT or a ResNet")
        self.backbone, self.projector, self.predictor = backbone, projector, predictor
        self.dim: int = backbone.dim  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """batch["views"]: two of [B, 3, H, W].

        Logs ``alignment``, the mean cosine of the projections of both views, and ``output_spread`` of the first (the
        paper's figure 2, middle, times sqrt(P)): 0 if all images give the same.
        """
        z1, z2 = (self.projector(self.features(x)) for x in batch["views"])
        loss = simsiam_loss(self.predictor(z1), self.predictor(z2), z1, z2)
        return {"loss": loss, "alignment": mean_cosine(z1.detach(), z2.detach()), "output_spread": spread(z1)}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of unrelated directions the cosine is 0."""
        return -1.0, 0.0

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before the projector."""
        return self.backbone.features(images)


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """The loss between predictions p and projections z of two views, [B, P] each, from -1 to 1.

    A scalar, float32 or better; z gets no gradient.
    """
    return -(mean_cosine(p1, z2.detach()) + mean_cosine(p2, z1.detach())) / 2
