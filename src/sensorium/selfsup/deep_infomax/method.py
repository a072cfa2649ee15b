"""Deep InfoMax: learning deep representations by mutual information estimation and maximization (Hjelm et al., 2018,
arXiv:1808.06670).

An encoder maximizes a bound of the mutual information of its output y for a picture and the picture's own feature map M,
as a whole or, better, of y and each place of the map: y is then what all places have in common. Critics T (``critics.py``)
tell y with its own map from y with the maps of other pictures; I is one of the bounds of
:mod:`sensorium.parts.learning.information`: Donsker-Varadhan, Jensen-Shannon (eq. 4) or InfoNCE (eq. 5).

    local    I(M_l; y), mean over the L places of the map                                                  (eq. 6)
    global   I(M; y)
    prior    min over the encoder, max over D:  E_v log D(v) + E_x log(1 - D(s(y))),   v uniform in [0, 1]^D   (eq. 7)
    loss     -alpha global - beta local + gamma prior                                                      (eq. 8)

The encoder's side of the prior is non-saturating, -log D(s(y)), and s the logistic function, both as in the authors' code.
Features are those before y, a linear map of them (the paper's "fc", which it finds better than y). The authors' InfoNCE
gives a picture's own places, among the negatives, the score -10; here they are left out.
Shapes: B pictures of this process, N of all, C channels, L = h w places, D of y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, MapEncoder, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts import adversarial as against
from sensorium.parts.learning import information
from sensorium.parts.moe.layer import update_biases
from sensorium.selfsup.deep_infomax.critics import DotGlobal

Bound = Literal["infonce", "jsd", "dv"]
PHASES = ("encoder", "discriminator")
BOUNDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "infonce": information.infonce,
    "jsd": information.jsd,
    "dv": information.donsker_varadhan,
}


class DeepInfoMax(Method, HasBackbone, BoundsInformation, Encoder):
    """An encoder, its critics and a discriminator.

    backbone: a MapEncoder. outputs: D. local: a critic of places, see ``critics.py``. whole: one of whole maps; None for
    alpha 0. discriminator: [B, D] -> logits [B, 1]; None for gamma 0; with one there are two phases. level: which map of the
    backbone. bound: the kind of I. beta: the weight of the local objective.
    """

    least_batch = 2

    def __init__(
        self,
        backbone: nn.Module,
        outputs: int,
        local: nn.Module,
        *,
        whole: DotGlobal | None = None,
        discriminator: nn.Module | None = None,
        level: int = -1,
        bound: Bound = "infonce",
        alpha: float = 0.0,
        beta: float = 1.0,
        gamma: float = 0.0,
    ) -> None:
        super().__init__()
        require(backbone, MapEncoder, by="Deep InfoMax", choices="a ResNet, a ConvNeXt or a ViT")
        if bound not in get_args(Bound):
            raise ValueError(f"bound must be one of {', '.join(get_args(Bound))}, got {bound!r}")
        if min(alpha, beta, gamma) < 0 or not alpha + beta > 0:
            raise ValueError(
                f"alpha {alpha}, beta {beta} and gamma {gamma} must not be negative, nor both first ones 0"
            )
        if (whole is None) != (alpha == 0) or (discriminator is None) != (gamma == 0):
            raise ValueError("a critic of whole maps belongs to alpha above 0, a discriminator to gamma above 0")
        self.backbone: Any = backbone
        self.dim: int = self.backbone.dim
        self.output = nn.Linear(self.dim, outputs)
        self.local, self.whole, self.discriminator = local, whole, discriminator
        self.level, self.bound = level, BOUNDS[bound]
        self.limited = bound == "infonce"
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        if discriminator is not None:
            self.phases = PHASES

    def forward(self, batch: Mapping[str, Any], phase: str = PHASES[0]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W], with a discriminator also ``prior`` uniform in 0..1 [B, D] -> the loss of a phase.

        The encoder logs the values of its bounds, ``local``, ``global`` and ``prior`` (-log D(s(y))), as far as it has them;
        ``found`` (how often a place scores its own picture above another one's); ``information`` of the local objective
        (with "jsd" Donsker and Varadhan's value of the same critic) and, of InfoNCE, the ``ceiling``. The discriminator logs
        ``real`` and ``encoded``, its mean logits.
        """
        if phase == PHASES[1]:
            return self._discriminate(batch)
        features, maps = self.backbone.features_and_maps(batch["image"])
        y, found = self.output(features), maps[self.level]
        logs: dict[str, Tensor] = {}
        loss = features.new_zeros((), dtype=torch.promote_types(features.dtype, torch.float32))
        if self.alpha and self.whole is not None:
            scores = self.whole(y, found)
            logs["global"] = self.bound(*scores)
            loss = loss - self.alpha * logs["global"]
            logs |= {} if self.beta else self._bound_of(*scores)
        if self.beta:
            scores = self.local(y, found)
            logs["local"] = self.bound(*scores)
            loss = loss - self.beta * logs["local"]
            logs |= self._bound_of(*scores)
        if self.discriminator is not None:
            fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
            made = precise(functional_call(self.discriminator, fixed, (y.sigmoid(),)))
            logs["prior"] = against.nonsaturating_generator(made)
            loss = loss + self.gamma * logs["prior"]
        return {"loss": loss} | {name: value.detach() for name, value in logs.items()}

    def _bound_of(self, joint: Tensor, marginal: Tensor) -> dict[str, Tensor]:
        joint, marginal = joint.detach(), marginal.detach()
        right = (joint[:, None] > marginal).to(joint.dtype).mean()
        if not self.limited:
            return {"found": right, "information": information.donsker_varadhan(joint, marginal)}
        most = joint.new_full((), information.ceiling(marginal))
        return {"found": right, "information": information.infonce(joint, marginal), "ceiling": most}

    def _discriminate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.discriminator is None:
            raise ValueError("this Deep InfoMax has no discriminator, which gamma above 0 needs")
        with torch.no_grad():
            y = self.output(self.backbone.features(batch["image"])).sigmoid()
        real, made = precise(self.discriminator(batch["prior"].to(y.dtype))), precise(self.discriminator(y))
        loss = against.nonsaturating_discriminator(real, made)
        return {"loss": loss, "real": real.detach().mean(), "encoded": made.detach().mean()}

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that the optimizer of a phase updates."""
        judged = set() if self.discriminator is None else {id(p) for p in self.discriminator.parameters()}
        return (p for p in self.parameters() if (id(p) in judged) == (phase == PHASES[1]))

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of a local InfoNCE alone: all of the bound, and none."""
        if not self.limited or self.alpha or self.gamma or "ceiling" not in scalars:
            return None
        return -self.beta * scalars["ceiling"], 0.0

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim], before y."""
        return self.backbone.features(images)


def discriminator(outputs: int) -> nn.Sequential:
    """Of the prior, as the authors': two layers of 1,000 and 200 ReLUs, [B, D] -> [B, 1]."""
    return nn.Sequential(
        nn.Linear(outputs, 1000), nn.ReLU(), nn.Linear(1000, 200), nn.ReLU(), nn.Linear(200, 1)
    )  # fmt: skip
