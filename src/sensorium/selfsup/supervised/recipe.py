"""The supervised baseline: how to train it."""

from __future__ import annotations

from sensorium.data.augment.views import supervised_views
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone, started_from
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr, pick_view_size
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.recipe.trained import RunFolder
from sensorium.selfsup.supervised.method import Supervised


def supervised(
    on: Situation,
    *,
    backbone: str | None = None,
    start: RunFolder | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    label_smoothing: float = 0.1,
    crop_min: float = 0.3,
    view_size: int | None = None,
) -> Recipe:
    """The supervised baseline: cross-entropy on every label, with crops, flips and color jitter.

    Example: sensorium train supervised --data DIR --budget 10m

    Args:
        backbone: any backbone by name, or the path of a checkpoint.
        start: folder of a run of any encoder, whose network is fine-tuned; instead of --backbone.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        label_smoothing: probability mass given to the other classes.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
    """
    if len(on.classes) < 2:
        what = "no labels" if not on.classes else f"one class only ('{on.classes[0]}')"
        raise SensoriumError(
            f"'supervised' needs at least two classes; the data has {what}. Leave it out, or give a folder per class."
        )
    s = Settings()
    by = "the supervised baseline"
    network = build_backbone(backbone, on, s, by=by) if start is None else started_from(start, backbone, on, s, by=by)
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3 if start is None else 5e-4, batch, s)
    s.note(weight_decay=weight_decay, warmup=warmup, label_smoothing=label_smoothing, crop_min=crop_min)
    method = Supervised(network, len(on.classes), label_smoothing=label_smoothing)
    side = pick_view_size(view_size, network, on, s)
    views = supervised_views(on.mean, on.std, side, scale=(crop_min, 1.0), jitter=(0.3, 0.3, 0.3, 0.05))
    optimizer = adamw(rate, weight_decay, (0.9, 0.99))
    return Recipe("supervised", method, views, optimizer, lambda f: warmup_cosine(f, warmup), batch, s)
