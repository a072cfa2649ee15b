"""Diffusions in EDM's frame: what DDPM, score matching and EDM have in common.

    x = data + sigma n,     D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),     L = w mean |F - (data - c_skip x) / c_out|^2
A frame gives the numbers (``parts/denoising/frames.py``); samplers see D and a list of sigmas alone (``parts/denoising/samplers.py``), so
that each of them works with each system. Labels, a tenth of them replaced by a null label in training, allow guidance (Ho & Salimans,
2022, arXiv:2207.12598), also in an interval of sigmas only (Kynkaanniemi et al., 2024, arXiv:2404.07724):
    D = D(null) + g (D(label) - D(null))
Completion is inpainting: at each sigma the known part is that of the given picture with noise (RePaint without its repeats: Lugmayr et
al., 2022, arXiv:2201.09865, eq. 8).
Shapes: B images, C channels, K classes (label K is the null), S steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import ClassConditional, Completer, FromNoise, IterativeGenerator, VelocityNet
from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.generative.signed import signed
from sensorium.method import Method
from sensorium.networks.choice import velocity_network
from sensorium.parts.denoising.denoiser import Net, denoised, denoising_loss
from sensorium.parts.denoising.frames import Frame
from sensorium.parts.denoising.samplers import (
    STEPPED,
    STOCHASTIC,
    Churn,
    Denoiser,
    Sampler,
    evaluations,
    karras_sigmas,
    sampled,
)
from sensorium.parts.ema import EMA
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.muon import Optimizer, drawing_optimizer
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings, refused_by

CHUNK = 256
LARGEST = (
    80.0  # sigma beyond which nothing of a picture is left: EDM's, whereas the cosine schedule ends at some 20,000
)


class Diffusion(Method, ClassConditional, IterativeGenerator, FromNoise, Completer):
    """net: F, ``net(x [B, C, H, W], c_noise [B], label int64 [B] or None)``. shape: (C, H, W) of an image in -1..1. classes: K; the net's
    label embedding then has K + 1 rows. clip: whether samplers see D within -1..1: where sigma is large, an error of a predicted noise
    is one of D sigma times as large. sampler, usual_steps: of :meth:`sample`."""

    samplers = STEPPED

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, int, int],
        frame: Frame,
        *,
        classes: int = 0,
        drop: float = 0.1,
        clip: bool = False,
        sampler: Sampler = "heun",
        usual_steps: int = 18,
    ) -> None:
        super().__init__()
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {drop}")
        rows = classes + 1 if classes else 0
        if isinstance(net, VelocityNet) and net.labels != rows:
            raise ValueError(f"a net for {classes} classes needs {rows} labels, it has {net.labels}")
        self.net, self.shape, self.frame, self.classes, self.drop = net, shape, frame, classes, drop
        self.clip = clip
        self.start_shape = shape
        self.sampler: str = sampler
        self.usual_steps = usual_steps

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, C, H, W] in -1..1, ``noise`` of the same shape, ``level`` [B] in (0, 1) and, with classes, ``label`` int64 [B] (-1
        unknown) and ``drop`` bool [B] -> the loss. Logs ``explained``, which part of what F should be it predicts: 0 for zeros."""
        return denoising_loss(
            self.frame, self._net(self._labels(batch)), batch["image"], batch["noise"], batch["level"]
        )

    def _net(self, label: Tensor | None) -> Net:
        return lambda x, time: self.net(x, time, label)

    def _labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        if not self.classes:
            return None
        label = torch.where(batch["label"] < 0, self.classes, batch["label"])
        return torch.where(batch["drop"], self.classes, label)

    def denoised(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """D of x [B, C, H, W] at sigma [B]; label int64 [B], -1 or None for none."""
        if self.classes:
            label = x.new_full((len(x),), -1, dtype=torch.int64) if label is None else label
            label = torch.where(label < 0, self.classes, label)
        return denoised(self.frame, self._net(label), x, sigma)

    def denoiser(
        self, label: Tensor | None = None, guidance: float = 1.0, interval: tuple[float, float] = (0.0, math.inf)
    ) -> Denoiser:
        """D as samplers take it. guidance: g, where sigma is in the interval; 1 costs one evaluation of the net, else two."""
        if not self.classes and (label is not None or guidance != 1):
            raise ValueError("this diffusion has no classes: leave out the condition, and set guidance to 1")

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            found = unlimited(x, sigma)
            return found.clamp(-1, 1) if self.clip else found

        def unlimited(x: Tensor, sigma: Tensor) -> Tensor:
            guided = label is not None and guidance != 1 and interval[0] <= float(sigma[0]) <= interval[1]
            if not guided:
                return self.denoised(x, sigma, label)
            assert label is not None
            both = torch.cat([label, torch.full_like(label, -1)])
            to_label, to_any = self.denoised(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            return to_any + guidance * (to_label - to_any)

        return denoise

    def sigmas(self, steps: int) -> Tensor:
        """For ``steps`` of sampling: Karras', between the ends of the frame and at most ``LARGEST``, then 0."""
        low, high = self.frame.ends
        return karras_sigmas(steps, low, min(high, LARGEST))

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
        interval: tuple[float, float] = (0.0, math.inf),
        churn: Churn | None = None,
    ) -> Tensor:
        """``n`` images [n, C, H, W], or with ``trace`` their trajectories [S + 1, n, C, H, W], scaled so that noise has the data's range.

        condition: a label for all, or [n]. start: noise [n, C, H, W] of deviation 1, else of ``seed``. sampler: by default that of this
        diffusion; of a start, where that one draws more noise, Euler's, which is DDIM. Noise is drawn on the CPU for all at once, so that a
        device changes nothing.
        """
        sigmas, generator = self.sigmas(steps or self.usual_steps), torch.Generator().manual_seed(seed)
        if sampler is None:
            sampler = "euler" if start is not None and self.sampler in STOCHASTIC else self.sampler
        noise = self.noise_of(n, generator, start) * float(sigmas[0])
        labels = None if condition is None else torch.as_tensor(condition).expand(n)
        like, done = next(self.parameters()), []
        for k in range(0, n, CHUNK):
            label = None if labels is None else labels[k : k + CHUNK].to(like.device)
            denoise = self.denoiser(label, guidance, interval)
            x = noise[k : k + CHUNK].to(like)
            path = sampled(denoise, x, sigmas, sampler, generator=generator, churn=churn, trace=trace)
            done.append(path)
        drawn = torch.cat(done, 1 if trace else 0)
        if not trace:
            return drawn.clamp(-1, 1)
        return drawn * (1 + sigmas.to(drawn).square()).rsqrt().view(-1, 1, 1, 1, 1)

    def evaluations(self, sampler: str, steps: int) -> int:
        return evaluations(sampler, steps)

    @torch.no_grad()
    def complete(self, given: Tensor, known: Tensor, *, seed: int = 0, steps: int | None = None) -> Tensor:
        """The unknown values of ``given`` [n, C, H, W] by ancestral sampling."""
        sigmas, generator = self.sigmas(steps or 2 * self.usual_steps), torch.Generator().manual_seed(seed)
        like = next(self.parameters())
        given, known = torch.where(known, given, 0).to(like), known.to(like.device)
        noise = lambda: torch.randn(given.shape, generator=generator).to(like)  # noqa: E731
        x, denoise = noise() * float(sigmas[0]), self.denoiser()
        for now, after in itertools.pairwise(sigmas):
            x = torch.where(known, given + float(now) * noise(), x)
            x = sampled(denoise, x, torch.stack([now, after]), "ancestral", generator=generator)
        return torch.where(known, given, x.clamp(-1, 1))


def diffusion_views(method: Diffusion, *, flip: bool = False) -> Views:
    """``{"image" in -1..1, "label" and "drop" where it learns classes, "noise", "level"}``: all random values of a step."""

    @reads("image", *(("label",) if method.classes else ()))
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        batch = {
            "image": signed(fields["image"], draw, flip),
            "noise": draw.randn(*method.shape),
            "level": draw.rand().clamp(1e-6, 1 - 1e-6),
        }
        if method.classes:
            batch |= {"label": fields["label"], "drop": draw.chance(method.drop)}
        return batch

    return views


def diffusion_recipe(
    system: str,
    frame: Callable[[], Frame],
    on: Situation,
    s: Settings,
    *,
    network: str | None,
    classes: bool,
    drop: float,
    sampler: Sampler,
    steps: int,
    flip: bool,
    clip: bool,
    optimizer: Optimizer | None,
    batch_size: int | None,
    lr: float | None,
    weight_decay: float,
    warmup: float,
    average: float,
) -> Recipe:
    """What the recipes of all diffusions do with their settings; what ``frame`` refuses is told as ``system``'s."""
    small = on.device == "cpu"
    name = s.pick("network", network, "unet-micro" if small else "unet-small", on.device)
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    batch = pick_batch_size(batch_size, on, s)
    s.note(classes=classes, drop=drop, sampler=sampler, steps=steps, flip=flip, clip=clip)
    s.note(weight_decay=weight_decay, warmup=warmup, average=average)
    with refused_by(system):
        net = velocity_network(name, on.image_size, count + 1 if count else 0)
        build = drawing_optimizer(
            optimizer, lr, net, batch, s, adamw_rate=2e-3 if small else 4e-4, weight_decay=weight_decay, better=small and name.startswith("unet"),
        )  # fmt: skip
        shape = (3, on.image_size, on.image_size)
        method = Diffusion(net, shape, frame(), classes=count, drop=drop, clip=clip, sampler=sampler, usual_steps=steps)
        moving = EMA(average) if average else None
    views = diffusion_views(method, flip=flip)
    return Recipe(system, method, views, build, lambda f: warmup_cosine(f, warmup), batch, s, average=moving)
