"""MAE: how to train it."""

from __future__ import annotations

from typing import Any

import torch

from sensorium.abilities import TokenEncoder
from sensorium.data.augment.views import masked_views
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.masking import Masking, ranks
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import MUON_RATE, Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_size
from sensorium.recipe.ranges import Choice, Log, Times, Uniform
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.mae.method import MAE

RANGES = {
    "lr": Times(1 / 4, 4),
    "mask_ratio": Uniform(0.5, 0.9),
    "normalize_targets": Choice(True, False),
    "crop_min": Log(0.08, 0.6),
}


def mae(
    on: Situation,
    *,
    backbone: str | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mask_ratio: float = 0.75,
    masking: Masking = "random",
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    normalize_targets: bool = True,
    crop_min: float = 0.2,
    view_size: int | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    head_first: float | None = None,
) -> Recipe:
    """MAE (He et al., 2021): mask three quarters of the patches and reconstruct them.

    Example: sensorium train mae --data DIR --budget 10m --mask-ratio 0.6

    Args:
        backbone: a ViT by name, or the path of a checkpoint of one.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default on a CPU.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        mask_ratio: fraction of the patches that is masked; with 0 all are encoded, and all are predicted.
        masking: random patches, blocks (block), or all but a grid (grid).
        decoder_width: channels of the decoder.
        decoder_depth: layers of the decoder.
        normalize_targets: predict each patch normalized by its own mean and standard deviation.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    network = build_backbone(
        backbone, on, s, by="MAE", needs=TokenEncoder, positions="sincos", pool="mean", init="xavier"
    )
    by = pick_optimizer(optimizer, network, s, better=on.device == "cpu")
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate = pick_lr(lr, rate_of(by, 1.5e-3, MUON_RATE), batch, s)
    width = s.pick("decoder_width", decoder_width, max(64, network.dim // 2), "half the encoder's width")
    usual = 1 if network.depth <= 6 else 4 if network.depth < 12 else 8
    depth = s.pick("decoder_depth", decoder_depth, usual, f"encoder depth {network.depth}")
    s.note(weight_decay=weight_decay, warmup=warmup, mask_ratio=mask_ratio, masking=masking)
    s.note(normalize_targets=normalize_targets, crop_min=crop_min)
    if not 0.0 <= mask_ratio < 1.0:
        raise SensoriumError(f"--mask-ratio {mask_ratio} must be at least 0 and below 1; the paper's is 0.75.")
    how: dict[str, Any] = {"mask_ratio": mask_ratio, "masking": masking, "normalize_targets": normalize_targets}
    side = pick_view_size(view_size, network, on, s)
    grid = network.grid_of(torch.empty(1, 3, side, side, device="meta"))
    with refused_by("mae"):
        method = MAE(network, decoder_width=width, decoder_depth=depth, decoder_heads=max(1, width // 32), **how)
        masked = grid[0] * grid[1] - method.kept(grid[0] * grid[1])
    views = masked_views(on.mean, on.std, side, lambda draw: ranks(masking, draw, grid, masked), scale=(crop_min, 1.0))
    made = Recipe(
        "mae", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)
