"""Shared by recipes of detectors: views, optimizer, batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import HasBackbone, MapEncoder, TokenEncoder
from sensorium.base.draw import Draw, Views
from sensorium.data.augment.boxes import DIVISOR, train_box_views
from sensorium.data.boxes.cache import Boxed
from sensorium.data.boxes.prepare import BoxSituation
from sensorium.data.boxes.seen import Sight
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.networks.fpn import FPN
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.optim import undecayed
from sensorium.recipe.recipe import Recipe, Settings


def adamw_apart(lr: float, weight_decay: float, backbone: float) -> Callable[[Method], torch.optim.Optimizer]:
    """AdamW over the trainable parameters, the backbone's at ``backbone`` times the learning rate, with weight decay by
    the rule of :func:`sensorium.recipe.optim.undecayed`.

    The layers that a pyramid adds to the backbone have the full rate.
    """

    def build(method: Any) -> torch.optim.Optimizer:
        own = {id(parameter) for parameter in body_of(method).parameters()}
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        kept = undecayed(method)
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in own, name not in kept), []).append(parameter)
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
    """``{"image" [B, 3, H, W], "boxes" and "labels" of each, "sizes" [B, 2], ...}`` of images with boxes.

    A random crop, flip, resize so that its longer side is the situation's ``image_size``, and color jitter; H and W
    are multiples of ``divisor``.
    """
    views = train_box_views(
        on.mean, on.std, on.image_size, crop_p=crop, flip_p=0.5 if flip else 0.0,
        jitter=(jitter, jitter, jitter, jitter / 4), divisor=divisor,
    )  # fmt: skip

    @reads("image", "boxes", "labels")
    def of_rows(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        samples = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
        return views(
            [sample | {"crowd": torch.zeros_like(sample["labels"], dtype=torch.bool)} for sample in samples], draw
        )

    return of_rows


def body_of(method: HasBackbone) -> Any:
    """A detector's network, possibly inside a pyramid."""
    backbone = method.backbone
    return backbone.body if isinstance(backbone, FPN) else backbone


def square_of(method: Any, size: int) -> int:
    """The side of the square that a detector's pictures stand in, at least ``size``; a ViT takes only its own input
    size."""
    return size if isinstance(body_of(method), TokenEncoder) else -(-size // DIVISOR) * DIVISOR


def sight_of(method: Any, on: BoxSituation | Boxed) -> Sight:
    """How a detector that is trained in a situation, or on these images, sees pictures."""
    size = on.pixels.size if isinstance(on, Boxed) else on.image_size
    return Sight(on.mean, on.std, (size, size), square_of(method, size))


def detector_recipe(
    name: str,
    method: Any,
    on: BoxSituation,
    s: Settings,
    batch: int,
    optimizer: Callable[[Method], torch.optim.Optimizer],
    warmup: float,
    seen: tuple[float, bool, float],
) -> Recipe:
    # Stored with the weights, as in published ones.
    sight = sight_of(method, on)
    method.class_names, method.normalization = on.classes, (on.mean, on.std)
    method.sides, method.divisor = sight.sides, sight.divisor
    crop, flip, jitter = seen
    if not (0 <= crop <= 1 and 0 <= jitter <= 1):
        raise SensoriumError(f"--crop {crop} and --jitter {jitter}: must be from 0 to 1.")
    views = box_views(on, sight.divisor, crop=crop, flip=flip, jitter=jitter)
    return Recipe(name, method, views, optimizer, lambda f: warmup_cosine(f, warmup), batch, s)


def detector_batch_size(given: int | None, on: BoxSituation, s: Settings) -> int:
    return s.pick(
        "batch_size", given, 8 if on.device == "cpu" else 16, f"pictures of {on.image_size} px on {on.device}"
    )


def detector_backbone(given: str | None, on: BoxSituation, s: Settings, *, by: str) -> tuple[Any, bool]:
    """A network that gives maps, and whether it was trained before."""
    usual = ("resnet-micro", "coarse maps, of which a pyramid needs few more") if on.device == "cpu" else None
    body = build_backbone(given, on, s, by=by, needs=MapEncoder, default=usual)
    return body, Path(s["backbone"].value).exists()


def pick_backbone_lr(given: float | None, body: Any, published: bool, s: Settings, *, kept: bool = False) -> float:
    """The network's rate as a share of the others'; at 0 it is not trained. kept: what was trained before is left as it is."""
    default, why = (0.1, "it was trained before") if published else (1.0, "it begins at random")
    if kept and published:
        default, why = 0.0, "kept as it is: a CPU sees more pictures so"
    rate: float = s.pick("backbone_lr", given, default, why)
    if rate < 0:
        raise SensoriumError(f"--backbone-lr {rate}: a factor of the learning rate, must be at least 0.")
    body.requires_grad_(rate > 0)
    return rate
