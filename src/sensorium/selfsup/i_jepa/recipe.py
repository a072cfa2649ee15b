"""I-JEPA: how to train it, and its view of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import MUON_RATE, Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_size
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.i_jepa.masks import MultiBlock
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.i_jepa.predictor import Predictor


def i_jepa(
    on: Situation,
    *,
    backbone: str | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    targets: int = 4,
    target_min: float = 0.15,
    target_max: float = 0.2,
    context_min: float = 0.85,
    predictor_width: int | None = None,
    predictor_depth: int | None = None,
    crop_min: float = 0.3,
    view_size: int | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    head_first: float | None = None,
) -> Recipe:
    """I-JEPA (Assran et al., 2023): predict, from a part of a picture, features of blocks that it lacks.

    Example: sensorium train i_jepa --data DIR --budget 10m

    Args:
        backbone: a ViT by name, without class token, or the path of a checkpoint of one.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default on a CPU.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        momentum: initial momentum of the target encoder's moving average; it rises to 1.
        targets: blocks of a picture whose features are predicted.
        target_min: minimum area of such a block, as a fraction of the picture.
        target_max: its maximum area.
        context_min: minimum area of the block that is seen, before the others are cut out of it.
        predictor_width: channels of the predictor.
        predictor_depth: layers of the predictor.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    network = build_backbone(
        backbone, on, s, by="I-JEPA", needs=TokenEncoder, class_token=False, positions="sincos", init="xavier"
    )
    by = pick_optimizer(optimizer, network, s, better=on.device == "cpu")
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    # The authors' 1e-3 at batch 2,048, by the square root; a CPU's few steps stand more, as MAE's.
    rate = pick_lr(lr, rate_of(by, 1.5e-3 if on.device == "cpu" else 3.5e-4, MUON_RATE), batch, s)
    usual = _defaults(on, network)
    given = {"momentum": momentum, "predictor_width": predictor_width, "predictor_depth": predictor_depth}
    start, width, depth = (s.pick(name, given[name], *usual[name]) for name in given)
    s.note(targets=targets, target_min=target_min, target_max=target_max, context_min=context_min)
    s.note(crop_min=crop_min, weight_decay=weight_decay, warmup=warmup)
    side = pick_view_size(view_size, network, on, s)
    grid = network.grid_of(torch.empty(1, 3, side, side, device="meta"))
    with refused_by("i_jepa"):
        masks = MultiBlock(grid, targets, (target_min, target_max), context_scale=(context_min, 1.0))
        method = IJEPA(network, Predictor(network.dim, network.grid, width, depth, network.heads), momentum=start)
    views = i_jepa_views(on.mean, on.std, side, masks, scale=(crop_min, 1.0))
    made = Recipe(
        "i_jepa", method, views, optimizer_of(by, rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
    return heads_first(made, head_first)


def _defaults(on: Situation, network: Any) -> dict[str, tuple[Any, str]]:
    """Each setting's value and its reason. The paper's momentum of 0.996 is for 300 epochs of ImageNet: in a CPU's
    thousand or two steps the targets would stay those of random weights."""
    half, unit = min(384, network.dim // 2), math.lcm(4, network.heads)  # fixed positions need four channels each
    depth = 2 if network.depth <= 6 else 6 if network.depth <= 12 else 12
    start, data = 0.99 if on.images < 200_000 else 0.996, f"{on.images:,} training images"
    return {
        "momentum": (0.98, "a CPU has time for few steps") if on.device == "cpu" else (start, data),
        "predictor_width": (max(unit, half // unit * unit), "half the encoder's width, at most the paper's 384"),
        "predictor_depth": (depth, f"encoder depth {network.depth}"),
    }


def i_jepa_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    masks: MultiBlock,
    *,
    scale: tuple[float, float] = (0.3, 1.0),
) -> Views:
    """I-JEPA (arXiv:2301.08243): a crop and nothing else, not even a flip, as in the authors' configurations; ``{"image",
    "context" [B, n], "targets" [B, M, m]}``, the last two indices of patches. Crops are bilinear (the authors': bicubic)."""
    view = View(size, scale, flip_p=0.0)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        image = view(fields["image"], draw, mean, std)
        context, targets = masks(draw)
        return {"image": image, "context": context.to(image.device), "targets": targets.to(image.device)}

    return views
