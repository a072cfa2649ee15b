"""SupCon: how to train it, and its views of an image with its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.base.draw import Draw, Views
from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.supcon.method import SupCon


def supcon(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = 0.1,
    crop_min: float = 0.2,
    view_size: int | None = None,
    strength: float = 0.5,
    projection: int = 128,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """SupCon (Khosla et al., 2020): contrastive learning in which pictures of one class attract each other.

    A picture without a label attracts its own other view only.

    Example: sensorium train supcon --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        temperature: of the softmax over similarities.
        projection: dimension of the projections that the loss compares.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        strength: of the color jitter, as in SimCLR.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    if len(on.classes) < 2:
        what = "no labels" if not on.classes else f"one class only ('{on.classes[0]}')"
        raise SensoriumError(
            f"'supcon' needs at least two classes; the data has {what}. Train a system that needs no labels, or give a "
            "folder per class."
        )
    s = Settings()
    network = build_backbone(backbone, on, s, by="SupCon")
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup, projection=projection, strength=strength)
    s.note(temperature=temperature, crop_min=crop_min)
    with refused_by("supcon"):
        # SimCLR's: the authors' has no normalizations, and its outputs need many steps to spread.
        head = ProjectionHead(network.dim, max(network.dim, 256), projection)
        method = SupCon(network, head, temperature=temperature)
    views = supcon_views(
        growing(lambda px: simclr_views(on.mean, on.std, px, strength=strength, scale=(crop_min, 1.0)), sides)
    )
    made = Recipe(
        "supcon", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def supcon_views(two: Views) -> Views:
    """``{"views": [x1, x2], "label"}``: what ``two`` draws, with the labels."""

    @reads("image", "label")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {**two(fields, draw), "label": fields["label"]}

    return views
