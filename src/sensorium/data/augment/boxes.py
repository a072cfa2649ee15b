"""Augmentation of detection data: image and boxes transformed together, then stacked into a batch.

A view takes samples of :mod:`sensorium.data.boxes.open` and a ``Draw``, and gives a detector's batch: ``image`` float32 [B,
3, H, W], normalized; ``boxes`` a list of B [N, 4] in pixels of that image, ``labels`` and ``crowd`` lists of B [N];
``sizes`` int64 [B, 2], height and width without padding, which is zeros (the mean color), right and below;
``original`` int64 [B, 2], the size before; ``id`` a list; and, if every sample has masks, ``masks``, a list of B bool
[N, H, W], transformed with their boxes. All randomness comes from the draw, each sample's from its own row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from sensorium.base.draw import Draw

BoxViews = Callable[[Sequence[Mapping[str, Any]], Draw | None], dict[str, Any]]
DIVISOR = 32
_NUMBERS = 11  # random numbers per sample


@dataclass(frozen=True)
class BoxView:
    """The transforms of a sample, in this order: crop, flip, resize, color jitter.

    size: the longer side afterward, in pixels. crop_p: probability of a crop, whose fraction of the area is uniform in
    ``scale`` and whose aspect ratio is log-uniform in 3/4 to 4/3 (relative to the image's); a box is kept if the
    fraction ``visible`` of its area is, and there is no crop if no box would be kept. flip_p: of a horizontal flip.
    jitter: strengths of brightness, contrast, saturation and hue, as in torchvision's ColorJitter.
    """

    size: int
    crop_p: float = 0.0
    scale: tuple[float, float] = (0.3, 1.0)
    visible: float = 0.3
    flip_p: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __call__(self, sample: Mapping[str, Any], numbers: Sequence[float]) -> dict[str, Any]:
        """A sample and its ``numbers``, 11 in [0, 1) -> the transformed sample, with its size before as
        ``original``."""
        height, width = sample["image"].shape[1:]
        boxes = _tv_boxes(sample["boxes"], height, width)
        kept = torch.ones(len(boxes), dtype=torch.bool)
        moved: list[Any] = [tv_tensors.Image(sample["image"]), boxes]
        if "masks" in sample:
            moved.append(tv_tensors.Mask(sample["masks"]))
        if numbers[0] < self.crop_p:
            where, kept = self._crop(boxes, numbers[1:5])
            moved = [F.crop(one, *where) for one in moved]
        if numbers[5] < self.flip_p:
            moved = [F.horizontal_flip(one) for one in moved]
        image, boxes, *masks = moved
        factor = self.size / max(image.shape[-2:])
        size = [max(1, round(side * factor)) for side in image.shape[-2:]]
        if size != list(image.shape[-2:]):
            image, boxes = F.resize(image, size, antialias=True), F.clamp_bounding_boxes(F.resize(boxes, size))
            masks = [F.resize(one, size) for one in masks]
        seen = {k: v[kept] if k in ("labels", "crowd", "area") else v for k, v in sample.items()}
        if masks:
            seen["masks"] = masks[0].as_subclass(Tensor)[kept]
        found = boxes.as_subclass(Tensor)[kept]
        return seen | {
            "image": self._colours(image.as_subclass(Tensor), numbers[6:]),
            "boxes": found,
            "original": torch.tensor([height, width]),
        }

    def _crop(self, boxes: Any, numbers: Sequence[float]) -> tuple[list[int], Tensor]:
        """Top, left, height and width of a crop, and which boxes are still visible in it, bool [N]."""
        height, width = boxes.canvas_size
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * numbers[0]
        ratio = math.exp((2 * numbers[1] - 1) * math.log(4 / 3))
        h = min(height, max(1, round(height * math.sqrt(share / ratio))))
        w = min(width, max(1, round(width * math.sqrt(share * ratio))))
        where = [int(numbers[2] * (height - h + 1)), int(numbers[3] * (width - w + 1)), h, w]
        kept = _areas(F.crop(boxes, *where)) >= self.visible * _areas(boxes)
        if len(boxes) and not kept.any():
            return [0, 0, height, width], torch.ones_like(kept)
        return where, kept

    def _colours(self, image: Tensor, numbers: Sequence[float]) -> Tensor:
        change = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        # All orders of the four are equally likely; one number selects one.
        order, rest = list(range(4)), numbers[4]
        for left in range(4, 0, -1):
            rest *= left
            which = order.pop(int(rest))
            order.append(which)
            rest -= int(rest)
        for which in order:
            strength, number = self.jitter[which], 2 * numbers[which] - 1
            if strength and which == 3:
                image = F.adjust_hue(image, strength * number)
            elif strength:
                low = max(0.0, 1 - strength)
                image = change[which](image, low + (1 + strength - low) * (number + 1) / 2)
        return image


def _tv_boxes(boxes: Tensor, height: int, width: int) -> Any:
    kind: Any = tv_tensors.BoundingBoxes
    return kind(boxes, format="XYXY", canvas_size=(height, width))


def _areas(boxes: Tensor) -> Tensor:
    low, high = boxes.as_subclass(Tensor).split(2, dim=1)
    return (high - low).prod(1)


def train_box_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    crop_p: float = 0.5,
    scale: tuple[float, float] = (0.3, 1.0),
    flip_p: float = 0.5,
    jitter: tuple[float, float, float, float] = (0.2, 0.2, 0.2, 0.05),
    divisor: int = DIVISOR,
) -> BoxViews:
    """Training views: crop, flip, resize, color jitter, without crowd boxes. divisor: of height and width."""
    view = BoxView(size, crop_p, scale, flip_p=flip_p, jitter=jitter)

    def views(samples: Sequence[Mapping[str, Any]], draw: Draw | None) -> dict[str, Any]:
        if draw is None:
            raise ValueError("training views need a draw")
        numbers = replace(draw, device="cpu").rand(_NUMBERS).tolist()
        seen = [view(without_crowd(sample), row) for sample, row in zip(samples, numbers, strict=True)]
        return collate(seen, mean, std, divisor=divisor, device=draw.device)

    return views


def without_crowd(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The sample without crowd boxes."""
    kept = ~sample["crowd"]
    return {k: v[kept] if k in ("boxes", "labels", "crowd", "area", "masks") else v for k, v in sample.items()}


def collate(
    samples: Sequence[Mapping[str, Any]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    divisor: int = DIVISOR,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Transformed samples (``image`` uint8 [3, H_i, W_i]) -> a batch whose height and width are multiples of
    ``divisor``."""
    sizes = torch.tensor([s["image"].shape[1:] for s in samples])
    height, width = (-(-int(side) // divisor) * divisor for side in sizes.amax(0))
    images = torch.zeros(len(samples), 3, height, width, device=device)
    centre, spread = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))
    for row, sample in zip(images, samples, strict=True):
        h, w = sample["image"].shape[1:]
        row[:, :h, :w] = (sample["image"].to(device).float() / 255 - centre) / spread
    masks = [s["masks"].to(device) for s in samples if "masks" in s]
    padded = [F.pad(one, [0, 0, width - one.shape[2], height - one.shape[1]]) for one in masks]
    return {
        "image": images,
        **({"masks": padded} if len(masks) == len(samples) else {}),
        "boxes": [s["boxes"].to(device) for s in samples],
        "labels": [s["labels"].to(device) for s in samples],
        "crowd": [s["crowd"].to(device) for s in samples],
        "sizes": sizes.to(device),
        "original": torch.stack([s.get("original", size) for s, size in zip(samples, sizes, strict=True)]).to(device),
        "id": [s.get("id") for s in samples],
    }


def to_original(found: Sequence[Mapping[str, Tensor]], batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Detections in pixels of a batch -> in pixels of the original images."""
    factors = (batch["original"] / batch["sizes"]).flip(1).repeat(1, 2)  # [B, 4]
    return [
        {**result, "boxes": result["boxes"] * factor.to(result["boxes"])}
        for result, factor in zip(found, factors, strict=True)
    ]
