"""Paths from data to noise, and what a network may predict: one table for DDPM, score matching, EDM and flow matching.

    x_t = a x + s n                         n normal, a = a(t), s = s(t), t from 0 (data) to 1 (noise)
    path        a(t)                        s(t)
    linear      prod_k (1 - beta_k)^1/2     (1 - a^2)^1/2      DDPM: 1,000 betas from 1e-4 to 0.02 (Ho et al., 2020, arXiv:2006.11239, 4)
    scaled      as linear, of betas whose roots are linear from 0.00085 to 0.012 squared    (Rombach et al., 2021, arXiv:2112.10752)
    cosine      cos(pi/2 (t + c)/(1 + c))   (1 - a^2)^1/2      c = 0.008, scaled so that a(0) = 1 (Nichol & Dhariwal, 2021, 2102.09672)
    vp          exp(-(19.9 t^2/4 + t/20))   (1 - a^2)^1/2      the limit of "linear" (Song et al., 2020, arXiv:2011.13456, eq. 33)
    subvp       as vp                       1 - a^2            (eq. 29, 35)
    ve          1                           0.01 (50/0.01)^t   NCSN's geometric scales (eq. 31)
    flow        1 - t                       t                  rectified flow, flow matching (Lipman et al., 2022, arXiv:2210.02747)
As all are Gaussian, the best guess of each of these gives all others:
    prediction  target                      x of it
    x           x                           it
    noise       n                           (x_t - s n) / a
    v           a n - s x                   (a x_t - s v) / (a^2 + s^2)            (Salimans & Ho, 2022, arXiv:2202.00512, appendix D)
    velocity    n - x                       (x_t - s u) / (a + s)                  of the flow path dx_t/dt
    score       -n / s                      (x_t + s^2 score) / a                  = grad log p(x_t)                     (Vincent, 2011)
The ratio sigma = s / a is EDM's noise level (Karras et al., 2022, arXiv:2206.00364): in x_t / a = x + sigma n all paths are one and
differ by their times alone, so that a sampler needs the denoiser x(x + sigma n, sigma) and a list of sigmas.
Shapes: B samples; t, a, s [B].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Name = Literal["linear", "scaled", "cosine", "vp", "subvp", "ve", "flow"]
Prediction = Literal["x", "noise", "v", "velocity", "score"]
DISCRETE = ("linear", "scaled", "cosine")
STEPS = 1000  # of the discrete paths
COSINE = 0.008


class Path(NamedTuple):
    """``scale`` and ``noise``: t [...] -> a and s. ``time``: sigma [...] -> the t that has it. float64 throughout."""

    scale: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]

    def sigma(self, t: Tensor) -> Tensor:
        """s / a."""
        t = t.double()
        return self.noise(t) / self.scale(t)


def path_of(name: Name) -> Path:
    """A path by name. Raises ValueError for another one."""
    if name not in get_args(Name):
        raise ValueError(f"path must be one of {', '.join(get_args(Name))}, got {name!r}")
    return _PATHS[name]()


def spherical(scale: Callable[[Tensor], Tensor], time: Callable[[Tensor], Tensor]) -> Path:
    """A path of constant variance, a^2 + s^2 = 1."""
    return Path(scale, lambda t: (1 - scale(t).square()).clamp_min(0).sqrt(), time)


def betas_of(count: int = STEPS, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's: float64 [count]."""
    return torch.linspace(first, last, count, dtype=torch.float64)


def scaled_betas_of(count: int = STEPS, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Latent diffusion's: float64 [count]."""
    return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64).square()


def products_of(name: Name, count: int = STEPS) -> Tensor:
    """a^2 of the steps 1 .. count of a discrete path, float64 [count]; "cosine" with betas of at most 0.999."""
    if name in ("linear", "scaled"):
        return (1 - (betas_of if name == "linear" else scaled_betas_of)(count)).cumprod(0)
    t = torch.arange(count + 1, dtype=torch.float64) / count
    whole = ((t + COSINE) / (1 + COSINE) * math.pi / 2).cos().square()
    return (1 - (1 - whole[1:] / whole[:-1]).clamp(max=0.999)).cumprod(0)


