"""The KL autoencoder of latent diffusion: high-resolution image synthesis with latent diffusion models (Rombach et al.,
2021, arXiv:2112.10752, section 3.1).

An image is encoded as a small map of Gaussian variables, which a very small penalty keeps near a standard normal, and
decoded from a sample of it; a perceptual loss and a patch discriminator make few channels sufficient for realistic
images.
    mu, sigma = E(x),   z = mu + sigma e,   y = G(z),   e standard normal
    L_rec = mean |x - y| + w_p LPIPS(x, y)
    KL    = 1/2 sum (mu^2 + sigma^2 - 1 - log sigma^2), of an image
    generator      min L_rec + w_k KL / N + w_d lambda L_G(D(y))
    discriminator  min L_D(D(x), D(y))
lambda and the discriminator: VQGAN's (:mod:`sensorium.generative.adversarial`). It is the authors' loss, which is a sum
over the N = 3 H W values of an image, divided by N; they clamp their lambda, N times as large, to 1e4. Their log
variance of the values is 0 and is not trained.
After each step the scaling of latents becomes 1 / their standard deviation (appendix D.1), that of the samples z of
recent steps.
Shapes: B images, H x W pixels, Z latent channels, h x w positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Latent, LatentAutoencoder
from sensorium.generative.adversarial import AdversarialAutoencoder, Adversary
from sensorium.method import Progress
from sensorium.networks.kl_autoencoder import KLAutoencoder
from sensorium.parts.adversarial import LARGEST
from sensorium.parts.estimators import gaussian
from sensorium.parts.gather import sum_over_processes
from sensorium.parts.perceptual import Perceptual


class KLRegularized(AdversarialAutoencoder, LatentAutoencoder, Latent):
    """Trains a KL autoencoder with a discriminator.

    size: H, W of the images, multiples of the autoencoder's factor. discriminator: images -> logits. perceptual: two
    batches of images -> distances [B]; None for pixels only. perceptual_weight, kl_weight, adversarial_weight: w_p,
    w_k, w_d. start: fraction of the budget before the adversarial loss is added. adversary: the kind of L_G and L_D.
    memory: of the latents' moments, as a factor per step. clip: maximum norm of a phase's gradients, 0 for none.
    """

    moments: Tensor

    def __init__(
        self,
        autoencoder: KLAutoencoder,
        discriminator: nn.Module | None,
        size: tuple[int, int],
        *,
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-6,
        adversarial_weight: float = 0.5,
        start: float = 0.5,
        adversary: Adversary = "hinge",
        memory: float = 0.99,
        clip: float = 0.0,
    ) -> None:
        super().__init__(
            discriminator, perceptual=perceptual, perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight, start=start, adversary=adversary, clip=clip,
        )  # fmt: skip
        if not 0 <= memory < 1 or not 0 <= kl_weight < float("inf"):
            raise ValueError(f"memory {memory} must be in [0, 1), kl_weight {kl_weight} at least 0")
        self.autoencoder, self.size, self.grid = autoencoder, size, autoencoder.grid_of(size)
        self.kl_weight, self.memory = kl_weight, memory
        self.register_buffer("moments", torch.zeros(3))  # of recent z: their number, sum, and sum of squares
        # Of this step's forwards. Not a buffer, because wrappers broadcast buffers before each forward.
        self._seen: list[Tensor] = []

    def trained(self) -> Iterable[nn.Module]:
        return (self.autoencoder,)

    def generate(self, batch: Mapping[str, Any], judge: nn.Module) -> dict[str, Tensor]:
        """``image`` and ``noise`` [B, Z, h, w] -> the loss. Adds ``divergence``, the KL in nats per image, to what is
        logged."""
        x, values = batch["image"], batch["image"][0].numel()
        mean, log_variance = self.autoencoder.moments(x)
        z = gaussian(mean, log_variance / 2, batch["noise"])
        y, last = self.autoencoder.draw(z), self.autoencoder.decoder.conv_out.weight
        rec, fooling, logged = self.compared(x, y, judge, last, LARGEST / values)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean() / 2
        if self.training:
            self._seen.append(_moments(z.detach()))
        loss = rec + self.kl_weight * divergence / values + fooling
        return {"loss": loss, **logged, "divergence": divergence.detach()}

    def reconstructed(self, batch: Mapping[str, Any]) -> Tensor:
        mean, log_variance = self.autoencoder.moments(batch["image"])
        return self.autoencoder.draw(gaussian(mean, log_variance / 2, batch["noise"]))

    def before_step(self, at: Progress) -> None:
        super().before_step(at)
        self._seen = []

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Measure the scaling of latents, over all processes."""
        if not self._seen:
            return
        self.moments.mul_(self.memory).add_(sum_over_processes(torch.stack(self._seen).sum(0)))
        number, total, squares = self.moments
        variance = squares / number - (total / number).square()
        self.autoencoder.scaling.copy_(variance.clamp(1e-12, 1e12).rsqrt())
        self._seen = []

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> scaled means [B, Z, h, w]. Sizes other than ``size`` are supported."""
        return self.autoencoder.encode(images)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents [B, Z, h, w] -> images [B, 3, H, W] in -1..1."""
        return self.autoencoder.decode(z).clamp(-1, 1)


def _moments(z: Tensor) -> Tensor:
    """Number, sum, and sum of squares of all values [3]."""
    return torch.stack([torch.full_like(z[0, 0, 0, 0], z.numel()), z.sum(), z.square().sum()])
