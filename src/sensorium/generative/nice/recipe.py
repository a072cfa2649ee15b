"""NICE: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.generative.flow import beginning_with, dequantized_views, noise_width, pick_channels
from sensorium.generative.nice.method import NICE
from sensorium.parts.density.dequantization import Dequantization
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, refused_by


def nice(
    on: Situation,
    *,
    hidden: int | None = None,
    layers: int = 4,
    depth: int = 2,
    dequantization: Dequantization = "uniform",
    gray: bool | None = None,
    flip: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
) -> Recipe:
    """NICE (Dinh et al., 2014): the density of pictures by additive coupling layers.

    Example: sensorium train nice --data DIR --budget 15m

    Args:
        hidden: units of each hidden layer of a coupling.
        layers: couplings.
        depth: hidden layers of a coupling.
        dequantization: noise that makes pixels a density; variational: learned, for a tighter bound.
        gray: the mean of the channels; by default of pictures that have no colors.
        flip: also flip pictures horizontally; not for letters or digits.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    channels = pick_channels(gray, on, s)
    units = s.pick("hidden", hidden, 500 if on.device == "cpu" else 1000, on.device)
    s.note(layers=layers, depth=depth)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 1e-3, batch, s)
    s.note(dequantization=dequantization, flip=flip, weight_decay=weight_decay, warmup=warmup)
    with refused_by("nice"):
        method = NICE(
            (channels, on.image_size, on.image_size), hidden=units, layers=layers, depth=depth,
            noise=noise_width(dequantization, on),
        )  # fmt: skip
    views = dequantized_views(channels, flip=flip)
    return Recipe(
        "nice", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s,
        derive=beginning_with(method, views),
    )  # fmt: skip
