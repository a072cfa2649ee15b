"""Margin contrastive: how to train it."""

from __future__ import annotations

from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_crop_min, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.margin_contrastive.method import MarginContrastive


def margin_contrastive(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    margin: float = 1.0,
    crop_min: float | None = None,
    view_size: int | None = None,
    strength: float = 0.5,
    projection: int = 128,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """Margin contrastive (Hadsell, Chopra, LeCun, 2006): views of a picture are pulled together, others pushed apart.

    Example: sensorium train margin_contrastive --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        margin: distance up to which views of different pictures are pushed apart.
        projection: dimension of the outputs that the loss compares.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        strength: of the color jitter, as in SimCLR.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="Margin contrastive")
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    smallest = pick_crop_min(crop_min, on, s)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup, projection=projection, strength=strength, margin=margin)
    with refused_by("margin_contrastive"):
        head = mlp_head(network.dim, max(network.dim, 256), projection)
        method = MarginContrastive(network, head, margin=margin)
    views = growing(lambda px: simclr_views(on.mean, on.std, px, strength=strength, scale=(smallest, 1.0)), sides)
    schedule = lambda f: warmup_cosine(f, warmup)  # noqa: E731
    made = Recipe("margin_contrastive", method, views, optimizer_of(by, rate, weight_decay), schedule, batch, s)
    return heads_first(made, head_first)
