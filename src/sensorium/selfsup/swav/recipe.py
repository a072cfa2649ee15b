"""SwAV: how to train it, and its crops of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Views
from sensorium.data.augment.crops import drawn, simclr_view
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_local_size, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import Log, Times
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.swav.method import SwAV

RANGES = {
    "lr": Times(1 / 4, 4),
    "temperature": Log(0.05, 0.2),
    "prototypes": Times(1 / 4, 4),
    "crop_min": Log(0.08, 0.6),
}


def swav(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    prototypes: int | None = None,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    queue: int | None = None,
    local_crops: int | None = None,
    queue_start: float = 0.075,
    crop_min: float | None = None,
    projection: int = 128,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    local_size: int | None = None,
    view_size: int | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """SwAV (Caron et al., 2020): crops of a picture predict each other's cluster assignments.

    Example: sensorium train swav --data DIR --budget 10m --prototypes 300

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step.
        lr: peak learning rate.
        prototypes: number of clusters; many times the number of classes that one expects.
        temperature: of the softmax over prototypes.
        epsilon: entropy of the codes in Sinkhorn-Knopp; lower for harder codes.
        queue: projections of earlier batches that are assigned with each batch, per global crop; 0 for none.
        local_crops: small crops a picture, beside the two global ones.
        queue_start: fraction of the budget after which the queue is filled.
        crop_min: minimum area of a global crop, as a fraction of the picture.
        projection: dimension of the projections.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        local_size: side of local crops in pixels.
        view_size: side of the global crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
    """
    _check(prototypes=prototypes, queue=queue, local_crops=local_crops)
    s = Settings()
    network = build_backbone(backbone, on, s, by="SwAV")
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    vit = isinstance(network, TokenEncoder)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 4e-3 if on.device == "cpu" and not vit else 1e-3), batch, s)
    given, usual = {"prototypes": prototypes, "queue": queue, "local_crops": local_crops}, _swav_defaults(on, batch)
    many, kept, locals_ = (s.pick(name, given[name], *usual[name]) for name in given)
    # Without local crops the global ones must hide enough of the picture themselves.
    smallest = s.pick("crop_min", crop_min, 0.14 if locals_ else 0.2, f"{locals_} local crops")
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    small = pick_local_size(local_size, sides[-1], 3 / 7, "three sevenths", network, s)
    how: dict[str, Any] = {"temperature": temperature, "epsilon": epsilon, "queue_start": queue_start}
    s.note(**how, projection=projection, weight_decay=weight_decay, warmup=warmup)
    head = mlp_head(network.dim, max(network.dim, 256) if on.device == "cpu" else 2048, projection, bias=True)
    with refused_by("swav"):
        method = SwAV(network, head, nn.Linear(projection, many, bias=False), queue=kept, **how)
    views = growing(lambda px: swav_views(on.mean, on.std, px, small, locals_, global_scale=(smallest, 1.0)), sides)
    made = Recipe(
        "swav", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def _check(**given: int | None) -> None:
    for name, value in given.items():
        least = 2 if name == "prototypes" else 0
        if value is not None and value < least:
            must = f"be at least {least}" if least else "not be negative"
            raise SensoriumError(f"--{name.replace('_', '-')} {value}: must {must}.")


def _swav_defaults(on: Situation, batch: int) -> dict[str, tuple[Any, str]]:
    """Each setting's value and its reason.

    The paper has 3,000 prototypes for 1,000 classes, and a queue of 15 batches where a batch is smaller than that (its
    batch of 256). A CPU does a thousand or two steps in some minutes: with as many prototypes as its batch has pictures the
    codes need no queue, and local crops cost more time than they are worth.
    """
    if on.device == "cpu":
        usual = {"prototypes": 128, "queue": 0, "local_crops": 0}
        return {name: (value, "a CPU has time for few steps, of small batches") for name, value in usual.items()}
    many = 512 if on.images < 200_000 else 3000
    return {
        "prototypes": (many, f"{on.images:,} training images"),
        "queue": (15 * batch if batch < many else 0, f"batch {batch}"),
        "local_crops": (2 if on.image_size <= 64 else 6, f"image size {on.image_size}"),
    }


def swav_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    local_size: int,
    local_crops: int,
    *,
    global_scale: tuple[float, float] = (0.14, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.14),
) -> Views:
    """Multi-crop (section 3.2 and appendix): ``{"crops": [2 global, then local]}``, all with SimCLR's augmentation.

    Up to 64 pixels the jitter is half as strong and there is no blur, as in SimCLR.
    """
    first, local = (
        simclr_view(side, scale, strength=0.5 if size <= 64 else 1.0, blur=0.0 if size <= 64 else 0.5)
        for side, scale in ((size, global_scale), (local_size, local_scale))
    )
    return drawn("crops", [first, first, *[local] * local_crops], mean, std)
