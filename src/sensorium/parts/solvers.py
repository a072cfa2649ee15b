"""Solvers of dx/dt = v(x, t) for any velocity function and grid of times.

    euler   x_{k+1} = x_k + h v(x_k, t_k)                                              one evaluation per step, order 1
    heun    x'      = x_k + h v(x_k, t_k)
            x_{k+1} = x_k + h / 2 (v(x_k, t_k) + v(x', t_{k+1}))                       two evaluations per step, order 2
with h = t_{k+1} - t_k, which may be negative: a decreasing grid integrates backward, from data to noise.

Times of a flow from noise (t = 0) to data (t = 1) may be shifted toward the noise, of which larger pictures need more to be
hidden as well (Esser et al., 2024, arXiv:2403.03206, section 5.3.2); s = 1 - t is the noise level:
    s' = a s / (1 + (a - 1) s),   so t' = t / (t + a (1 - t))                                                   (eq. 23)
a = (m / n)^1/2 for pictures of m values where times were made for pictures of n; 3 in Stable Diffusion 3.
Shapes: B samples, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # x [B, ...], t [B] -> dx/dt [B, ...]
Solver = Literal["euler", "heun"]


def uniform_times(steps: int) -> Tensor:
    """0, 1 / S, ..., 1: float32 [S + 1]."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return torch.arange(steps + 1, dtype=torch.float32) / steps


def shifted(times: Tensor, shift: float) -> Tensor:
    """Times in 0..1 (0: noise) shifted by the factor a, toward the noise if it is above 1: the same shape."""
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift must be a positive number, got {shift}")
    return times if shift == 1 else times / (times + shift * (1 - times))


def sd3_times(steps: int, shift: float = 3.0) -> Tensor:
    """The times of Stable Diffusion 3's sampler, which ends with a step from the least noise of its training: float32
    [S + 1].

    Of 1,000 noise levels that are shifted, S between the largest and the least are shifted again, as its authors do.
    """
    least = shifted(torch.tensor(1 - 1 / 1000, dtype=torch.float64), shift)
    times = shifted(torch.linspace(0, float(least), steps, dtype=torch.float64), shift)
    return torch.cat([times, torch.ones(1, dtype=torch.float64)]).float()


def euler(velocity: Velocity, x: Tensor, times: Tensor, *, trace: bool = False) -> Tensor:
    """From x at ``times[0]`` to ``times[-1]``: [B, ...] -> [B, ...], or with ``trace`` the whole trajectory [S + 1, B,
    ...].

    times: [S + 1], monotonic. The state has the precision of ``x``.
    """
    path = [x]
    for now, after in _steps(times, x):
        x = x + (after - now) * velocity(x, now.expand(len(x))).to(x.dtype)
        path.append(x)
    return torch.stack(path) if trace else x


def heun(velocity: Velocity, x: Tensor, times: Tensor, *, trace: bool = False) -> Tensor:
    """As :func:`euler`, with the mean of the velocities at both ends of a step: two evaluations per step."""
    path = [x]
    for now, after in _steps(times, x):
        h = after - now
        first = velocity(x, now.expand(len(x))).to(x.dtype)
        second = velocity(x + h * first, after.expand(len(x))).to(x.dtype)
        x = x + h * (first + second) / 2
        path.append(x)
    return torch.stack(path) if trace else x


SOLVERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "heun": heun}


def _steps(times: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must be [S + 1] with S at least 1, got {list(times.shape)}")
    times = times.to(x.device, x.dtype)
    return list(pairwise(times))
