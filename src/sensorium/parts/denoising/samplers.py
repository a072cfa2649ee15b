"""Samplers that see nothing but a denoiser D(x, sigma), the mean of the data given x = data + sigma n, and a list of sigmas.

With d = (x - D) / sigma, the guessed noise, dx/dsigma = d is the probability-flow ODE (Karras et al., 2022, arXiv:2206.00364, eq. 1, 3).
    euler       x + (sigma' - sigma) d; of a path of constant variance it is DDIM (Song et al., 2020, arXiv:2010.02502, eq. 12, 14)
    heun        the mean of d at both ends; with churn noise is added before each step                         (algorithm 2)
    ancestral   down to (sigma'^2 - up^2)^1/2, then noise up, up = eta sigma' (1 - sigma'^2 / sigma^2)^1/2; with eta 1 it is DDPM's
                posterior (Ho et al., 2020, arXiv:2006.11239, eq. 7), with eta 0 DDIM                          (DDIM, eq. 16)
    dpm         DPM-Solver++ (2M), of order 2 with one evaluation a step (Lu et al., 2022, arXiv:2211.01095, algorithm 2)
    dpm-sde     its stochastic form                                                                            (2211.01095, section 5)
    plms        x + (sigma' - sigma) e, e of the last four d by Adams and Bashforth's weights; of a path of constant variance it is
                pseudo linear multistep (Liu et al., 2022, arXiv:2202.09778, eq. 9, 12), begun by one step of heun
    langevin    annealed Langevin dynamics (NCSN: Song & Ermon, 2019, arXiv:1907.05600, algorithm 1): at each sigma five times
                x + e (D - x) + (2 e)^1/2 sigma n, which is sigma^2 e of the score; e such that x has the noise of that sigma
                after them (Song & Ermon, 2020, arXiv:2006.09011, technique 4); of few sigmas the samples vary too much
    adaptive    Bogacki and Shampine's pair of orders 3 and 2, with steps as long as the tolerance allows
Sigmas decrease, the last may be 0: there D itself is the sample. Noise is drawn on the CPU, so that a device changes nothing.
Shapes: B samples, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x [B, ...], sigma [B] -> D [B, ...]
Sampler = Literal["euler", "heun", "ancestral", "dpm", "dpm-sde", "plms", "langevin", "adaptive"]
STOCHASTIC: tuple[Sampler, ...] = ("ancestral", "dpm-sde", "langevin")
STEPPED: tuple[Sampler, ...] = (
    "euler",
    "heun",
    "ancestral",
    "dpm",
    "dpm-sde",
    "plms",
    "langevin",
)  # take as many steps as they are told
TOLERANCE = 1e-3
LANGEVIN = 5  # times at each sigma


class Churn(NamedTuple):
    """EDM's added noise: ``amount`` in all, where sigma is from ``low`` to ``high``, ``inflated`` a little."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    inflated: float = 1.003


