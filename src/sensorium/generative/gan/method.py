"""GAN: generative adversarial networks (Goodfellow et al., 2014, arXiv:1406.2661).

A generator makes images y = G(z) of noise, and a discriminator tells them from real ones:
    discriminator  min L_D(D(x), D(y)) + w penalty        generator  min L_G(D(y))
Losses and penalties are in ``parts/adversarial.py``: non-saturating, hinge (Lim & Ye, 2017) and Wasserstein ones; gradient penalty
(Gulrajani et al., 2017), R1 (Mescheder et al., 2018), spectral norm (Miyato et al., 2018). With few images both real and generated ones
are augmented (DiffAugment: Zhao et al., 2020). Classes: noise and their embedding, and a projection in the discriminator.
Shapes: B images, Z numbers of noise, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sensorium.abilities import ClassConditional, FromNoise
from sensorium.base.precision import precise
from sensorium.data.augment.differentiable import diff_augment
from sensorium.method import Method, Progress, Sign
from sensorium.networks.gan import Discriminator, Generator
from sensorium.parts import adversarial as against
from sensorium.parts.spectral import spectral_, spectral_step_

Phase = Literal["discriminator", "generator"]
Loss = Literal["non-saturating", "hinge", "wasserstein"]
Penalty = Literal["none", "gradient", "r1"]
LOSSES = {
    "non-saturating": (against.nonsaturating_generator, against.nonsaturating_discriminator),
    "hinge": (against.hinge_generator, against.hinge_discriminator),
    "wasserstein": (against.hinge_generator, against.wasserstein_discriminator),
}


class GAN(Method, ClassConditional, FromNoise):
    """noise: Z. weight: of the penalty. spectral: normalize the discriminator's layers. augment: DiffAugment. classes: K."""

    phases: ClassVar[tuple[str, ...]] = get_args(Phase)
    guided = False
    signs = (
        Sign("generator/variety", "generated images", "nearly equal for all noise", least=0.05),
        Sign("discriminator/told", "the discriminator's gradients", "it tells all images apart", most=0.999),
    )

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        shape: tuple[int, int, int],
        noise: int,
        *,
        loss: Loss = "non-saturating",
        penalty: Penalty = "none",
        weight: float = 1.0,
        spectral: bool = False,
        augment: bool = False,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES or penalty not in get_args(Penalty):
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, penalty one of {', '.join(get_args(Penalty))}")
        if weight < 0:
            raise ValueError(f"the penalty's weight must not be negative, got {weight:g}")
        self.generator, self.discriminator = generator, discriminator
        if spectral:
            spectral_(discriminator)
        self.shape, self.noise, self.classes, self.start_shape = shape, noise, classes, (noise,)
        self.fooling, self.telling = LOSSES[loss]
        self.penalty, self.weight, self.spectral, self.augment = penalty, weight, spectral, augment

    def forward(self, batch: Mapping[str, Any], phase: str = "generator") -> dict[str, Tensor]:
        """``image`` [B, C, H, W] in -1..1, ``noise`` [B, 2, Z], of each phase, ``uniform`` [B, 1 + 3 A] in 0..1 and, with classes,
        ``label`` int64 [B] (-1 unknown) -> the loss of a phase.

        The discriminator logs ``real`` and ``made``, its mean logits, ``told``, which part it tells rightly, and ``penalty``; the
        generator ``variety``, the deviation of its images over noise as a part of that of real ones.
        """
        if phase not in self.phases:
            raise ValueError(f"phase must be one of {', '.join(self.phases)}, got {phase!r}")
        return self._discriminate(batch) if phase == "discriminator" else self._generate(batch)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that the optimizer of a phase updates."""
        return (self.discriminator if phase == "discriminator" else self.generator).parameters()

    def before_step(self, at: Progress) -> None:
        if self.spectral:
            spectral_step_(self.discriminator)

    def _discriminate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        x, labels = batch["image"], self._labels(batch)
        with torch.no_grad():
            y = self.generator(batch["noise"][:, 0], labels)
        judge = lambda images: precise(self.discriminator(images, labels))  # noqa: E731
        real, made = self._augmented(x, batch, 0), self._augmented(y, batch, 1)
        told_real, told_made = judge(real), judge(made)
        penalty = x.new_zeros(())
        if self.penalty == "gradient":
            penalty = against.gradient_penalty(judge, real, made, batch["uniform"][:, 0])
        elif self.penalty == "r1":
            penalty = against.r1(judge, real)
        right = ((told_real > 0).float().mean() + (told_made < 0).float().mean()) / 2
        return {
            "loss": self.telling(told_real, told_made) + self.weight * penalty,
            "real": told_real.mean().detach(),
            "made": told_made.mean().detach(),
            "told": right,
            "penalty": penalty.detach(),
        }

    def _generate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        labels = self._labels(batch)
        y = self.generator(batch["noise"][:, 1], labels)
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        told = functional_call(self.discriminator, fixed, (self._augmented(y, batch, 2), labels))
        spread, real = (precise(images.detach()).std(0).mean() for images in (y, batch["image"]))
        return {"loss": self.fooling(precise(told)), "variety": spread / real.clamp_min(1e-6)}

    def _augmented(self, images: Tensor, batch: Mapping[str, Any], turn: int) -> Tensor:
        if not self.augment:
            return images
        return diff_augment(images, batch["uniform"][:, 1:].chunk(3, 1)[turn])

    def _labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Of real and generated images alike; images of an unknown class are a class of their own."""
        return torch.where(batch["label"] < 0, self.classes, batch["label"]) if self.classes else None

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Tensor | int | None = None,
        guidance: float = 1.0,
        start: Tensor | None = None,
    ) -> Tensor:
        """``n`` images [n, C, H, W] in -1..1, of the class ``condition``, by default of all in turn, of a ``start`` [n, Z] of the first.
        guidance: 1 only."""
        if guidance != 1:
            raise ValueError("a GAN does not support guidance: leave it at 1")
        if condition is None and self.classes:
            condition = torch.arange(n) % self.classes if start is None else 0
        like = next(self.parameters())
        z = self.noise_of(n, seed, start).to(like)
        labels = None if condition is None else torch.as_tensor(condition).expand(n).to(like.device)
        mode = self.generator.training
        self.generator.eval()
        try:
            parts = [self.generator(part, None if labels is None else labels[k : k + 256]) for k, part in _parts(z)]
        finally:
            self.generator.train(mode)
        return torch.cat(parts)


def _parts(z: Tensor) -> Iterable[tuple[int, Tensor]]:
    return ((k, z[k : k + 256]) for k in range(0, len(z), 256))
