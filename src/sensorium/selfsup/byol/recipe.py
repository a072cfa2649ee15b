"""BYOL: how to train it."""

from __future__ import annotations

from sensorium.data.augment.crops import byol_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_crop_min, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import FromOne, Log, Times
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.byol.method import BYOL

RANGES = {"lr": Times(1 / 4, 4), "momentum": FromOne(1 / 4, 4), "crop_min": Log(0.08, 0.6)}


def byol(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    crop_min: float | None = None,
    hidden: int | None = None,
    projection: int | None = None,
    view_size: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
    patch_dropout: float = 0.0,
) -> Recipe:
    """BYOL (Grill et al., 2020): prediction of what a moving average of the network gives of another view.

    Example: sensorium train byol --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        momentum: initial momentum of the target's moving average; it rises to 1.
        crop_min: minimum area of a crop, as a fraction of the picture.
        hidden: width of the projector's and the predictor's hidden layer.
        projection: dimension of the projections that are predicted.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that the network leaves out while it learns; its moving average sees all.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="BYOL", patch_dropout=patch_dropout)
    by = pick_optimizer(optimizer, network, s)
    batch = pick_batch_size(batch_size, on, s, cpu=128 if by == "muon" else 64)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    small = on.device == "cpu"
    # The authors' code: 0.97, 0.99, 0.99 and 0.996 for 40, 100, 300 and 1000 epochs of ImageNet.
    usual = (0.97, "a CPU has time for few steps") if small else (0.99, "the authors' code, up to 300 epochs")
    start = s.pick("momentum", momentum, *usual)
    smallest = pick_crop_min(crop_min, on, s)
    cheap = "a CPU: heads no wider than the backbone"
    width = s.pick("hidden", hidden, *((512, cheap) if small else (4096, "the paper's")))
    out = s.pick("projection", projection, *((128, cheap) if small else (256, "the paper's")))
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup)
    with refused_by("byol"):
        # As in the authors' code the output layers have no bias; that of the hidden ones a normalization takes away.
        heads = mlp_head(network.dim, width, out, last_bias=False), mlp_head(out, width, out, last_bias=False)
        method = BYOL(network, *heads, momentum=start)
    views = growing(lambda px: byol_views(on.mean, on.std, px, scale=(smallest, 1.0)), sides)
    made = Recipe(
        "byol", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)
