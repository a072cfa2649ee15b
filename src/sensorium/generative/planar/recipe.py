"""Planar flows: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.generative.flow import beginning_with, dequantized_views, pick_channels
from sensorium.generative.planar.method import PlanarFlow
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, refused_by


def planar(
    on: Situation,
    *,
    layers: int = 32,
    radial: bool = False,
    gray: bool | None = None,
    flip: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
) -> Recipe:
    """Planar and radial flows (Rezende & Mohamed, 2015): the density of pictures by simple bends of space, many of them.

    Example: sensorium train planar --data DIR --budget 15m

    Args:
        layers: bends.
        radial: around points, not across planes.
        gray: the mean of the channels; by default of pictures that have no colors.
        flip: also flip pictures horizontally; not for letters or digits.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    channels = pick_channels(gray, on, s)
    s.note(layers=layers, radial=radial)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 5e-3, batch, s)
    s.note(flip=flip, weight_decay=weight_decay, warmup=warmup)
    with refused_by("planar"):
        method = PlanarFlow((channels, on.image_size, on.image_size), layers=layers, radial=radial)
    views = dequantized_views(channels, flip=flip)
    return Recipe(
        "planar", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s,
        derive=beginning_with(method, views),
    )  # fmt: skip
