"""FVSBN: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.generative.binary import binary_views
from sensorium.generative.fvsbn.method import FVSBN
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings


def fvsbn(
    on: Situation,
    *,
    stochastic: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
) -> Recipe:
    """FVSBN (Frey, 1998): each pixel of a black-and-white picture by logistic regression on those before it.

    Example: sensorium train fvsbn --data DIR --budget 5m

    Args:
        stochastic: in training, binarize pixels at random with their intensity as probability; otherwise by threshold,
            as always in evaluation.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3, batch, s)
    s.note(stochastic=stochastic, weight_decay=weight_decay, warmup=warmup)
    return Recipe(
        "fvsbn",
        FVSBN((1, on.image_size, on.image_size)),
        binary_views(stochastic),
        adamw(rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )
