"""SimCLR: how to train it."""

from __future__ import annotations

from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_crop_min, pick_lr, pick_view_sizes
from sensorium.recipe.ranges import Log, Times, Uniform
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.simclr.method import SimCLR

RANGES = {
    "lr": Times(1 / 4, 4),
    "temperature": Log(0.05, 0.5),
    "crop_min": Log(0.08, 0.6),
    "strength": Uniform(0.25, 1.0),
}


def simclr(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float | None = None,
    crop_min: float | None = None,
    view_size: int | None = None,
    strength: float = 0.5,
    projection: int = 128,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
    patch_dropout: float = 0.0,
) -> Recipe:
    """SimCLR (Chen et al., 2020): contrastive learning of two views of each picture.

    Example: sensorium train simclr --data DIR --budget 10m --temperature 0.2

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        temperature: of the softmax over similarities; lower for small batches.
        projection: dimension of the projections that the loss compares.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        patch_dropout: fraction of a ViT's patches that are left out while it learns, others in each view.
        strength: of the color jitter (0.5 for small pictures, 1 in the paper's ImageNet setting).
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="SimCLR", patch_dropout=patch_dropout)
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3), batch, s)
    # Fewer negatives make the contrast easier; a lower temperature makes it hard again (SimCLR, table 5).
    tau = s.pick("temperature", temperature, 0.2 if batch <= 512 else 0.5, f"batch {batch}")
    smallest = pick_crop_min(crop_min, on, s)
    s.note(weight_decay=weight_decay, warmup=warmup, projection=projection, strength=strength)
    method = SimCLR(network, ProjectionHead(network.dim, max(network.dim, 256), projection), temperature=tau)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    views = growing(lambda px: simclr_views(on.mean, on.std, px, strength=strength, scale=(smallest, 1.0)), sides)
    made = Recipe(
        "simclr", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)
