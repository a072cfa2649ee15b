"""Recipes of the detection family: what finds the objects of pictures.

Each function's keyword parameters are the flags of ``sensorium train NAME``. ``None`` follows from the data and the
machine; what was chosen and why is printed and kept with the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import MapEncoder, TokenEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.boxes import DIVISOR, train_box_views
from sensorium.data.boxes.cache import sample_of
from sensorium.detection.detr import DETR
from sensorium.detection.fcos import FCOS, Points
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.networks.fpn import FPN, shapes_of
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.recipe import Recipe, Settings, Situation


@dataclass(frozen=True)
class BoxSituation(Situation):
    """What defaults follow from: as of pictures, ``image_size`` being that of the longer side.

    ``most`` objects in a picture; ``typical`` and ``small``: the median and the 5th percentile of the objects' sides
    (the root of width times height), in pixels at ``image_size``.
    """

    most: int = 1
    typical: float = 32.0
    small: float = 16.0


def fcos(
    on: BoxSituation,
    *,
    backbone: str | None = None,
    stride: int | None = None,
    width: int | None = None,
    convs: int | None = None,
    groups: int | None = None,
    extra: int = 2,
    points: Points = "torchvision",
    radius: float = 1.5,
    batch_size: int | None = None,
    lr: float | None = None,
    backbone_lr: float | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    crop: float = 0.5,
    flip: bool = True,
    jitter: float = 0.2,
    check: bool = True,
) -> Recipe:
    """FCOS (Tian et al., 2019): every place of a pyramid says which object it lies in, and where its edges are.

    Example: sensorium train fcos --data DIR --budget 20m

    DIR holds pictures with boxes as COCO json, Pascal VOC XML or YOLO text.

    Args:
        backbone: resnet-micro ... resnet-101, vit-micro ... vit-huge, or a checkpoint's path.
        stride: of the finest level in pixels; small objects want a small one.
        width: channels of the pyramid.
        convs: layers of each of the head's two towers.
        groups: of the towers' norms; a published FCOS has 32.
        extra: coarser levels above the backbone's; a published FCOS has 2.
        points: where in its stride a place lies: torchvision's way, which can be exported, or the paper's.
        radius: how near to an object's centre a place that learns it must lie, in strides.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        backbone_lr: the backbone's, as a share of that; 0 keeps it as it is, and more pictures a second are seen.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        crop: share of the pictures of which a part is shown.
        flip: also show pictures mirrored; not of letters or digits.
        jitter: how strongly to change colours; 0 where colour tells the classes apart.
        check: before a long training, learn eight pictures by heart and say what is wrong where that fails.
    """
    s = Settings()
    small = on.device == "cpu"
    why = f"{on.cores}-core CPU" if small else on.device
    body = build_backbone(backbone, on, s, by="FCOS", needs=MapEncoder)
    published = Path(s["backbone"].value).exists()
    strides = shapes_of(body)[1]
    finest: int = s.pick("stride", stride, *_finest(strides, on))
    if finest not in strides:
        raise SensoriumError(f"--stride {finest}: the backbone's maps have {', '.join(map(str, strides))}.")
    channels: int = s.pick("width", width, 64 if small else 256, why)
    layers: int = s.pick("convs", convs, 2 if small else 4, why)
    default = 32 if channels % 32 == 0 else max(g for g in (16, 8, 4, 2, 1) if channels % g == 0)
    normed: int = s.pick("groups", groups, default, f"width {channels}")
    if channels < 1 or layers < 1 or extra < 0 or normed < 1 or channels % normed:
        raise SensoriumError(
            f"--width {channels}, --groups {normed}, --convs {layers}, --extra {extra}: want one or more (extra: 0), "
            "and groups that divide the width."
        )
    batch = _batch_size(batch_size, on, s)
    rate = s.pick("lr", lr, 1e-3 if channels <= 128 else 2e-4, f"width {channels}")
    slower = _backbone_lr(backbone_lr, *_paced(published), s)
    body.requires_grad_(slower > 0)
    s.note(extra=extra, points=points, radius=radius, weight_decay=weight_decay, warmup=warmup, crop=crop, flip=flip)
    s.note(jitter=jitter, check=check)
    levels = len(strides) - strides.index(finest)
    pyramid = FPN(body, levels=levels, width=channels, extra=extra, frozen_norms=published)
    method = FCOS(pyramid, len(on.classes), convs=layers, groups=normed, radius=radius, points=points)
    return _recipe("fcos", method, on, s, batch, adamw_apart(rate, weight_decay, slower), warmup, (crop, flip, jitter))


def detr(
    on: BoxSituation,
    *,
    backbone: str | None = None,
    queries: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    encoder_depth: int | None = None,
    decoder_depth: int | None = None,
    hidden: int | None = None,
    dropout: float | None = None,
    no_object: float = 0.1,
    batch_size: int | None = None,
    lr: float | None = None,
    backbone_lr: float | None = None,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    clip: float = 0.1,
    crop: float = 0.5,
    flip: bool = True,
    jitter: float = 0.2,
    check: bool = True,
) -> Recipe:
    """DETR (Carion et al., 2020): learnt queries each find one object, and no two the same.

    Example: sensorium train detr --data DIR --budget 1h

    DIR holds pictures with boxes as COCO json, Pascal VOC XML or YOLO text. It learns slowly: FCOS finds more in
    minutes.

    Args:
        backbone: resnet-micro ... resnet-101, vit-micro ... vit-huge, or a checkpoint's path.
        queries: the most objects that a picture can be found to have.
        width: channels of the transformer.
        heads: of attention.
        encoder_depth: layers of the encoder.
        decoder_depth: layers of the decoder.
        hidden: channels of the feed-forward layers.
        dropout: share of the activations that are hidden while training.
        no_object: weight of the class that stands for none.
        batch_size: pictures a step.
        lr: peak learning rate of AdamW.
        backbone_lr: the backbone's, as a share of that; 0 keeps it as it is, and more pictures a second are seen.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
        clip: most norm of the gradients, 0 for any.
        crop: share of the pictures of which a part is shown.
        flip: also show pictures mirrored; not of letters or digits.
        jitter: how strongly to change colours; 0 where colour tells the classes apart.
        check: before a long training, learn eight pictures by heart and say what is wrong where that fails.
    """
    s = Settings()
    small = on.device == "cpu"
    why = f"{on.cores}-core CPU" if small else on.device
    body = build_backbone(backbone, on, s, by="DETR", needs=MapEncoder)
    published = Path(s["backbone"].value).exists()
    asked: int = s.pick("queries", queries, max(20 if small else 100, 2 * on.most), f"{on.most} objects at most")
    channels: int = s.pick("width", width, 128 if small else 256, why)
    attentive: int = s.pick("heads", heads, max(1, channels // 32), "32 channels a head")
    encoding: int = s.pick("encoder_depth", encoder_depth, 2 if small else 6, why)
    decoding: int = s.pick("decoder_depth", decoder_depth, 3 if small else 6, why)
    wide: int = s.pick("hidden", hidden, 4 * channels if small else 8 * channels, f"width {channels}")
    hiding: float = s.pick("dropout", dropout, 0.0 if small else 0.1, "minutes are few" if small else why)
    batch = _batch_size(batch_size, on, s)
    rate = s.pick("lr", lr, 5e-4 if channels <= 128 else 1e-4, f"width {channels}")
    if small and published:
        slower = _backbone_lr(backbone_lr, 0.0, "kept as it is: a CPU sees more pictures so", s)
    else:
        slower = _backbone_lr(backbone_lr, *_paced(published), s)
    body.requires_grad_(slower > 0)
    s.note(no_object=no_object, weight_decay=weight_decay, warmup=warmup, clip=clip, crop=crop, flip=flip)
    s.note(jitter=jitter, check=check)
    if encoding < 0 or decoding < 1 or wide < 1 or attentive < 1 or channels % attentive:
        raise SensoriumError(
            f"--width {channels}, --heads {attentive}, --encoder-depth {encoding}, --decoder-depth {decoding}, "
            f"--hidden {wide}: want one or more (encoder: 0), and heads that divide the width."
        )
    try:
        method = DETR(
            body,
            len(on.classes),
            queries=asked,
            width=channels,
            heads=attentive,
            encoder_depth=encoding,
            decoder_depth=decoding,
            hidden=wide,
            dropout=hiding,
            freeze_norms=published,
            no_object=no_object,
            clip=clip,
        )
    except ValueError as error:
        raise SensoriumError(f"detr: {error}.") from None
    return _recipe("detr", method, on, s, batch, adamw_apart(rate, weight_decay, slower), warmup, (crop, flip, jitter))


def adamw_apart(lr: float, weight_decay: float, backbone: float) -> Callable[[Method], torch.optim.Optimizer]:
    """AdamW over the trainable parameters, the backbone's at ``backbone`` times the rate; biases and norms are not
    decayed.

    Whatever a detector adds to its backbone is a part of ``method.backbone`` only where that is a pyramid around a
    ``body``.
    """

    def build(method: Any) -> torch.optim.Optimizer:
        body = getattr(method.backbone, "body", method.backbone)
        own = {id(parameter) for parameter in body.parameters()}
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for parameter in method.parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in own, parameter.ndim > 1), []).append(parameter)
        described = [
            {
                "params": groups[key],
                "weight_decay": weight_decay if key[1] else 0.0,
                "lr_scale": backbone if key[0] else 1.0,
            }
            for key in sorted(groups)
        ]
        return torch.optim.AdamW(described, lr=lr, fused=True)

    return build


def box_views(on: BoxSituation, divisor: int, *, crop: float = 0.5, flip: bool = True, jitter: float = 0.2) -> Views:
    """``{"image" [B, 3, H, W], "boxes" and "labels" of each, "sizes" [B, 2], ...}`` of squares and rows of boxes.

    A random part, mirrored, resized so that its longer side is the situation's ``image_size``, in other colours; H
    and W are multiples of ``divisor``.
    """
    views = train_box_views(
        on.mean, on.std, on.image_size, crop_p=crop, flip_p=0.5 if flip else 0.0,
        jitter=(jitter, jitter, jitter, jitter / 4), divisor=divisor,
    )  # fmt: skip

    def of_rows(pixels: Tensor, rows: Tensor, draw: Draw) -> dict[str, Any]:
        return views([sample_of(image, row) for image, row in zip(pixels, rows, strict=True)], draw)

    return of_rows


def divisor_of(method: Any, size: int) -> int:
    """What height and width of a batch must be multiples of: a ViT sees squares of the size that it was made for."""
    body = getattr(method.backbone, "body", method.backbone)
    return size if isinstance(body, TokenEncoder) else DIVISOR


def _recipe(
    name: str,
    method: Any,
    on: BoxSituation,
    s: Settings,
    batch: int,
    optimizer: Callable[[Method], torch.optim.Optimizer],
    warmup: float,
    seen: tuple[float, bool, float],
) -> Recipe:
    # What goes with the weights, as in published ones.
    method.class_names, method.normalization = on.classes, (on.mean, on.std)
    method.sides = (on.image_size, on.image_size)
    crop, flip, jitter = seen
    if not (0 <= crop <= 1 and 0 <= jitter <= 1):
        raise SensoriumError(f"--crop {crop} and --jitter {jitter} are shares, 0 to 1.")
    views = box_views(on, divisor_of(method, on.image_size), crop=crop, flip=flip, jitter=jitter)
    return Recipe(name, method, views, optimizer, lambda f: warmup_cosine(f, warmup), batch, s)


def _finest(strides: tuple[int, ...], on: BoxSituation) -> tuple[int, str]:
    """The coarsest stride, 8 at most, of which small objects have one and a half; and the reason."""
    fitting = [one for one in strides if one <= min(8.0, on.small / 1.5)]
    if not fitting:
        return strides[0], "the backbone's finest"
    return max(fitting), f"one object in twenty is smaller than {on.small:.0f} px"


def _batch_size(given: int | None, on: BoxSituation, s: Settings) -> int:
    return s.pick(
        "batch_size", given, 8 if on.device == "cpu" else 16, f"pictures of {on.image_size} px on {on.device}"
    )


def _paced(published: bool) -> tuple[float, str]:
    return (0.1, "it was trained before") if published else (1.0, "it begins at random")


def _backbone_lr(given: float | None, default: float, why: str, s: Settings) -> float:
    rate: float = s.pick("backbone_lr", given, default, why)
    if rate < 0:
        raise SensoriumError(f"--backbone-lr {rate}: a share of the learning rate is 0 or more.")
    return rate
