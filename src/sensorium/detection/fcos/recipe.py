"""FCOS: how to train it."""

from __future__ import annotations

from sensorium.data.boxes.prepare import BoxSituation
from sensorium.detection.fcos.method import FCOS, Points
from sensorium.errors import SensoriumError
from sensorium.networks.fpn import FPN
from sensorium.recipe.boxes import (
    adamw_apart,
    detector_backbone,
    detector_batch_size,
    detector_recipe,
    pick_backbone_lr,
)
from sensorium.recipe.recipe import Recipe, Settings, machine_of


def fcos(
    on: BoxSituation,
    *,
    backbone: str | None = None,
    stride: int | None = None,
    width: int | None = None,
    convs: int | None = None,
    extra: int = 2,
    batch_size: int | None = None,
    lr: float | None = None,
    backbone_lr: float | None = None,
    groups: int | None = None,
    points: Points = "torchvision",
    radius: float = 1.5,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    crop: float = 0.5,
    flip: bool = True,
    jitter: float = 0.2,
    check: bool = True,
) -> Recipe:
    """FCOS (Tian et al., 2019): one-stage detection without anchors; each location predicts a class and a box.

    Example: sensorium train fcos --data DIR --budget 20m

    DIR holds pictures with boxes as COCO json, Pascal VOC XML, YOLO text or Hugging Face objects.

    Args:
        backbone: resnet-micro ... resnet-101, vit-micro ... vit-huge, convnext-micro ..., swin-micro ..., or a checkpoint's path.
        stride: of the finest level in pixels; small objects need a small one.
        width: channels of the pyramid.
        convs: layers of each of the head's two towers.
        groups: of the towers' norms; a published FCOS has 32.
        extra: coarser levels above the backbone's; a published FCOS has 2.
        points: locations within a stride: torchvision's, which can be exported, or the paper's.
        radius: of center sampling, in strides.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        backbone_lr: learning rate of the backbone as a factor of lr; 0 freezes it, which is faster.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        crop: probability of a random crop.
        flip: also flip pictures horizontally; not for letters or digits.
        jitter: strength of color jitter; 0 if color distinguishes the classes.
        check: before a long training, check that the detector can overfit eight pictures.
    """
    s = Settings()
    body, published = detector_backbone(backbone, on, s, by="FCOS")
    levels = _levels(stride, body.strides, on, s)
    channels, layers, normed = _sizes(width, convs, groups, extra, on, s)
    batch = detector_batch_size(batch_size, on, s)
    rate = s.pick("lr", lr, 1e-3 if channels <= 128 else 2e-4, f"width {channels}")
    slower = pick_backbone_lr(backbone_lr, body, published, s)
    s.note(extra=extra, points=points, radius=radius, weight_decay=weight_decay, warmup=warmup, crop=crop, flip=flip)
    s.note(jitter=jitter, check=check)
    pyramid = FPN(body, levels=levels, width=channels, extra=extra, frozen_norms=published)
    method = FCOS(pyramid, len(on.classes), convs=layers, groups=normed, radius=radius, points=points)
    optimizer = adamw_apart(rate, weight_decay, slower)
    return detector_recipe("fcos", method, on, s, batch, optimizer, warmup, (crop, flip, jitter))


def _levels(stride: int | None, strides: tuple[int, ...], on: BoxSituation, s: Settings) -> int:
    """How many of the backbone's maps the pyramid stands on: the coarsest, down to the finest that is asked for."""
    finest: int = s.pick("stride", stride, *_finest(strides, on))
    if finest not in strides:
        raise SensoriumError(f"--stride {finest}: the backbone's maps have {', '.join(map(str, strides))}.")
    return len(strides) - strides.index(finest)


def _sizes(
    width: int | None, convs: int | None, groups: int | None, extra: int, on: BoxSituation, s: Settings
) -> tuple[int, int, int]:
    """Channels of the pyramid; layers of the towers and groups of their norms."""
    small, why = machine_of(on)
    channels: int = s.pick("width", width, 64 if small else 256, why)
    layers: int = s.pick("convs", convs, 2 if small else 4, why)
    default = next(each for each in (32, 16, 8, 4, 2, 1) if channels % each == 0)
    normed: int = s.pick("groups", groups, default, f"width {channels}")
    if channels < 1 or layers < 1 or extra < 0 or normed < 1 or channels % normed:
        raise SensoriumError(
            f"--width {channels}, --groups {normed}, --convs {layers}, --extra {extra}: want one or more (extra: 0), "
            "and groups that divide the width."
        )
    return channels, layers, normed


def _finest(strides: tuple[int, ...], on: BoxSituation) -> tuple[int, str]:
    """The coarsest stride up to 8 such that small objects span at least 1.5 strides; and the reason."""
    fitting = [one for one in strides if one <= min(8.0, on.small / 1.5)]
    if not fitting:
        return strides[0], "the backbone's finest"
    return max(fitting), f"one object in twenty is smaller than {on.small:.0f} px"
