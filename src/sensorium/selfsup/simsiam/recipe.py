"""SimSiam: how to train it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Muon, Optimizer, muon_groups, pick_optimizer, rate_of
from sensorium.recipe.optim import decay_groups, pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.simsiam.method import SimSiam

CONSTANT = {"scheduled": False}  # of groups of parameters: their learning rate


def simsiam(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    crop_min: float = 0.2,
    hidden: int | None = None,
    projection: int | None = None,
    bottleneck: int | None = None,
    view_size: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
    patch_dropout: float = 0.0,
) -> Recipe:
    """SimSiam (Chen & He, 2020): prediction of one's own projection of another view, by the stop-gradient alone.

    Example: sensorium train simsiam --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate; the predictor keeps it to the end.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        crop_min: minimum area of a crop, as a fraction of the picture.
        hidden: width of the projector's hidden layers; the authors': that of the features.
        projection: dimension of the projections that are predicted.
        bottleneck: width of the predictor's hidden layer.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that are left out while it learns, others in each view.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="SimSiam", patch_dropout=patch_dropout)
    by = pick_optimizer(optimizer, network, s)
    batch = pick_batch_size(batch_size, on, s, cpu=128 if by == "muon" else 64)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    small = on.device == "cpu"
    width = s.pick("hidden", hidden, network.dim, "the authors' code: as wide as the features")
    out = s.pick("projection", projection, *((512, "a CPU") if small else (2048, "the paper's")))
    narrow = s.pick("bottleneck", bottleneck, max(1, out // 4), "a quarter of the projection, as in the paper")
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup, crop_min=crop_min)
    projector = mlp_head(network.dim, width, width, out, standardized=True)
    method = SimSiam(network, projector, mlp_head(out, narrow, out))
    # The color jitter is weaker than SimCLR's above 64 px.
    views = growing(lambda px: simclr_views(on.mean, on.std, px, strength=0.5, scale=(crop_min, 1.0)), sides)
    build = partial(_muon if by == "muon" else _adamw, lr=rate, weight_decay=weight_decay)
    made = Recipe("simsiam", method, views, build, lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)


def _adamw(method: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; the predictor's rate is constant, since it should adapt to the latest projections (section 4.2)."""
    groups = [*decay_groups(method.backbone, weight_decay), *decay_groups(method.projector, weight_decay)]
    groups += [group | CONSTANT for group in decay_groups(method.predictor, weight_decay)]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def _muon(method: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon, and the predictor as with :func:`_adamw`."""
    predictor, groups = set(method.predictor.parameters()), []
    for group in muon_groups(method, weight_decay):
        for own in (False, True):
            some = [weight for weight in group["params"] if (weight in predictor) is own]
            groups += [group | {"params": some} | (CONSTANT if own else {})] if some else []
    return Muon(groups, lr, (0.9, 0.95))
