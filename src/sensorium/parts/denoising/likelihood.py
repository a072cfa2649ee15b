"""Exact log densities by the probability-flow ODE (Song et al., 2020, arXiv:2011.13456, section 4.3 and appendix D.2; in l = -log sigma).

    dx/dl = D(x, sigma) - x,     d log p/dl = -div (D - x) = d - tr dD/dx
so that log p(data) is that of pure noise where the trajectory from the data ends, and an integral. Of few values the trace is exact; of
more it is estimated without bias by Hutchinson's probes, e^T (dD/dx) e with e of signs. Heun's steps, equal in l.
Shapes: B samples, d values of each, P probes.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from sensorium.parts.denoising.frames import log_prior
from sensorium.parts.denoising.samplers import Denoiser

EXACT = 16  # up to so many values the trace is summed


def log_density(
    denoise: Denoiser,
    x: Tensor,
    low: float,
    high: float,
    *,
    steps: int = 100,
    probes: int = 1,
    seed: int = 0,
    deviation: float = 0.0,
) -> Tensor:
    """log p of x [B, ...] at the noise level ``low``: [B], float64. high: where all is noise, of the variance high^2 + deviation^2."""
    if not 0 < low < high or steps < 1 or probes < 1:
        raise ValueError(f"sigmas {low:g} and {high:g} must be above 0 and increase; steps and probes at least 1")
    generator = torch.Generator().manual_seed(seed)
    size = x[0].numel()
    signs = None
    if size > EXACT:
        signs = (torch.randint(2, (probes, *x.shape), generator=generator) * 2 - 1).to(x)
    ls = torch.linspace(-math.log(low), -math.log(high), steps + 1, dtype=torch.float64).tolist()
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    slope, divergence = _slope(denoise, x, ls[0], signs)
    for now, after in itertools.pairwise(ls):
        h = after - now
        end, end_divergence = _slope(denoise, x + h * slope, after, signs)
        x = x + h / 2 * (slope + end)
        total = total + h / 2 * (divergence + end_divergence)
        slope, divergence = _slope(denoise, x, after, signs)
    return log_prior(x, high, deviation) + total


def _slope(denoise: Denoiser, x: Tensor, l: float, signs: Tensor | None) -> tuple[Tensor, Tensor]:
    """dx/dl, and its divergence [B]."""
    sigma = torch.full((len(x),), math.exp(-l), dtype=x.dtype, device=x.device)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        data = denoise(x, sigma)
        if signs is None:
            flat = data.flatten(1)
            rows = [
                torch.autograd.grad(flat[:, k].sum(), x, retain_graph=True)[0].flatten(1)[:, k]
                for k in range(flat.shape[1])
            ]
            trace = torch.stack(rows).sum(0)
        else:
            each = [
                (torch.autograd.grad((data * e).sum(), x, retain_graph=True)[0] * e).flatten(1).sum(1) for e in signs
            ]
            trace = torch.stack(each).mean(0)
    return (data - x).detach(), (trace - x[0].numel()).double().detach()
