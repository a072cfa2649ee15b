"""NADE: how to train it, and its views of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sensorium.base.draw import Draw, Views
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.binary import binary_views
from sensorium.generative.nade.method import NADE
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings

MOST_LAYERS, MOST_ORDERS = 100, 1000


def nade(
    on: Situation,
    *,
    hidden: int = 500,
    layers: int = 1,
    orderless: bool = False,
    orders: int | None = None,
    random_order: bool = False,
    stochastic: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
) -> Recipe:
    """NADE (Larochelle & Murray, 2011): the exact probability of a black-and-white picture, by hidden units that see it pixel by pixel.

    Example: sensorium train nade --data DIR --budget 10m

    Args:
        hidden: units of a hidden layer.
        layers: hidden layers; more than one with --orderless (DeepNADE).
        orderless: learn to predict pixels from any others (Uria et al., 2014), so that any order may be drawn in.
        orders: random orders over which an orderless one is averaged in evaluation, by default 2.
        random_order: pixels in a random order, otherwise in reading order; orderless ones have random orders.
        stochastic: in training, binarize pixels at random with their intensity as probability; otherwise by threshold,
            as always in evaluation.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 4e-2, batch, s)
    if not orderless and (layers > 1 or orders not in (None, 1)):
        raise SensoriumError("--layers and --orders above 1 are for an orderless NADE: add --orderless.")
    many = s.pick("orders", orders, 2 if orderless else 1, "orderless" if orderless else "one order")
    if not (1 <= layers <= MOST_LAYERS and 1 <= many <= MOST_ORDERS and hidden >= 1):
        raise SensoriumError(
            f"--hidden {hidden}, --layers {layers} and --orders {many}: from 1, to {MOST_LAYERS} layers and {MOST_ORDERS} orders."
        )
    s.note(hidden=hidden, layers=layers, orderless=orderless, random_order=random_order, stochastic=stochastic)
    s.note(weight_decay=weight_decay, warmup=warmup)
    seeds = range(many) if orderless or random_order else (None,)
    method = NADE((1, on.image_size, on.image_size), (hidden,) * layers, orderless=orderless, seeds=seeds)
    return Recipe(
        "nade",
        method,
        orderless_views(stochastic) if orderless else binary_views(stochastic),
        adamw(rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )


def orderless_views(stochastic: bool) -> Views:
    """Of :func:`sensorium.generative.binary.binary_views`, with ``known`` bool [B, 1, S, S], a random set of pixels."""
    plain = binary_views(stochastic)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        batch = plain(fields, draw)
        return {**batch, "known": known(draw, batch["image"])}

    return views


def known(draw: Draw, images: Tensor) -> Tensor:
    """k pixels of each image, k uniform in 0 .. D - 1: bool of the images' shape."""
    pixels = images[0].numel()
    count = (draw.rand() * pixels).long().clamp_(max=pixels - 1)
    rank = draw.rand(pixels).argsort(1).argsort(1)
    return (rank < count[:, None]).view_as(images).to(images.device)