def betas_named(name: Name) -> Tensor:
    """Those of a discrete path, float64 [1,000], on the CPU."""
    with torch.device("cpu"):  # also where a method is built without memory, on the device "meta"
        products = products_of(name)
        return 1 - products / torch.cat([products.new_ones(1), products[:-1]])


def discrete(products: Tensor) -> Path:
    """That of a^2 of the steps 1 .. 1,000, float64. Between the steps log sigma is linear in t; step k is at t = k / 1,000, and 0 is as
    far before 1 as 2 is after it."""
    log_sigma = ((1 - products) / products).log() / 2
    log_sigma = torch.cat([(2 * log_sigma[0] - log_sigma[1])[None], log_sigma])
    at = torch.arange(len(products) + 1, dtype=torch.float64) / len(products)

    def scale(t: Tensor) -> Tensor:
        return (1 + (2 * _linear(t, at, log_sigma)).exp()).rsqrt()

    return spherical(scale, lambda sigma: _linear(sigma.double().log(), log_sigma, at))


def _vp() -> Path:
    low, high = 0.1, 20.0

    def time(sigma: Tensor) -> Tensor:
        """t^2 (high - low) / 4 + t low / 2 = log(1 + sigma^2) / 2."""
        height = torch.log1p(sigma.double().square()) / 2
        return 2 * height / (low / 2 + (low**2 / 4 + (high - low) * height).sqrt())

    return spherical(lambda t: (-(t.double().square() * (high - low) / 4 + t.double() * low / 2)).exp(), time)


def _subvp() -> Path:
    scale, _, time = _vp()

    def back(sigma: Tensor) -> Tensor:
        """sigma = (1 - a^2) / a, so that a = (sigma^2 / 4 + 1)^1/2 - sigma / 2, of which vp's sigma is known."""
        half = sigma.double() / 2
        a = 1 / ((half.square() + 1).sqrt() + half)
        return time((1 - a.square()).clamp_min(0).sqrt() / a)

    return Path(scale, lambda t: 1 - scale(t).square(), back)


def _ve() -> Path:
    low, high = 0.01, 50.0
    span = math.log(high / low)
    return Path(
        lambda t: torch.ones_like(t, dtype=torch.float64),
        lambda t: low * (t.double() * span).exp(),
        lambda sigma: (sigma.double() / low).log() / span,
    )


def _flow() -> Path:
    return Path(lambda t: 1 - t.double(), lambda t: t.double(), lambda sigma: sigma.double() / (1 + sigma.double()))


_PATHS: dict[str, Callable[[], Path]] = {
    "linear": lambda: discrete(products_of("linear")),
    "scaled": lambda: discrete(products_of("scaled")),
    "cosine": lambda: discrete(products_of("cosine")),
    "vp": _vp,
    "subvp": _subvp,
    "ve": _ve,
    "flow": _flow,
}


def _linear(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Linear between the points (xs, ys), xs increasing, and beyond them."""
    xs, ys, x = xs.to(x.device), ys.to(x.device), x.double()
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def target(prediction: Prediction, x: Tensor, n: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """What a network should predict of data x and noise n [B, ...]; a, s broadcast to them."""
    match prediction:
        case "x":
            return x
        case "noise":
            return n
        case "v":
            return a * n - s * x
        case "velocity":
            return n - x
        case "score":
            return -n / s
    raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, got {prediction!r}")


def data_of(prediction: Prediction, given: Tensor, x_t: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The data x that a ``given`` prediction at x_t [B, ...] stands for."""
    match prediction:
        case "x":
            return given
        case "noise":
            return (x_t - s * given) / a
        case "v":
            return (a * x_t - s * given) / (a.square() + s.square())
        case "velocity":
            return (x_t - s * given) / (a + s)
        case "score":
            return (x_t + s.square() * given) / a
    raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, got {prediction!r}")
