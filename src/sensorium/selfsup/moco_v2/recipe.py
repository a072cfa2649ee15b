"""MoCo v2: the method of v1 (:mod:`sensorium.selfsup.moco_v1.method`) with a head of two layers, a stronger augmentation
and a cosine schedule (Chen et al., 2020, arXiv:2003.04297, table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sensorium.base.draw import Views
from sensorium.data.augment.crops import SMALL, drawn
from sensorium.data.augment.growing import growing
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import FromOne, Log, Times
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.moco_v1.method import MoCo
from sensorium.selfsup.moco_v1.recipe import check_temperature, pick_groups, pick_momentum, pick_queue

RANGES = {
    "lr": Times(1 / 4, 4),
    "temperature": Log(0.05, 0.5),
    "momentum": FromOne(1 / 4, 4),
    "crop_min": Log(0.08, 0.6),
}


def moco_v2(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = 0.2,
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
    """MoCo v2 (Chen et al., 2020): MoCo with SimCLR's head and augmentation, and a cosine schedule.

    Example: sensorium train moco_v2 --data DIR --budget 10m --queue 4096

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate.
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
    network = build_backbone(backbone, on, s, by="MoCo v2")
    by = pick_optimizer(optimizer, network, s)
    batch = pick_batch_size(batch_size, on, s, cpu=128 if by == "muon" else 64)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    m, size = pick_momentum(momentum, on, s), pick_queue(queue, on, s)
    check_temperature(temperature)
    s.note(weight_decay=weight_decay, warmup=warmup, temperature=temperature, projection=projection, crop_min=crop_min)
    head = mlp_head(network.dim, network.dim, projection, norm=False)
    numbers: dict[str, Any] = {"projection": projection, "queue": size, "temperature": temperature, "momentum": m}
    method = MoCo(network, head, **numbers, groups=pick_groups(batch, s))
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    views = growing(lambda px: moco_v2_views(on.mean, on.std, px, crop_min), sides)
    made = Recipe(
        "moco_v2", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def moco_v2_views(mean: Sequence[float], std: Sequence[float], size: int, crop_min: float) -> Views:
    """``{"views": [x1, x2]}``: SimCLR's augmentation with a weaker color jitter; up to 64 pixels they are not blurred."""
    blur = 0.5 if size > SMALL else 0.0
    view = View(size, (crop_min, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=blur)
    return drawn("views", [view] * 2, mean, std)
