"""Gated PixelCNN: how to train it, and its view of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.binary import binary_views
from sensorium.generative.pixelcnn.method import PixelCNN
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, refused_by

MOST_LAYERS = 100


def pixelcnn(
    on: Situation,
    *,
    channels: int | None = None,
    layers: int | None = None,
    kernel: int = 5,
    classes: bool = True,
    drop: float = 0.1,
    stochastic: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
) -> Recipe:
    """Gated PixelCNN (van den Oord et al., 2016): the exact probability of a black-and-white picture, pixel by pixel, by convolutions.

    Example: sensorium train pixelcnn --data DIR --budget 15m

    Args:
        channels: of each of the two stacks of convolutions.
        layers: of the stacks.
        kernel: side of the convolutions after the first, which has 7.
        classes: condition on the class, if the data have classes.
        drop: probability of hiding a label in training, for pictures of unknown class and for guidance.
        stochastic: in training, binarize pixels at random with their intensity as probability; otherwise by threshold,
            as always in evaluation.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    wide = s.pick("channels", channels, 16 if on.device == "cpu" else 128, on.device)
    deep = s.pick("layers", layers, 5 if on.device == "cpu" else 15, on.device)
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate = pick_lr(lr, 4e-3, batch, s)
    if not 1 <= deep <= MOST_LAYERS or wide < 1:
        raise SensoriumError(
            f"--layers {deep} and --channels {wide}: from 1 to {MOST_LAYERS} layers, of at least one channel."
        )
    if not 0 <= drop <= 1:
        raise SensoriumError(f"--drop {drop:g}: must be from 0 to 1.")
    count = len(on.classes) if classes and len(on.classes) > 1 else 0
    s.note(kernel=kernel, classes=classes, drop=drop, stochastic=stochastic, weight_decay=weight_decay, warmup=warmup)
    with refused_by("pixelcnn"):
        method = PixelCNN(on.image_size, on.image_size, channels=wide, layers=deep, kernel=kernel, classes=count)
    views = labelled_views(stochastic, drop) if count else binary_views(stochastic)
    return Recipe("pixelcnn", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s)


def labelled_views(stochastic: bool, drop: float) -> Views:
    """Of :func:`sensorium.generative.binary.binary_views`, with ``label`` int64 [B], -1 where it is unknown or dropped."""
    plain = binary_views(stochastic)

    @reads("image", "label")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        batch, hidden = plain(fields, draw), draw.chance(drop)
        return {**batch, "label": torch.where(hidden.to(fields["label"].device), -1, fields["label"])}

    return views
