"""SIGReg: sketched isotropic Gaussian regularization (LeJEPA: Balestriero & LeCun, 2025, arXiv:2511.08544, section 4).

A distribution in K dimensions is the isotropic Gaussian if and only if its projection on every direction is N(0, 1)
(Cramer & Wold, 1936). So samples z are projected on M random unit directions a, and the Epps-Pulley statistic (1983)
compares the empirical characteristic function of each projection with that of N(0, 1):

    T = N integral over t of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,    phi(t) = mean over n of exp(i t z_n . a)
    SIGReg = mean over the directions of T

As in the authors' code the integral is from -3 to 3 by the trapezoidal rule; the integrand is even, so that 17 knots in
[0, 3] give it with 33. N(0, 1) itself gives 1.05 on average, whatever N. Shapes: N samples of all processes, B of this one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.draw import step_seed
from sensorium.base.precision import precise
from sensorium.parts.gather import sum_over_processes, world_size

KNOTS, REACH = 17, 3.0


def directions(dim: int, count: int, step: int) -> Tensor:
    """``count`` random unit vectors as columns [dim, count], on the CPU: the same in every process and after a resume."""
    generator = torch.Generator("cpu").manual_seed(step_seed(0, step))
    return F.normalize(torch.randn(dim, count, generator=generator, device="cpu"), dim=0)


def epps_pulley(x: Tensor, *, knots: int = KNOTS, reach: float = REACH) -> Tensor:
    """The statistic T of samples [..., B, M], M times one number each, over all processes -> [..., M].

    knots: of the trapezoidal rule in [0, ``reach``].
    """
    t = torch.linspace(0, reach, knots, dtype=x.dtype, device=x.device)
    phi = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * reach / (knots - 1)) * phi
    weight[[0, -1]] /= 2
    angle = x.unsqueeze(-1) * t
    parts = torch.stack([angle.cos().mean(-3), angle.sin().mean(-3)])
    real, imaginary = sum_over_processes(parts) / world_size()
    return ((real - phi).square() + imaginary.square()) @ weight * (x.shape[-2] * world_size())


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Samples [..., B, K] and unit ``directions`` [K, M] -> the mean statistic over the directions and the leading
    dimensions; the same in every process. Scalar, float32 or better."""
    z = precise(z)
    with torch.autocast(z.device.type, enabled=False):
        return epps_pulley(z @ directions.to(z.dtype)).mean()
