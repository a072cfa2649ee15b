"""SimMIM: how to train it."""

from __future__ import annotations

from sensorium.abilities import MaskedEncoder
from sensorium.data.augment.views import masked_views
from sensorium.data.images.prepare import Situation
from sensorium.parts.masking import Masking, ranks
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_size
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.simmim.method import SimMIM, usual_unit


def simmim(
    on: Situation,
    *,
    backbone: str | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mask_ratio: float = 0.6,
    mask_unit: int | None = None,
    masking: Masking = "random",
    crop_min: float = 0.67,
    view_size: int | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    head_first: float | None = None,
) -> Recipe:
    """SimMIM (Xie et al., 2021): mask squares of the picture and predict their pixels by one layer.

    Example: sensorium train simmim --data DIR --budget 10m --backbone swin-micro

    Args:
        backbone: a ViT or a Swin by name, or the path of a checkpoint of one.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters).
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        mask_ratio: fraction of the squares that is masked.
        mask_unit: side of the squares in pixels, a multiple of the patch.
        masking: random squares, blocks of them (block), or all but a grid (grid).
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="SimMIM", needs=MaskedEncoder, pool="mean")
    by = pick_optimizer(optimizer, network, s)
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    # The paper's 8e-4 at batch 2,048, by the square root; a CPU's few steps stand more.
    rate = pick_lr(lr, rate_of(by, 1e-3 if on.device == "cpu" else 3e-4), batch, s)
    side, patch = pick_view_size(view_size, network, on, s), network.strides[0]
    why = f"about a sixth of {side} px, in patches of {patch}; the paper's is 32 of 192"
    unit = s.pick("mask_unit", mask_unit, usual_unit(side, patch), why)
    s.note(mask_ratio=mask_ratio, masking=masking, crop_min=crop_min, weight_decay=weight_decay, warmup=warmup)
    with refused_by("simmim"):
        method = SimMIM(network, mask_unit=unit, mask_ratio=mask_ratio, masking=masking)
        grid = method.units(side, side)
        masked = method.masked(grid[0] * grid[1])
    views = masked_views(on.mean, on.std, side, lambda draw: ranks(masking, draw, grid, masked), scale=(crop_min, 1.0))
    build = optimizer_of(by, rate, weight_decay, betas=(0.9, 0.999))
    made = Recipe("simmim", method, views, build, lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)
