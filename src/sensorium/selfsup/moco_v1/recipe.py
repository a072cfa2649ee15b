"""MoCo v1: how to train it, its view of an image, and the defaults that it shares with v2."""

from __future__ import annotations

import math
from typing import Any

from sensorium.data.augment.crops import drawn
from sensorium.data.augment.growing import growing
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import linear
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.moco_v1.method import MoCo


def moco_v1(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = 0.07,
    momentum: float | None = None,
    queue: int | None = None,
    crop_min: float = 0.2,
    view_size: int | None = None,
    projection: int = 128,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """MoCo v1 (He et al., 2019): contrastive learning against a queue of keys, which a moving average computes.

    Example: sensorium train moco_v1 --data DIR --budget 10m --queue 4096

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate; a tenth from 60 % of the budget, a hundredth from 80 %, as in the paper.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        temperature: of the softmax over similarities.
        momentum: of the key encoder's moving average.
        queue: keys of earlier batches, the negatives.
        projection: dimension of queries and keys.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="MoCo")
    by = pick_optimizer(optimizer, network, s)
    batch = pick_batch_size(batch_size, on, s, cpu=128 if by == "muon" else 64)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    m, size = pick_momentum(momentum, on, s), pick_queue(queue, on, s)
    check_temperature(temperature)
    s.note(weight_decay=weight_decay, warmup=warmup, temperature=temperature, projection=projection, crop_min=crop_min)
    numbers: dict[str, Any] = {"projection": projection, "queue": size, "temperature": temperature, "momentum": m}
    method = MoCo(network, mlp_head(network.dim, projection), **numbers, groups=pick_groups(batch, s))
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    # Instance discrimination's augmentation (section 3.3); the authors' code grays before it jitters.
    how: dict[str, Any] = {"scale": (crop_min, 1.0), "jitter": (0.4, 0.4, 0.4, 0.4), "jitter_p": 1.0, "grey_p": 0.2}
    views = growing(lambda px: drawn("views", [View(px, **how)] * 2, on.mean, on.std), sides)
    made = Recipe(
        "moco_v1", method, views, optimizer_of(by, rate, weight_decay), lambda f: stepped(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def stepped(fraction: float, warmup: float = 0.0) -> float:
    """Learning-rate factor: linear from 0.01 to 1 during ``warmup``, a tenth from 0.6 of the budget, a hundredth from
    0.8: epochs 120 and 160 of the paper's 200."""
    if fraction < warmup:
        return linear(0.01, 1.0, fraction / warmup)
    return 1.0 if fraction < 0.6 else 0.1 if fraction < 0.8 else 0.01


def pick_momentum(given: float | None, on: Situation, s: Settings) -> float:
    """The paper's 0.999 is for hundreds of thousands of steps; in a thousand its keys would stay those of an untrained
    network. If it is too small, keys in the queue differ by their age more than by their image: queries learn the age."""
    usual = (0.996, "a CPU has time for few steps") if on.device == "cpu" else (0.999, "MoCo, section 4.1")
    found = s.pick("momentum", given, *usual)
    if not 0 <= found <= 1:
        raise SensoriumError(f"--momentum {found:g}: must be at least 0 and at most 1; the paper's is 0.999.")
    return found


def pick_queue(given: int | None, on: Situation, s: Settings) -> int:
    """At most a fourth of the pictures, a power of two: in a longer queue an image would meet its own earlier keys as
    negatives in every epoch."""
    most, why = (4096, "a CPU has time for few steps") if on.device == "cpu" else (65_536, "the paper's")
    fit = 2 ** int(math.log2(max(on.images / 4, 16)))
    found = s.pick("queue", given, min(most, fit), f"{on.images:,} training images" if fit < most else why)
    if found < 1:
        raise SensoriumError(f"--queue {found}: must be at least 1.")
    return found


def pick_groups(batch: int, s: Settings) -> int:
    """Of the batch, for its normalization: the paper's 8 of 32 images; fewer in small batches, whose statistics would be
    noise."""
    return s.pick(
        "groups",
        None,
        max(1, min(8, 2 ** int(math.log2(max(batch / 16, 1))))),
        f"batch {batch}, at least 16 images each",
    )


def check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise SensoriumError(f"--temperature {temperature:g}: must be above 0.")
