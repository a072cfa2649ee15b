"""VICReg: how to train it."""

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
from sensorium.selfsup.vicreg.method import VICReg

RANGES = {"lr": Times(1 / 4, 4), "covariance": Log(0.25, 8.0), "crop_min": Log(0.08, 0.6)}


def vicreg(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
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
    """VICReg (Bardes et al., 2022): two views agree, every dimension varies, and no two are correlated.

    Example: sensorium train vicreg --data DIR --budget 10m --covariance 4

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate (the paper: LARS).
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        invariance: weight of the distance between the two views.
        variance: weight of the standard deviations below 1.
        covariance: weight of the covariances between different dimensions.
        projection: dimension of the embeddings, and of the head's hidden layers.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that are left out while it learns, others in each view.
    """
    for name, weight in (("invariance", invariance), ("variance", variance), ("covariance", covariance)):
        if weight < 0:
            raise SensoriumError(f"--{name} {weight:g}: must not be negative.")
    if projection is not None and projection < 2:
        raise SensoriumError(f"--projection {projection}: must be at least 2.")
    s = Settings()
    network = build_backbone(backbone, on, s, by="VICReg", patch_dropout=patch_dropout)
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    usual = (512, "on a CPU wider costs more than the backbone") if on.device == "cpu" else (8192, "the paper's")
    width = s.pick("projection", projection, *usual)
    smallest = pick_crop_min(crop_min, on, s)
    s.note(invariance=invariance, variance=variance, covariance=covariance, weight_decay=weight_decay, warmup=warmup)
    head = mlp_head(network.dim, *[width] * 3, bias=True, last_bias=False)
    method = VICReg(network, head, invariance=invariance, variance=variance, covariance=covariance)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    views = growing(lambda px: byol_views(on.mean, on.std, px, scale=(smallest, 1.0)), sides)
    made = Recipe(
        "vicreg", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)
