"""Glow: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.generative.flow import beginning_with, dequantized_views, noise_width, pick_channels, scales_of
from sensorium.generative.glow.method import Glow
from sensorium.parts.density.dequantization import Dequantization
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.muon import Optimizer, drawing_optimizer
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings, refused_by


def glow(
    on: Situation,
    *,
    width: int | None = None,
    steps: int | None = None,
    scales: int | None = None,
    dequantization: Dequantization = "uniform",
    gray: bool | None = None,
    flip: bool = False,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
) -> Recipe:
    """Glow (Kingma & Dhariwal, 2018): the density of pictures by coupling layers between matrices of channels.

    Example: sensorium train glow --data DIR --budget 15m

    Args:
        width: channels of the networks of a coupling.
        steps: of flow at each scale.
        scales: between which half of the values are done.
        dequantization: noise that makes pixels a density; variational: learned, for a tighter bound.
        gray: the mean of the channels; by default of pictures that have no colors.
        flip: also flip pictures horizontally; not for letters or digits.
        optimizer: adamw, or muon (orthogonal updates of matrices and filters), which learns more at first and may diverge after minutes.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    channels = pick_channels(gray, on, s)
    wide = s.pick("width", width, 48 if on.device == "cpu" else 512, on.device)
    deep = s.pick("steps", steps, 6 if on.device == "cpu" else 32, on.device)
    levels = s.pick("scales", scales, scales_of(on.image_size), f"image size {on.image_size}")
    batch = pick_batch_size(batch_size, on, s)
    s.note(dequantization=dequantization, flip=flip, weight_decay=weight_decay, warmup=warmup)
    with refused_by("glow"):
        method = Glow(
            (channels, on.image_size, on.image_size), width=wide, steps=deep, scales=levels,
            noise=noise_width(dequantization, on),
        )  # fmt: skip
    build = drawing_optimizer(optimizer, lr, method, batch, s, adamw_rate=2e-3, weight_decay=weight_decay)
    views = dequantized_views(channels, flip=flip)
    return Recipe(
        "glow", method, views, build, lambda f: warmup_cosine(f, warmup), batch, s,
        derive=beginning_with(method, views),
    )  # fmt: skip
