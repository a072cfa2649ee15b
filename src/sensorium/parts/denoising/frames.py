"""EDM's frame: every diffusion, score and flow is a preconditioned network, a distribution of noise levels and a weight (Karras et al.,
2022, arXiv:2206.00364, table 1).

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)         x = data + sigma n
    L = w(sigma) mean |F - (data - c_skip x) / c_out|^2       = w / c_out^2 mean |D - data|^2                           (eq. 8)
frame       c_in                c_skip                 c_out                                 c_noise        sigma in training
a path      a                   of its prediction      of its prediction                     1000 t - 1     t uniform
EDM         (sigma^2+d^2)^-1/2  d^2/(sigma^2+d^2)      sigma d (sigma^2+d^2)^-1/2            log sigma / 4  log sigma normal(-1.2, 1.2)
d is the deviation of the data. Of a path and its prediction (``paths.py``) D is what that prediction says of the data:
    x      0, 1                 noise    1, -sigma      v    a^2/(a^2+s^2), -s/(a^2+s^2)      velocity  a/(a+s), -s/(a+s)      score  1, s^2/a
With w = 1 the loss is the mean squared error of the prediction itself: DDPM's simple loss, flow matching's. ``min-snr`` limits it to
what predicting the data at a signal-to-noise ratio of 5 costs (Hang et al., 2023, arXiv:2303.09556).
Shapes: sigma [...]; all in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sensorium.parts.denoising.paths import DISCRETE, STEPS, Name, Path, Prediction, path_of

Weight = Literal["simple", "min-snr"]
SNR = 5.0
FIRST = 1e-3  # time of a continuous path where training begins: nearer to the data sigma vanishes


class Frame(NamedTuple):
    """The functions of the table; ``draw``: numbers in (0, 1) -> sigmas to train on; ``ends``: the least and the largest sigma."""

    inputs: Callable[[Tensor], Tensor]
    skip: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    ends: tuple[float, float]


def edm_frame(
    deviation: float = 0.5, mean: float = -1.2, spread: float = 1.2, ends: tuple[float, float] = (0.002, 80.0)
) -> Frame:
    """EDM's own. deviation: of the data."""
    if deviation <= 0 or spread <= 0:
        raise ValueError(f"deviation {deviation:g} and spread {spread:g}: must be above 0")
    d = deviation**2
    return Frame(
        inputs=lambda sigma: (sigma.double().square() + d).rsqrt(),
        skip=lambda sigma: d / (sigma.double().square() + d),
        out=lambda sigma: sigma.double() * deviation * (sigma.double().square() + d).rsqrt(),
        time=lambda sigma: sigma.double().log() / 4,
        draw=lambda uniform: (mean + spread * torch.special.ndtri(uniform.double())).exp(),
        weight=lambda sigma: torch.ones_like(sigma, dtype=torch.float64),
        ends=ends,
    )


def frame_of(along: Name | Path, prediction: Prediction, weight: Weight = "simple") -> Frame:
    """That of a path and a prediction; a path that has no name is one of 1,000 steps."""
    if prediction not in get_args(Prediction) or weight not in get_args(Weight):
        raise ValueError(
            f"prediction must be one of {', '.join(get_args(Prediction))}, weight one of {', '.join(get_args(Weight))}"
        )
    with torch.device("cpu"):  # also where a method is built without memory, on the device "meta"
        path = path_of(along) if isinstance(along, str) else along

    def numbers(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t, a and s."""
        t = path.time(sigma)
        return t, path.scale(t), path.noise(t)

    def skip(sigma: Tensor) -> Tensor:
        _, a, s = numbers(sigma)
        return {
            "x": torch.zeros_like(a),
            "noise": torch.ones_like(a),
            "v": a.square() / (a.square() + s.square()),
            "velocity": a / (a + s),
            "score": torch.ones_like(a),
        }[prediction]

    def out(sigma: Tensor) -> Tensor:
        _, a, s = numbers(sigma)
        return {
            "x": torch.ones_like(a),
            "noise": -s / a,
            "v": -s / (a.square() + s.square()),
            "velocity": -s / (a + s),
            "score": s.square() / a,
        }[prediction]

    def weighted(sigma: Tensor) -> Tensor:
        # the score's own scale is 1 / s: weighted by s^2 its loss is that of the noise (Song & Ermon, 2019, eq. 6)
        plain = numbers(sigma)[2].square() if prediction == "score" else torch.ones_like(sigma, dtype=torch.float64)
        if weight == "simple":
            return plain
        return plain * (SNR / (out(sigma).square() * plain).reciprocal().clamp_min(1e-20)).clamp(max=1.0)

    discrete = not isinstance(along, str) or along in DISCRETE
    last = 1.0 if along != "flow" else 1 - FIRST
    first = 1 / STEPS if discrete else FIRST if along != "ve" else 0.0

    def draw(uniform: Tensor) -> Tensor:
        t = first + uniform.double() * (last - first)
        return path.sigma((t * STEPS).round() / STEPS if discrete else t)

    low, high = path.sigma(torch.tensor([first, last], dtype=torch.float64, device="cpu")).tolist()
    return Frame(
        inputs=lambda sigma: numbers(sigma)[1],
        skip=skip,
        out=out,
        time=lambda sigma: numbers(sigma)[0] * STEPS - float(discrete),
        draw=draw,
        weight=weighted,
        ends=(low, high),
    )


def log_prior(x: Tensor, sigma: float, deviation: float = 0.0) -> Tensor:
    """log density of x [B, ...] where all is noise: normal of variance sigma^2 + deviation^2. [B], float64."""
    variance = sigma**2 + deviation**2
    return -(x.double().flatten(1).square() / variance + math.log(2 * math.pi * variance)).sum(1) / 2
