"""Normalizing flows of pictures: what NICE, RealNVP, Glow, MAF and planar flows have in common.

    z = f(x),     log p(x) = log p(z) + log |det df/dx|,     L = -log p(x)            x = (pixels + u) / 256, u uniform in [0, 1)
f is made of invertible layers (``parts/density/``); z is normal, or logistic. As pixels are whole numbers, noise makes them a density,
whose mean logarithm is a lower bound of that of the pixels' probabilities (Theis et al., 2016, arXiv:1511.01844, section 3.1). A flow
with couplings may learn noise for which the bound is tighter (``parts/density/dequantization.py``).
Shapes: B images, C channels, D values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import FromNoise, Latent, Likelihood
from sensorium.base.draw import Draw, Views
from sensorium.base.precision import precise
from sensorium.data.augment.images import flip as flipped
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.method import Method
from sensorium.parts.density.dequantization import Dequantization, LearnedNoise
from sensorium.parts.density.invertible import ActNorm, Invertible
from sensorium.parts.density.pixels import LEVELS, levels_of, middle, shown_levels
from sensorium.recipe.recipe import Settings

Base = Literal["normal", "logistic"]


class NormalizingFlow(Method, FromNoise, Likelihood, Latent):
    """The density of images [C, H, W] in 0..1 by ``layers``. base: the distribution of each value of z. noise: channels of the networks
    of learned noise, 0 for uniform noise."""

    width = 1 / LEVELS
    begun: Tensor

    def __init__(self, layers: Invertible, shape: Sequence[int], *, base: Base = "normal", noise: int = 0) -> None:
        super().__init__()
        if base not in get_args(Base):
            raise ValueError(f"base must be one of {', '.join(get_args(Base))}, got {base!r}")
        self.layers, self.base = layers, base
        self.shape, self.inputs = tuple(shape), math.prod(shape)
        self.noise = LearnedNoise(shape, noise) if noise else None
        self.bound = "learned noise" if noise else "uniform noise"
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))  # whether ActNorm has begun with data

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, C, H, W] in 0..1, with noise -> the loss, nats per image. Logs ``bits_per_dim`` of 8-bit values."""
        loss = -self.log_prob(batch["image"]).mean()
        return {"loss": loss, "bits_per_dim": loss.detach() / (self.inputs * math.log(2)) + math.log2(LEVELS)}

    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """The logarithm of the density [B] of images in 0..1, in nats; where noise is learned, its bound by the noise that the uniform noise
        of ``x`` becomes."""
        x, log_q = (x, 0.0) if self.noise is None else self.noise(x)
        z, log_det = self.layers(x)
        return self.base_log_prob(precise(z.flatten(1))) + precise(log_det) - log_q

    def base_log_prob(self, z: Tensor) -> Tensor:
        """[B, D] -> [B]."""
        if self.base == "normal":
            return -(z.square().sum(1) + z.shape[1] * math.log(2 * math.pi)) / 2
        return -(F.softplus(z) + F.softplus(-z)).sum(1)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in 0..1 -> z, of the shape that the layers give."""
        return self.layers(images)[0]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The inverse."""
        return self.layers.inverse(z)

    def sample(self, n: int, *, seed: int = 0, temperature: float = 1.0, start: Tensor | None = None) -> Tensor:
        """``n`` images [n, C, H, W], of z by ``temperature``: below 1 likelier and less varied (Glow, section 6). start: normal noise of
        the shape of z, which it is but for a logistic base: there z has the noise's quantiles."""
        z = self.noise_of(n, seed, start)
        if self.base == "logistic":
            z = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
        return torch.cat([self.decode(part) for part in (temperature * z).to(next(self.parameters())).split(256)])

    @property
    def start_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of z, which the layers give."""
        with torch.no_grad():
            return tuple(self.encode(torch.full((1, *self.shape), 0.5).to(next(self.parameters()))).shape[1:])

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, C, H, W] in 0..1, in the middle of each value."""
        return middle(levels_of(pixels, self.shape[0]))

    def to_pixels(self, samples: Tensor) -> Tensor:
        """Values in 0..1 -> uint8 [B, 3, H, W]."""
        return shown_levels(samples)


def dequantized_views(channels: int, *, flip: bool = False) -> Views:
    """``{"image" float32 [B, C, S, S]}`` in 0..1: pixels with uniform noise, of one channel gray."""

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        levels = levels_of(fields["image"], channels)
        noise = draw.rand(*levels.shape[1:]).to(levels.device)
        image = (levels + noise.clamp_(max=1 - 2**-15)) / LEVELS
        return {"image": flipped(image, draw) if flip else image}

    return views


def pick_channels(gray: bool | None, on: Situation, settings: Settings) -> int:
    """1 of gray pictures, else 3."""
    alike = len(set(on.mean)) == 1 and len(set(on.std)) == 1
    why = "the channels have one mean" if alike else "the channels differ"
    return 1 if settings.pick("gray", gray, alike, why) else 3


def noise_width(dequantization: Dequantization, on: Situation) -> int:
    """Channels of the networks of learned noise; 0 for uniform noise."""
    return 0 if dequantization == "uniform" else 8 if on.device == "cpu" else 32


def factors_of(height: int, width: int) -> tuple[int, ...]:
    """By which the sides of a picture can be divided, one after the other, the smallest first: 2, 2, 7 of 28."""
    common, found = math.gcd(height, width), []
    for factor in range(2, common + 1):
        while common % factor == 0:
            found.append(factor)
            common //= factor
    return tuple(found)


def scales_of(side: int) -> int:
    """Of a multi-scale flow: as often as ``side`` can be divided, to 4 pixels at least, from one to three times."""
    scales, left = 0, side
    for factor in factors_of(side, side)[:3]:
        left //= factor
        scales += left >= 4
    return max(1, scales)


@torch.no_grad()
def initialized(layers: Invertible, x: Tensor) -> None:
    """Each ActNorm of ``layers`` by the values that a batch ``x`` has where it stands."""

    def begin(layer: Any, given: Any) -> None:
        layer.initialize(given[0])

    handles = [one.register_forward_pre_hook(begin) for one in layers.modules() if isinstance(one, ActNorm)]
    try:
        layers(x)
    finally:
        for handle in handles:
            handle.remove()


def beginning_with(method: NormalizingFlow, views: Views) -> Callable[[Any, Any, Any], Any]:
    """A recipe's ``derive``, which leaves the rows as they are: ActNorm begins with the first of them, the same in all processes."""

    def derive(rows: Any, cache: Any, progress: bool) -> Any:
        if method.begun:
            return rows
        count = min(len(rows), FIRST)
        taken = rows.take(np.linspace(0, len(rows) - 1, count).round().astype(np.int64), ("image",))
        initialized(method.layers, views(taken, Draw.seeded(0, 0, count))["image"])
        method.begun.fill_(True)
        return rows

    return derive


FIRST = 256  # rows that ActNorm begins with
