"""Self-training: who teaches, and the crop that both see."""

from __future__ import annotations

from sensorium.data.augment.growing import growing
from sensorium.data.augment.views import supervised_views
from sensorium.data.images.prepare import Situation
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.recipe.trained import RunFolder
from sensorium.selfsup.self_training.method import SelfTraining
from sensorium.selfsup.self_training.teacher import FrozenClassifier


def self_training(
    on: Situation,
    *,
    teacher: RunFolder,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    temperature: float = 1.0,
    alpha: float = 1.0,
    crop_min: float | None = None,
    view_size: int | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """Self-training (SimCLR v2, Chen et al., 2020): a network learns a classifier's probabilities, on pictures without labels, too.

    Example: sensorium train self_training --teacher sensorium-runs/supervised --data DIR --budget 10m

    Args:
        teacher: folder of a run of a classifier of the same classes, on pictures of this size.
        backbone: of the student: any by name, or the path of a checkpoint.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        temperature: of both networks' softmax; below 1 the targets are harder.
        alpha: weight of the teacher's probabilities; below 1 labels have the rest.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    s = Settings()
    s.note(teacher=teacher)
    network = build_backbone(backbone, on, s, by="Self-training")
    batch = pick_batch_size(batch_size, on, s)
    rate = pick_lr(lr, 2e-3, batch, s)
    smallest = s.pick("crop_min", crop_min, 0.3 if on.image_size <= 64 else 0.08, f"image size {on.image_size}")
    s.note(temperature=temperature, alpha=alpha, weight_decay=weight_decay, warmup=warmup)
    frozen = FrozenClassifier(teacher, on)
    with refused_by("self_training"):
        method = SelfTraining(network, len(on.classes), frozen, temperature=temperature, alpha=alpha)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    # crops and mirrors alone, as in section 3
    views = growing(lambda px: supervised_views(on.mean, on.std, px, scale=(smallest, 1.0)), sides)
    optimizer = adamw(rate, weight_decay, (0.9, 0.99))
    made = Recipe("self_training", method, views, optimizer, lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)
