"""Distributions of a picture's values given numbers that a decoder gives for them.

    bernoulli    of zeros and ones:  log p = x log sigma(y) + (1 - x) log sigma(-y)                                       1 number
    gaussian     of values in 0..1, a density:  normal of mean y and one deviation exp(s) of all                          1 number
    logistic     of 256 levels, a probability:  the area of a logistic of mean m and scale exp(s) between half a level below
                 and half a level above, to infinity at both ends (Kingma et al., 2016, arXiv:1606.04934, appendix C.2;
                 Salimans et al., 2017, arXiv:1701.05517, eq. 2, of one component)                                      2 numbers
Shapes: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise

LEVELS = 256


def binarise(values: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Intensities (uint8, or floats in 0..1) to float32 zeros and ones of the same shape.

    By a threshold of one half; or with ``uniform`` (random numbers in [0, 1), one per value) stochastically, with the
    intensity as the probability of a one.
    """
    bright = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    return (bright > (0.5 if uniform is None else uniform)).float()


def black_and_white(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> zeros and ones [B, 1, H, W], gray by threshold."""
    return binarise(pixels.float().mean(1, keepdim=True) / 255)


def shown(values: Tensor) -> Tensor:
    """Zeros and ones, or probabilities of a one [B, 1, H, W] -> uint8 [B, 3, H, W]."""
    return (values.float().clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def levels_of(pixels: Tensor, channels: int) -> Tensor:
    """uint8 [B, 3, H, W] -> the levels of 3 channels or of gray, whole numbers in 0..255, float32 [B, channels, H, W]."""
    return pixels.float().mean(1, keepdim=True).round() if channels == 1 else pixels.float()


def middle(levels: Tensor) -> Tensor:
    """Levels -> values in 0..1, in the middle of each."""
    return (levels + 0.5) / LEVELS


def shown_levels(values: Tensor) -> Tensor:
    """Values in 0..1 [B, 1 or 3, H, W] -> uint8 [B, 3, H, W]; the inverse of :func:`middle`."""
    levels = (values.float().nan_to_num(0.5) * LEVELS).floor().clamp(0, LEVELS - 1)
    return levels.to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


class PixelDistribution(nn.Module):
    """``numbers`` per value of an image; ``width`` of a value, in whose units ``log_prob`` is a density (1: it is a probability)."""

    numbers: int = 1
    width: float = 1.0
    binary: bool = False

    @abstractmethod
    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        """``given`` [B, numbers C, H, W] and images [B, C, H, W] -> [B] nats."""

    @abstractmethod
    def mean(self, given: Tensor) -> Tensor:
        """[B, numbers C, H, W] -> the mean of each value [B, C, H, W]."""


class BernoulliPixels(PixelDistribution):
    """Of zeros and ones; ``given`` are logits."""

    binary = True

    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        given = precise(given)
        return -F.binary_cross_entropy_with_logits(given, x.to(given.dtype), reduction="none").flatten(1).sum(1)

    def mean(self, given: Tensor) -> Tensor:
        return torch.sigmoid(given)


class GaussianPixels(PixelDistribution):
    """A density of values in 0..1, with one deviation for all, which is learned."""

    width = 1 / LEVELS

    def __init__(self, deviation: float = 0.1) -> None:
        super().__init__()
        self.log_deviation = nn.Parameter(torch.tensor(math.log(deviation)))

    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        far = ((x - precise(given)) * (-self.log_deviation).exp()).square() + math.log(2 * math.pi)
        return -(far / 2 + self.log_deviation).flatten(1).sum(1)

    def mean(self, given: Tensor) -> Tensor:
        return given


class LogisticPixels(PixelDistribution):
    """Of 256 levels, x in 0..1 at the middle of each."""

    numbers = 2

    def log_prob(self, given: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = precise(given).chunk(2, 1)
        inverse = (-log_scale.clamp(min=-7.0)).exp()
        low, high = ((x - mean + side / 2 / LEVELS) * inverse for side in (-1, 1))
        level = (x * LEVELS).floor()
        # log(sigma(high) - sigma(low)) without cancellation, of the side on which both are small
        a, b = (torch.where(low + high > 0, -high, low), torch.where(low + high > 0, -low, high))
        between = F.logsigmoid(b) + log1mexp(F.logsigmoid(b) - F.logsigmoid(a))
        each = torch.where(
            level <= 0, F.logsigmoid(high), torch.where(level >= LEVELS - 1, F.logsigmoid(-low), between)
        )
        return each.flatten(1).sum(1)

    def mean(self, given: Tensor) -> Tensor:
        return given.chunk(2, 1)[0].clamp(0, 1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) of x > 0."""
    x = x.clamp(min=1e-12)
    return torch.where(x < math.log(2), (-torch.expm1(-x)).log(), torch.log1p(-(-x).exp()))