def karras_sigmas(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's (eq. 5), then 0: float64 [S + 1]."""
    _at_least_one(steps)
    at = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    sigmas = (high ** (1 / rho) + at * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def evaluations(sampler: str, steps: int, to_data: bool = True) -> int:
    """Of the denoiser by one of ``STEPPED``. to_data: whether the last sigma is 0."""
    if sampler == "heun":
        return 2 * steps - to_data
    if sampler == "langevin":
        return LANGEVIN * (steps - to_data) + to_data
    return steps + (sampler == "plms" and steps > 1)


def sampled(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    sampler: str = "heun",
    *,
    generator: torch.Generator | None = None,
    eta: float = 1.0,
    churn: Churn | None = None,
    tolerance: float = TOLERANCE,
    trace: bool = False,
) -> Tensor:
    """From x [B, ...] at ``sigmas[0]`` to the last: [B, ...], or with ``trace`` the states at all sigmas [S + 1, B, ...].

    generator: of the noise of stochastic samplers. eta: of "ancestral" and "dpm-sde". tolerance: of "adaptive", of whose steps no trace
    is kept but the ends.
    """
    if sampler not in get_args(Sampler):
        raise ValueError(f"sampler must be one of {', '.join(get_args(Sampler))}, got {sampler!r}")
    sigmas = sigmas.to("cpu", torch.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2 or bool((sigmas[1:] >= sigmas[:-1]).any()) or float(sigmas[-1]) < 0:
        raise ValueError("sigmas must be [S + 1] with S at least 1, and decrease to 0 or above")
    dice = torch.Generator().manual_seed(0) if generator is None else generator
    noise = lambda: torch.randn(x.shape, generator=dice, dtype=x.dtype).to(x.device)  # noqa: E731

    def at(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)).to(x.dtype)

    steps = {
        "euler": lambda: _ancestral(at, x, sigmas, noise, 0.0),
        "heun": lambda: _heun(at, x, sigmas, noise, churn or Churn()),
        "ancestral": lambda: _ancestral(at, x, sigmas, noise, eta),
        "dpm": lambda: _dpm(at, x, sigmas, noise, 0.0),
        "dpm-sde": lambda: _dpm(at, x, sigmas, noise, eta),
        "plms": lambda: _plms(at, x, sigmas),
        "langevin": lambda: _langevin(at, x, sigmas, noise),
        "adaptive": lambda: _adaptive(at, x, sigmas, tolerance),
    }[sampler]()
    if trace:
        return torch.stack([x, *steps])
    for x in steps:  # noqa: B007
        pass
    return x


At = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]


def _ancestral(at: At, x: Tensor, sigmas: Tensor, noise: Noise, eta: float) -> Iterator[Tensor]:
    for now, after in pairwise(sigmas.tolist()):
        up = min(after, eta * after * math.sqrt(max(0.0, 1 - (after / now) ** 2)))
        down = math.sqrt(after**2 - up**2)
        data = at(x, now)
        x = data + (x - data) * (down / now)
        x = x + up * noise() if up else x
        yield x


def _heun(at: At, x: Tensor, sigmas: Tensor, noise: Noise, churn: Churn) -> Iterator[Tensor]:
    steps = len(sigmas) - 1
    for now, after in pairwise(sigmas.tolist()):
        gamma = min(churn.amount / steps, math.sqrt(2) - 1) if churn.low <= now <= churn.high else 0.0
        if gamma:
            raised = now * (1 + gamma)
            x = x + churn.inflated * math.sqrt(raised**2 - now**2) * noise()
            now = raised
        first = (x - at(x, now)) / now
        end = x + (after - now) * first
        x = end if after == 0 else x + (after - now) * (first + (end - at(end, after)) / after) / 2
        yield x


def _dpm(at: At, x: Tensor, sigmas: Tensor, noise: Noise, eta: float) -> Iterator[Tensor]:
    """In l = -log sigma; the last data predicted and the one before give D's slope."""
    before: tuple[Tensor, float] | None = None
    for now, after in pairwise(sigmas.tolist()):
        data = at(x, now)
        if after == 0:
            x = data
            yield x
            return
        h = math.log(now / after)
        guess = data
        if before is not None:
            guess = data + (data - before[0]) * (h / before[1] / 2)
        kept = after / now * math.exp(-eta * h)
        x = kept * x - math.expm1(-h - eta * h) * guess
        if eta:
            x = x + after * math.sqrt(-math.expm1(-2 * eta * h)) * noise()
        before = data, h
        yield x


ADAMS_BASHFORTH = ((1,), (3, -1), (23, -16, 5), (55, -59, 37, -9))  # the newest first, each divided by its sum


def _plms(at: At, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """The weights are those of steps that are equal in time."""
    slopes: list[Tensor] = []  # the newest first
    for k, (now, after) in enumerate(pairwise(sigmas.tolist())):
        slopes = [(x - at(x, now)) / now, *slopes[:3]]
        weights = ADAMS_BASHFORTH[len(slopes) - 1]
        slope = sum(w * d for w, d in zip(weights, slopes, strict=True)) / sum(weights)
        end = x + (after - now) * slope
        if k == 0 and len(sigmas) > 2:
            slope = (slope + (end - at(end, after)) / after) / 2
            end = x + (after - now) * slope
        x = end
        yield x


def _langevin(at: At, x: Tensor, sigmas: Tensor, noise: Noise) -> Iterator[Tensor]:
    for now, after in pairwise(sigmas.tolist()):
        if after == 0:
            x = at(x, now)
        else:
            e = langevin_step(now / after)
            for _ in range(LANGEVIN):
                x = x + e * (at(x, after) - x) + math.sqrt(2 * e) * after * noise()
        yield x


def langevin_step(ratio: float) -> float:
    """e that brings noise of ``ratio`` sigma nearest to sigma in ``LANGEVIN`` times, where D does not change (technique 4)."""
    e = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:]
    rest = 2 / (2 - e)  # the variance that it comes to
    return float(e[((1 - e) ** (2 * LANGEVIN) * (ratio**2 - rest) + rest - 1).abs().argmin()])


def _adaptive(at: At, x: Tensor, sigmas: Tensor, tolerance: float) -> Iterator[Tensor]:
    """In l = -log sigma, dx/dl = D - x, to the last sigma that is not 0. The error is relative to 1 + |x|, its root mean square over
    each sample, the largest of the batch."""
    ends = [sigma for sigma in sigmas.tolist() if sigma > 0]
    low, high = -math.log(ends[0]), -math.log(ends[-1])
    slope = lambda x, l: at(x, math.exp(-l)) - x  # noqa: E731
    l, h, first = low, (high - low) / 20, slope(x, low)
    while high - l > 1e-9 * max(1.0, abs(high)):
        h = min(h, high - l)
        second = slope(x + h / 2 * first, l + h / 2)
        third = slope(x + 3 * h / 4 * second, l + 3 * h / 4)
        end = x + h / 9 * (2 * first + 3 * second + 4 * third)
        fourth = slope(end, l + h)
        wrong = h * (-5 / 72 * first + second / 12 + third / 9 - fourth / 8)
        scaled = (
            (wrong / (tolerance * (1 + torch.maximum(x.abs(), end.abs())))).flatten(1).square().mean(1).sqrt().max()
        )
        error = max(float(scaled), 1e-10)
        if error <= 1:
            x, l, first = end, l + h, fourth
            yield x
        h *= min(5.0, max(0.2, 0.9 * error ** (-1 / 3)))
    if float(sigmas[-1]) == 0:
        yield at(x, ends[-1])


def _at_least_one(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
