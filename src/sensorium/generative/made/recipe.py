"""MADE: how to train it, and its view of an image."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.generative.binary import binary_views
from sensorium.generative.made.method import MADE
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings

MOST_LAYERS, MOST_MASKS = 100, 100


def made(
    on: Situation,
    *,
    hidden: int | None = None,
    layers: int = 2,
    masks: int = 1,
    natural: bool = False,
    stochastic: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
) -> Recipe:
    """MADE (Germain et al., 2015): the exact probability of a black-and-white picture, pixel by pixel.

    Example: sensorium train made --data DIR --budget 5m

    Args:
        hidden: units of a hidden layer.
        layers: hidden layers.
        masks: sets of masks, used in turn; averaged in evaluation.
        natural: pixels in reading order; otherwise in a random order.
        stochastic: in training, binarize pixels at random with their intensity as probability; otherwise by threshold,
            as always in evaluation.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    units = s.pick("hidden", hidden, 500 if on.device == "cpu" else 2000, on.device)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3, batch, s)
    s.note(layers=layers, masks=masks, natural=natural, stochastic=stochastic, weight_decay=weight_decay, warmup=warmup)
    if not (1 <= layers <= MOST_LAYERS and 1 <= masks <= MOST_MASKS):
        raise SensoriumError(
            f"--layers {layers} and --masks {masks}: from 1 to {MOST_LAYERS}, and from 1 to {MOST_MASKS:,}."
        )
    shape, order = (1, on.image_size, on.image_size), "natural" if natural else "random"
    method = MADE(shape, (units,) * layers, order=order, seeds=range(masks))
    return Recipe(
        "made",
        method,
        binary_views(stochastic),
        adamw(rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )
