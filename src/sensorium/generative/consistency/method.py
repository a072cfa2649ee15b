"""Consistency models (Song, Dhariwal, Chen & Sutskever, 2023, arXiv:2303.01469).

A diffusion's ODE leads from noise to data along trajectories. A consistency function tells the origin, where a trajectory ends at the data, from any
point of it, so that one evaluation draws a sample. It is distilled from a trained diffusion: neighbors on a trajectory have one origin.
    f(x, sigma) = c_skip x + c_out F(c_in x, c_noise)                                                           (eq. 5)
    c_skip = d^2 / ((sigma - e)^2 + d^2),     c_out = d (sigma - e) / (d^2 + sigma^2)^1/2,     f(x, e) = x      (appendix C)
    x' = data + sigma' n,     x = x' by one step of Heun's method along the teacher's ODE from sigma' to sigma  (eq. 6)
    L = mean |f(x', sigma') - f_(x, sigma)|^2,     f_ <- m f_ + (1 - m) f after each step                       (eq. 7, 8; algorithm 2)
    x = f(sigma_1 n, sigma_1),     then for each further sigma_k     x = f(x + (sigma_k^2 - e^2)^1/2 n, sigma_k)  (algorithm 1)
e is the least sigma, d the deviation of the data, c_in and c_noise are EDM's; sigma and sigma' are neighbors among N levels of Karras' schedule, all
equally often and with equal weight. Of the paper's distances only the squared one is here (the mean over values, not their sum), not l1 and LPIPS;
training without a teacher and editing are left out, too.
Shapes: B images, C channels, K classes (label K is the null), N levels, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import ClassConditional, FromNoise, IterativeGenerator, VelocityNet
from sensorium.method import Method, Progress
from sensorium.parts.denoising.denoiser import broad, denoised
from sensorium.parts.denoising.frames import Frame, edm_frame
from sensorium.parts.denoising.samplers import Denoiser, karras_sigmas
from sensorium.parts.ema import ema_, frozen_copy, teaching_

CHUNK = 256
FURTHER = 230301469  # seed of the noise of further steps where a start is given: not one that people choose


class Consistency(Method, ClassConditional, IterativeGenerator, FromNoise):
    """net: F, ``net(x [B, C, H, W], c_noise [B], label int64 [B] or None)``. shape: (C, H, W) of an image in -1..1. deviation: d. levels: N.
    momentum: m. classes: K; the net's label embedding then has K + 1 rows. usual_steps: of :meth:`sample`."""

    guided = False
    sampler = "multistep"
    samplers = ("multistep",)

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, int, int],
        *,
        deviation: float = 0.5,
        levels: int = 18,
        momentum: float = 0.95,
        classes: int = 0,
        usual_steps: int = 1,
    ) -> None:
        super().__init__()
        if levels < 2 or not 0 <= momentum <= 1:
            raise ValueError(f"levels {levels} must be at least 2, momentum {momentum:g} in [0, 1]")
        if usual_steps < 1:
            raise ValueError(f"steps must be at least 1, got {usual_steps}")
        rows = classes + 1 if classes else 0
        if isinstance(net, VelocityNet) and net.labels != rows:
            raise ValueError(f"a net for {classes} classes needs {rows} labels, it has {net.labels}")
        self.net, self.target = net, frozen_copy(net)
        self.frame = consistency_frame(deviation)
        self.shape, self.start_shape, self.classes = shape, shape, classes
        self.levels, self.momentum, self.usual_steps = levels, momentum, usual_steps

    def begin_from(self, net: nn.Module) -> None:
        """Give f and its average the weights of a network of the same architecture."""
        self.net.load_state_dict(net.state_dict())
        self.target.load_state_dict(net.state_dict())

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``noisy`` and ``solved`` [B, C, H, W], neighbors x' and x on trajectories, their ``sigma`` and ``below`` [B] and, with classes,
        ``label`` int64 [B] (-1 for none) -> the loss."""
        label = batch.get("label")
        with torch.no_grad():
            origin = self._origin(self.target, batch["solved"], batch["below"], label)
        return {"loss": F.mse_loss(self.origin(batch["noisy"], batch["sigma"], label), origin)}

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        ema_(self.target, self.net, self.momentum)

    def train(self, mode: bool = True) -> Consistency:
        super().train(mode)
        teaching_(self.target, mode)
        return self

    def origin(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """f of x [B, C, H, W] at sigma [B], float32 at least; label int64 [B], -1 or None for none."""
        return self._origin(self.net, x, sigma, label)

    def _origin(self, net: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        if self.classes:
            label = x.new_full((len(x),), -1, dtype=torch.int64) if label is None else label
            label = torch.where(label < 0, self.classes, label)
        return denoised(self.frame, lambda x, time: net(x, time, label), x, sigma)

    def training_sigmas(self) -> Tensor:
        """The N levels from the least on: float64 [N]."""
        return karras_sigmas(self.levels, *self.frame.ends)[:-1].flip(0)

    def sampling_sigmas(self, steps: int) -> Tensor:
        """Those of S steps from the largest on: Karras' S + 1 without the least, where f changes nothing; float64 [S]. The paper searches for those
        with the least Frechet distance (section 3)."""
        return karras_sigmas(steps + 1, *self.frame.ends)[:-2]

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        trace: bool = False,
        condition: Tensor | int | None = None,
        guidance: float = 1.0,
        start: Tensor | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """``n`` images [n, C, H, W], or with ``trace`` x at each sigma and they [S + 1, n, C, H, W], scaled so that noise has the data's range.

        condition: a label for all, or [n]. guidance: 1, which is none. start: noise [n, C, H, W] of deviation 1, else of ``seed``; the noise of
        further steps is then one for all. Noise is drawn on the CPU for all at once, so that a device changes nothing.
        """
        if guidance != 1 or sampler not in (None, *self.samplers):
            raise ValueError(f"a consistency model has no guidance and no sampler but {self.sampler}: leave them out")
        sigmas = self.sampling_sigmas(steps or self.usual_steps).tolist()
        generator = torch.Generator().manual_seed(seed if start is None else FURTHER)
        labels = None if condition is None else torch.as_tensor(condition).expand(n)
        x = self.noise_of(n, generator, start) * sigmas[0]
        path = []
        for k, sigma in enumerate(sigmas):
            if k:
                noise = torch.randn((n if start is None else 1, *self.shape), generator=generator).to(x)
                x = x + math.sqrt(sigma**2 - self.frame.ends[0] ** 2) * noise
            path.append(x / math.sqrt(1 + sigma**2))
            x = self._origins(x, sigma, labels)
        return torch.stack([one.to(x) for one in (*path, x)]) if trace else x

    def _origins(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        """f of all x, some at a time, in the range of images."""
        like, found = next(self.parameters()), []
        for k in range(0, len(x), CHUNK):
            part = x[k : k + CHUNK].to(like)
            label = None if labels is None else labels[k : k + CHUNK].to(like.device)
            found.append(self.origin(part, part.new_full((len(part),), sigma), label))
        return torch.cat(found).clamp(-1, 1)

    def evaluations(self, sampler: str, steps: int) -> int:
        return steps


def consistency_frame(deviation: float = 0.5, ends: tuple[float, float] = (0.002, 80.0)) -> Frame:
    """EDM's, but for c_skip and c_out, which are 1 and 0 at the least of the ``ends``."""
    least, d = ends[0], deviation
    return edm_frame(deviation, ends=ends)._replace(
        skip=lambda sigma: d**2 / ((sigma.double() - least).square() + d**2),
        out=lambda sigma: d * (sigma.double() - least) * (sigma.double().square() + d**2).rsqrt(),
    )


@torch.no_grad()
def neighbor(teacher: Denoiser, x: Tensor, sigma: Tensor, below: Tensor) -> Tensor:
    """x [B, ...] at sigma [B], moved to ``below`` [B], above 0, by one step of Heun's method along the teacher's ODE
    dx/dsigma = (x - D) / sigma. Without gradient."""
    now, after = broad(sigma, x), broad(below, x)
    slope = (x - teacher(x, sigma)) / now
    end = x + (after - now) * slope
    return x + (after - now) * (slope + (end - teacher(end, below)) / after) / 2
