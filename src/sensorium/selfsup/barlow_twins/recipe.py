"""Barlow Twins: how to train it."""

from __future__ import annotations

from sensorium.data.augment.crops import byol_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_crop_min, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import Log, Times
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.barlow_twins.method import BarlowTwins

RANGES = {"lr": Times(1 / 4, 4), "redundancy": Log(0.001, 0.03), "crop_min": Log(0.08, 0.6)}


def barlow_twins(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    redundancy: float | None = None,
    projection: int | None = None,
    crop_min: float | None = None,
    view_size: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
    patch_dropout: float = 0.0,
) -> Recipe:
    """Barlow Twins (Zbontar et al., 2021): two views agree in every dimension, and no two dimensions tell the same.

    Example: sensorium train barlow_twins --data DIR --budget 10m --projection 1024

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate (the paper: LARS).
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        redundancy: weight of the correlations between different dimensions.
        projection: dimension of the projections, and of the head's hidden layers.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that are left out while it learns, others in each view.
    """
    if redundancy is not None and redundancy < 0:
        raise SensoriumError(f"--redundancy {redundancy:g}: must not be negative; the paper's is 0.0051.")
    if projection is not None and projection < 2:
        raise SensoriumError(f"--projection {projection}: must be at least 2.")
    s = Settings()
    network = build_backbone(backbone, on, s, by="Barlow Twins", patch_dropout=patch_dropout)
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    # More dimensions are better in the paper (figure 4), and cost more than a small backbone.
    usual = (512, "on a CPU wider costs more than the backbone") if on.device == "cpu" else (8192, "the paper's")
    width = s.pick("projection", projection, *usual)
    weight = s.pick("redundancy", redundancy, 0.0051, "the paper's")
    smallest = pick_crop_min(crop_min, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup)
    method = BarlowTwins(network, mlp_head(network.dim, *[width] * 3, last_bias=False), redundancy=weight)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    views = growing(lambda px: byol_views(on.mean, on.std, px, scale=(smallest, 1.0)), sides)
    made = Recipe(
        "barlow_twins",
        method,
        views,
        optimizer_of(by, rate, weight_decay),
        lambda f: warmup_cosine(f, warmup),
        batch,
        s,
    )
    return heads_first(made, head_first)
