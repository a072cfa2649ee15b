"""Distillation: who teaches whom, and the crop that both see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.abilities import Encoder, MapEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.growing import growing
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.heads import heads_first
from sensorium.recipe.muon import Optimizer, optimizer_of, pick_optimizer, rate_of
from sensorium.recipe.optim import pick_batch_size, pick_lr, pick_view_sizes
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.recipe.trained import RunOrCheckpoint
from sensorium.selfsup.distill.method import Distill
from sensorium.selfsup.distill.teacher import FrozenTeacher


def distill(
    on: Situation,
    *,
    teacher: RunOrCheckpoint,
    backbone: str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    spatial: float | None = None,
    teacher_side: int | None = None,
    crop_min: float = 0.3,
    view_size: int | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    optimizer: Optimizer | None = None,
    teacher_width: int | None = None,
    head_first: float | None = None,
    view_size_first: int | None = None,
) -> Recipe:
    """Distillation (SimReg, Navaneet et al., 2022): a network learns the features of another one, without labels.

    Example: sensorium train distill --teacher sensorium-runs/supervised --data DIR --budget 5m --backbone resnet-micro

    Args:
        teacher: folder of a run of an encoder on pictures of this size, or the path of a published network.
        backbone: of the student: any by name, or the path of a checkpoint.
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        optimizer: adamw, or for random weights muon (orthogonal updates of matrices and filters), the default for airbench's
            network.
        warmup: fraction of the budget for learning rate warm-up.
        spatial: weight of a second loss, between feature maps or patch tokens; by default 1 where both networks have them,
            0 for none.
        crop_min: minimum area of a crop, as a fraction of the picture.
        view_size: side of the student's crops in pixels.
        view_size_first: initial side, which grows to view_size in the first half of the budget; small crops cost less.
        teacher_side: pixels to which crops are resized for the teacher; by default the size that it was trained at, at
            most 224, and for a ResNet of a run the crop's.
        teacher_width: number of the teacher's features; read from it, and recorded to open the run without it.
        head_first: fraction of the budget in which a checkpoint's network rests and the heads alone learn; by default 0.1.
    """
    if spatial is not None and spatial < 0:
        raise SensoriumError(f"--spatial {spatial:g}: must not be negative.")
    if teacher_side is not None and teacher_side < 8:
        raise SensoriumError(f"--teacher-side {teacher_side}: must be at least 8 pixels.")
    s = Settings()
    s.note(teacher=teacher)
    network = build_backbone(backbone, on, s, by="Distillation", needs=MapEncoder if spatial else Encoder)
    sides = pick_view_sizes(view_size, view_size_first, network, on, s)
    batch = pick_batch_size(batch_size, on, s)
    by = pick_optimizer(optimizer, network, s)
    rate = pick_lr(lr, rate_of(by, 4e-3), batch, s)
    s.note(teacher_side=teacher_side, crop_min=crop_min, weight_decay=weight_decay, warmup=warmup)
    frozen = FrozenTeacher(teacher, on, teacher_side, teacher_width)
    if spatial is None:
        spatial = 1.0 if issubclass(type(network), MapEncoder) and frozen.has_maps else 0.0
    s.pick("spatial", None, spatial, "weight of the maps, which both networks have" if spatial else "no maps in common")
    width: int = s.pick(
        "teacher_width", None, frozen.width or frozen.check(sides[-1], maps=spatial > 0), "the teacher's"
    )
    head = ProjectionHead(network.dim, 2 * network.dim, width)
    method = Distill(network, head, frozen, width, spatial=spatial)
    views = growing(lambda px: distill_views(on.mean, on.std, px, crop_min), sides)
    build = optimizer_of(by, rate, weight_decay)
    made = Recipe("distill", method, views, build, lambda f: warmup_cosine(f, warmup), batch, s)
    return heads_first(made, head_first)


def distill_views(mean: Sequence[float], std: Sequence[float], size: int, crop_min: float) -> Views:
    """``{"image"}``: one crop of each picture, flipped and color-jittered, for teacher and student."""
    view = View(size, (crop_min, 1.0), jitter=(0.3, 0.3, 0.3, 0.05), jitter_p=1.0)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"image": view(fields["image"], draw, mean, std)}

    return views
