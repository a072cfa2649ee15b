"""VAE: auto-encoding variational Bayes (Kingma & Welling, 2013, arXiv:1312.6114), with Gaussian or with categorical latents (Jang, Gu &
Poole, 2016, arXiv:1611.01144).

    L = -E_q(z|x) log p(x|z) + beta KL(q(z|x) || p(z))  >=  -log p(x) of beta 1                                       (eq. 3)
    Gaussian       z = mu + sigma e,   KL = -1/2 sum_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2)                        (appendix B)
    categorical    N variables of K classes with a uniform prior, KL = sum_n sum_k q_nk log(K q_nk); the gradient by a relaxed
                   choice (gumbel), or of real choices by REINFORCE or REBAR (``parts/estimators.py``)
    flows          z = f_K(... f_1(z_0; h) ...; h) of Gaussian z_0 and of a context h that the encoder gives, too (Rezende & Mohamed, 2015,
                   arXiv:1505.05770, eq. 15; IAF: Kingma et al., 2016, arXiv:1606.04934, eq. 5); the divergence is a sample's:
                   log q(z|x) - log p(z),     log q(z|x) = log q(z_0|x) - sum_k log |det df_k|
beta: Higgins et al., 2017. Free bits: of each latent, its mean KL over the batch counts as at least ``free`` nats (Kingma et al., 2016,
eq. 15); flows mix the latents, so that all are one group there, of ``free`` nats for each. Importance samples give a tighter bound of
log p(x) (IWAE: Burda et al., 2015, arXiv:1509.00519, eq. 8):
    log 1/S sum_s p(x|z_s) p(z_s) / q(z_s|x),     z_s of q(z|x)
Shapes: B images, C channels, Z latents or N x K, S samples, H numbers of a context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import FromNoise, Latent, Likelihood, Reconstructor
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.density.invertible import Chain
from sensorium.parts.density.pixels import PixelDistribution, black_and_white, levels_of, middle, shown, shown_levels
from sensorium.parts.estimators import gaussian, gumbel_max, gumbel_softmax, rebar, reinforce
from sensorium.parts.schedules import linear

Estimator = Literal["gumbel", "straight-through", "reinforce", "rebar"]
CHUNK = 64  # images whose samples are in memory at once


class VAE(Method, FromNoise, Likelihood, Reconstructor, Latent):
    """encoder: images -> mu, log sigma and, with a ``flow``, h [B, 2 Z + H], or logits [B, N K]. decoder: [B, Z] or [B, N K] -> what
    ``pixels`` needs. shape: of an image. classes: K, 0 for Gaussian latents. flow: from z_0 to z, given h; None for z_0. free: nats per
    latent. temperatures: of relaxed choices, at the begin and the end."""

    panels = ("original", "mean of the reconstruction")
    members = 64  # importance samples
    bound = "64 importance samples"
    temperature: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        pixels: PixelDistribution,
        shape: Sequence[int],
        latents: int,
        *,
        classes: int = 0,
        flow: Chain | None = None,
        estimator: Estimator = "gumbel",
        beta: float = 1.0,
        free: float = 0.0,
        temperatures: tuple[float, float] = (1.0, 0.5),
    ) -> None:
        super().__init__()
        if estimator not in get_args(Estimator):
            raise ValueError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
        if beta < 0 or free < 0 or min(temperatures) <= 0:
            raise ValueError(
                f"beta {beta:g} and free bits {free:g}: must not be negative; temperatures must be above 0"
            )
        if latents < 1 or classes == 1 or classes < 0:
            raise ValueError(
                f"{latents} latents of {classes} classes: at least one latent, and two classes, or 0 for Gaussian ones"
            )
        if flow is not None and classes:
            raise ValueError("flows change Gaussian latents, not categorical ones")
        self.encoder, self.decoder, self.pixels, self.flow = encoder, decoder, pixels, flow
        self.shape, self.latents, self.classes = tuple(shape), latents, classes
        self.start_shape = (latents, classes) if classes else (latents,)
        self.estimator, self.beta, self.free, self.temperatures = estimator, beta, free, temperatures
        self.inputs, self.width = math.prod(shape), pixels.width
        self.register_buffer("temperature", torch.tensor(temperatures[0]))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of an image's random numbers: normal [Z], or uniform [2, N, K], the second for REBAR."""
        return (2, self.latents, self.classes) if self.classes else (self.latents,)

    def before_step(self, at: Progress) -> None:
        self.temperature.fill_(linear(*self.temperatures, at.fraction))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, C, H, W] and ``noise`` [B, *noise_shape] -> the loss, nats per image. Logs ``bits_per_dim``, of the bound of
        beta 1, ``divergence``, the KL in nats, and, without flows, ``active``, how many latents have more than 0.01 of it."""
        x, noise = batch["image"], batch["noise"]
        numbers = precise(self.encoder(x))
        if self.flow is None:
            each = self._divergence(numbers)  # [B, Z]
            cost, surrogate = self._cost(x, numbers, noise)
        else:
            z, log_ratio = self._gaussian(numbers, noise)
            each, cost, surrogate = -log_ratio[:, None], self._nats(z, x), x.new_zeros(())
        divergence = each.mean(0)
        free = self.free * (self.latents // len(divergence))
        penalty = divergence.clamp(min=free).sum() if free else divergence.sum()
        loss = cost.mean() + self.beta * penalty + surrogate - surrogate.detach()
        nats = (cost.mean() + divergence.sum()).detach()
        found = {
            "loss": loss,
            "bits_per_dim": nats / (self.inputs * math.log(2)) - math.log2(self.width),
            "divergence": divergence.sum().detach(),
        }
        return found if self.flow is not None else found | {"active": (divergence.detach() > 0.01).sum().float()}

    def _cost(self, x: Tensor, numbers: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x|z) of a z of each image [B], and a surrogate [] whose gradient it lacks."""
        if not self.classes:
            mean, log_deviation = numbers.chunk(2, 1)
            return self._nats(gaussian(mean, log_deviation, noise), x), x.new_zeros(())
        logits, (uniform, again) = self._logits(numbers), noise.unbind(1)
        value = lambda z: self._nats(z.flatten(1), x)  # noqa: E731
        if self.estimator in ("gumbel", "straight-through"):
            hard = self.estimator == "straight-through"
            return value(gumbel_softmax(logits, uniform, float(self.temperature), hard=hard)), x.new_zeros(())
        cost = value(gumbel_max(logits, uniform))
        if self.estimator == "reinforce":
            return cost, reinforce(value, logits, uniform, baseline="leave-one-out" if len(x) > 1 else "none")
        return cost, rebar(value, logits, uniform, again, temperature=float(self.temperature))

    def _nats(self, z: Tensor, x: Tensor) -> Tensor:
        return -self.pixels.log_prob(self.decoder(z), x)

    def _logits(self, numbers: Tensor) -> Tensor:
        return numbers.view(len(numbers), self.latents, self.classes)

    def _divergence(self, numbers: Tensor) -> Tensor:
        """KL of each latent [B, Z or N]."""
        if self.classes:
            log_q = self._logits(numbers).log_softmax(-1)
            return (log_q.exp() * (log_q + math.log(self.classes))).sum(-1)
        mean, log_deviation = numbers.chunk(2, 1)
        return (mean.square() + (2 * log_deviation).exp() - 1) / 2 - log_deviation

    # --- abilities ---

    @torch.no_grad()
    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """A lower bound of log p(x) [B] in nats, by ``ensemble`` importance samples of seed 0."""
        if ensemble < 1:
            raise ValueError(f"ensemble must be at least 1, got {ensemble}")
        numbers, found = precise(self.encoder(x)), []
        generator = torch.Generator().manual_seed(0)
        for _ in range(ensemble):
            z, log_ratio = self._drawn(numbers, generator)
            found.append(log_ratio - self._nats(z, x))
        return torch.stack(found).logsumexp(0) - math.log(ensemble)

    def _drawn(self, numbers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """z of q, and log p(z) - log q(z) [B]."""
        if not self.classes:
            return self._gaussian(numbers, torch.randn(len(numbers), self.latents, generator=generator).to(numbers))
        logits = self._logits(numbers)
        choice = gumbel_max(logits, torch.rand(logits.shape, generator=generator).to(logits))
        log_q = (choice * logits.log_softmax(-1)).flatten(1).sum(1)
        return choice.flatten(1), -self.latents * math.log(self.classes) - log_q

    def _gaussian(self, numbers: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z of q, of Gaussian latents and their flow, and log p(z) - log q(z) [B]."""
        mean, log_deviation, h = numbers.tensor_split([self.latents, 2 * self.latents], 1)
        z = gaussian(mean, log_deviation, noise)
        if self.flow is None:
            return z, ((noise.square() - z.square()) / 2 + log_deviation).sum(1)
        z, log_det = self.flow(z, h)
        return z, ((noise.square() - z.square()) / 2 + log_deviation).sum(1) + log_det

    def encode(self, images: Tensor) -> Tensor:
        """The mean of q [B, Z], with flows where they take that of z_0; or the probabilities [B, N K]."""
        numbers = precise(self.encoder(images))
        if self.classes:
            return self._logits(numbers).softmax(-1).flatten(1)
        mean, _, h = numbers.tensor_split([self.latents, 2 * self.latents], 1)
        return mean if self.flow is None else self.flow(mean, h)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents -> the mean of each value [B, C, H, W]."""
        return self.pixels.mean(self.decoder(z))

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, temperature: float = 1.0, start: Tensor | None = None) -> Tensor:
        """``n`` images, the means of the values given z of the prior; Gaussian z are multiplied by ``temperature``. start: normal noise
        [n, Z], which z is, or [n, N, K], of which a variable's class is the largest: all are equally likely."""
        noise = self.noise_of(n, seed, start)
        z = F.one_hot(noise.argmax(-1), self.classes).flatten(1) if self.classes else temperature * noise
        return torch.cat([self.decode(part) for part in z.to(next(self.parameters())).split(256)])

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Side by side: image | mean of the reconstruction from the mean of q, [B, 3, H, 2 W]."""
        both = torch.cat([images, self.decode(self.encode(images)).to(images.dtype)], dim=-1)
        return both.expand(-1, 3, -1, -1)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> zeros and ones of a Bernoulli, else values in 0..1 in the middle of each level."""
        return black_and_white(pixels) if self.pixels.binary else middle(levels_of(pixels, self.shape[0]))

    def to_pixels(self, samples: Tensor) -> Tensor:
        """Values in 0..1 -> uint8 [B, 3, H, W]."""
        return shown(samples) if self.pixels.binary else shown_levels(samples)
