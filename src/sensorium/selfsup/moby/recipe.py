"""MoBY: how to train it."""

from __future__ import annotations

from typing import Any

from sensorium.data.augment.crops import byol_views
from sensorium.data.augment.growing import growing
from sensorium.data.images.prepare import Situation
from sensorium.parts.drop import rising_
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.selfsup.moby.method import MoBY


def moby(
    on: Situation,
    *,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = 0.2,
    momentum: float | None = None,
    negatives: int | None = None,
    drop_path: float | None = None,
    crop_min: float | None = None,
    hidden: int | None = None,
    projection: int | None = None,
    view_size: int | None = None,
    weight_decay: float = 0.05,
    warmup: float | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """MoBY (Xie et al., 2021): MoCo v2's queue of keys with BYOL's predictor and moving average, on a Swin.

    Example: sensorium train moby --data DIR --budget 10m --backbone swin-micro

    Args:
        backbone: any backbone by name, or the path of a checkpoint; on a GPU a Swin by default.
        batch_size: pictures per step, two views of each.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        temperature: of the softmax over similarities.
        momentum: initial momentum of the moving average that makes the keys; it rises to 1.
        negatives: keys of earlier batches in each of the two queues.
        drop_path: rate at the last block of the network that learns, if it has residual branches to drop.
        projection: dimension of queries and keys.
        hidden: channels inside projector and predictor.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
    """
    s, usual = Settings(), _defaults(on)
    network = build_backbone(backbone, on, s, by="MoBY", default=usual.pop("backbone", None))
    batch = pick_batch_size(batch_size, on, s, cpu=128)
    # On a GPU 1e-3 at a batch of 512, as in the authors' configuration.
    rate = pick_lr(lr, 2e-3 if on.device == "cpu" else 7e-4, batch, s)
    given = {"momentum": momentum, "negatives": negatives, "drop_path": drop_path, "hidden": hidden,
             "projection": projection, "crop_min": crop_min, "warmup": warmup}  # fmt: skip
    m, keys, drop, inner, out, smallest, warm = (s.pick(name, given[name], *usual[name]) for name in given)
    s.note(temperature=temperature, weight_decay=weight_decay)
    projector = mlp_head(network.dim, inner, out, bias=True)
    predictor = mlp_head(out, inner, out, bias=True)
    with refused_by("moby"):
        method = MoBY(
            network, projector, predictor, dim_keys=out, negatives=keys, temperature=temperature, momentum=m
        )  # fmt: skip
        rising_(method.backbone, drop)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    views = growing(lambda px: byol_views(on.mean, on.std, px, scale=(smallest, 1.0)), sides)
    made = Recipe("moby", method, views, adamw(rate, weight_decay), lambda f: warmup_cosine(f, warm), batch, s)
    return heads_first(made, head_first)


def _defaults(on: Situation) -> dict[str, tuple[Any, str]]:
    """Each setting's value and its reason. A CPU does some thousand steps of small batches: the moving average must follow
    faster, narrow heads cost less than the backbone, and a queue as long as the paper's would hold stale keys."""
    crop = 0.2 if on.image_size <= 64 else 0.08, f"image size {on.image_size}"
    few = f"{on.images:,} training images"
    if on.device == "cpu":
        usual = {
            "momentum": 0.98,
            "negatives": 1024,
            "drop_path": 0.0,
            "hidden": 512,
            "projection": 128,
            "warmup": 0.05,
        }
        return {name: (value, "a CPU has time for few steps") for name, value in usual.items()} | {"crop_min": crop}
    return {
        "backbone": ("swin-tiny", "the paper's"),
        "momentum": (0.99, "the authors' configuration"),
        "negatives": (4096, "the authors' configuration") if on.images >= 16_384 else (1024, few),
        "drop_path": (0.2, "the authors' configuration"),
        "hidden": (4096, "the authors' configuration"),
        "projection": (256, "the authors' configuration"),
        "warmup": (1 / 60, "5 of 300 epochs in the authors' configuration"),
        "crop_min": crop,
    }
