"""LeJEPA: how to train it, and its views of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sensorium.abilities import TokenEncoder
from sensorium.base.draw import Views
from sensorium.data.augment.crops import byol_view, drawn
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_local_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.lejepa.method import LeJEPA


def lejepa(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    trade_off: float = 0.05,
    slices: int | None = None,
    projection: int | None = None,
    local_crops: int | None = None,
    crop_min: float | None = None,
    local_size: int | None = None,
    view_size: int | None = None,
    weight_decay: float | None = None,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """LeJEPA (Balestriero and LeCun, 2025): views predict each other, and their embeddings are kept Gaussian.

    Example: sensorium train lejepa --data DIR --budget 10m --trade-off 0.02

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        trade_off: weight of the Gaussian regularization, from 0 to 1; the rest is that of the prediction.
        slices: random directions on which the embeddings are compared with a Gaussian.
        projection: dimension of the embeddings.
        crop_min: minimum area of a global crop, as a fraction of the picture.
        local_crops: small crops a picture, beside the two global ones.
        local_size: their side in pixels.
        view_size: side of the global crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
    """
    if not 0 <= trade_off <= 1:
        raise SensoriumError(f"--trade-off {trade_off:g}: must be from 0 to 1; the paper's are 0.01 to 0.1.")
    for name, value, least in (("slices", slices, 1), ("projection", projection, 1), ("local-crops", local_crops, 0)):
        if value is not None and value < least:
            must = f"be at least {least}" if least else "not be negative"
            raise SensoriumError(f"--{name} {value}: must {must}.")
    s = Settings()
    network = build_backbone(backbone, on, s, by="LeJEPA")
    cpu, vit = on.device == "cpu", isinstance(network, TokenEncoder)
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 2e-3 if cpu else 5e-4), batch, s)
    decay = s.pick("weight_decay", weight_decay, *((0.05, "the authors', of a ViT") if vit else (5e-4, "the authors'")))
    count = s.pick("slices", slices, *((256, "the authors' small example") if cpu else (1024, "the paper's")))
    width = s.pick("projection", projection, *((64, "a small network") if cpu else (128, "the authors' example")))
    locals_ = s.pick("local_crops", local_crops, *((0, "a CPU has time for few steps") if cpu else (6, "the authors'")))
    # Without local crops the global ones must hide enough of the picture themselves.
    smallest = s.pick("crop_min", crop_min, 0.3 if locals_ else 0.2, f"{locals_} local crops")
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    small = pick_local_size(local_size, sides[-1], 7 / 16, "7/16", network, s)  # 98 of 224 in the paper
    s.note(trade_off=trade_off, warmup=warmup)
    head = mlp_head(network.dim, *[512 if cpu else 2048] * 2, width, bias=True)
    method = LeJEPA(network, head, trade_off=trade_off, slices=count)
    views = growing(lambda px: lejepa_views(on.mean, on.std, px, small, locals_, smallest), sides)
    made = Recipe(
        "lejepa", method, views, optimizer_of(by, rate, decay), lambda f: warmup_cosine(f, warmup, 1e-3), batch, s
    )
    return heads_first(made, head_first)


def lejepa_views(
    mean: Sequence[float], std: Sequence[float], size: int, local_size: int, local_crops: int, smallest: float
) -> Views:
    """``{"crops": [2 global, then local]}``, of the same distribution but for their size, as the authors' (README): global
    ones cover from ``smallest`` to all of the picture, local ones 5 to 30 percent."""
    view = byol_view(size, (smallest, 1.0), 0.5, 0.2)
    local = replace(view, size=local_size, scale=(0.05, 0.3))
    return drawn("crops", [view, view, *[local] * local_crops], mean, std)
