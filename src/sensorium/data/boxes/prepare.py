"""Images with boxes: decoded once into squares. Problems of the boxes are reported before training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import device_name
from sensorium.base.records import Amount, Count
from sensorium.base.terminal import bar
from sensorium.base.words import counted, plural
from sensorium.data.boxes.cache import Boxed, cache_boxes
from sensorium.data.boxes.open import BoxSet, OpenedBoxes, open_boxes
from sensorium.data.images.prepare import Situation
from sensorium.data.log import Skipped, tell
from sensorium.data.scenes.boxes import is_scenes, open_scene_boxes
from sensorium.data.source import Source
from sensorium.errors import SensoriumError


@dataclass(frozen=True)
class BoxSituation(Situation):
    """What a recipe's defaults depend on: as for images, with ``image_size`` that of the longer side.

    ``most``: maximum objects in an image; ``typical`` and ``small``: the median and the 5th percentile of the objects'
    sides (the root of width times height), in pixels at ``image_size``.
    """

    most: Count = 1
    typical: Amount = 32.0
    small: Amount = 16.0


SITUATION = BoxSituation
UNIT = "readable training pictures"
SHAPED_BY: tuple[str, ...] = ()
KEPT: tuple[str, ...] = ()
SIZES = (96, 128, 160, 192, 224, 256, 320, 416, 512, 640)
MOST_SIZE = {"cpu": 256}
SCENES_SIZE = 96
TYPICAL = 32  # side in pixels that the median object should have
NAMED = 20  # skipped entries that are listed
TINY, RARE = 4.0, 10


@dataclass(frozen=True)
class Prepared:
    """Images with boxes, ready for training and evaluation. ``skipped`` lists what could not be used."""

    opened: OpenedBoxes
    train: Boxed
    test: Boxed | None
    size: int
    skipped: tuple[Skipped, ...]

    @property
    def held(self) -> Boxed:
        """The evaluation set: the test images, or the training images if there are none."""
        return self.train if self.test is None else self.test


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Open images and boxes, choose the size of the longer side (``source.image_size`` pixels, or from the objects'
    sizes) and cache the squares."""
    size = source.image_size
    if size is not None and not 32 <= size <= 2048:
        raise SensoriumError(f"--image-size {size}: choose 32 to 2048 pixels.")
    if is_scenes(source.path):
        if source.test is not None:
            raise SensoriumError("--test: scenes have their own test pictures.")
        size = size or SCENES_SIZE
        with bar("reading boxes", progress) as advance:
            opened = open_scene_boxes(source.path, size, source.cache, limit=source.limit, progress=advance)
    else:
        opened = open_boxes(source.path, test=source.test, limit=source.limit, scale=source.scale)
    if not len(opened.train.boxes):
        raise SensoriumError(f"{opened.path}: no training picture has a box that can be used{_first(opened.skipped)}.")
    size = size or natural_size(opened.train)
    with bar("decoding", progress) as advance:
        train = cache_boxes(opened.train, size, source.cache, advance, exact=opened.test is None)
    test = None
    if opened.test is not None:
        with bar("decoding the test set", progress) as advance:
            test = cache_boxes(opened.test, size, source.cache, advance)
    skipped = (*opened.skipped, *(one for part in (train, test) if part is not None for one in part.pixels.skipped))
    ready = Prepared(opened, train, test, size, skipped)
    if progress:
        _say(ready)
    return ready


def natural_size(train: BoxSet) -> int:
    """The size at which the median object has a side of 32 pixels, one of 96 ... 640 (at most 256 on a CPU), and at
    most that of the median image."""
    longer = train.sizes.max(axis=1)
    sides = np.sqrt(np.prod(train.boxes[:, 2:] - train.boxes[:, :2], axis=1))
    shares = sides / np.repeat(longer, np.diff(train.starts))
    wanted = min(TYPICAL / float(np.median(shares)), float(np.median(longer)))
    most = MOST_SIZE.get(device_name(), SIZES[-1])
    return next((size for size in SIZES if wanted <= size <= most), most)


def situate(ready: Prepared) -> BoxSituation:
    """Size, count, classes and statistics of the images, how many and how large their objects are, and the
    machine."""
    device, train = device_name(), ready.train
    sides = object_sides(train)
    return BoxSituation(
        ready.size,
        len(train),
        tuple(train.classes),
        train.mean,
        train.std,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
        most=max(1, int(boxes_a_picture(train).max(initial=0))),
        typical=round(float(np.median(sides)), 1),
        small=round(float(np.quantile(sides, 0.05)), 1),
        scale=ready.opened.scale,
    )


def object_sides(part: Boxed) -> np.ndarray:
    """Root of width times height of each box without crowd, in pixels of the squares: float [M]."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes_in(i) for i in range(len(part)))])
    boxes = boxes[~part.truth.crowd]
    if not len(boxes):
        raise SensoriumError("no readable training picture has a usable box.")
    return np.sqrt(np.maximum(np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1), 0))


def boxes_a_picture(part: Boxed) -> np.ndarray:
    """Number of boxes without crowd of each image, int64 [N]."""
    image = np.repeat(np.arange(len(part)), np.diff(part.truth.starts))
    return np.bincount(image[~part.truth.crowd], minlength=len(part))


def wanted(situation: BoxSituation) -> dict[str, Any]:
    return {"image_size": situation.image_size, "scale": situation.scale}


def keep(ready: Prepared, folder: Path) -> None:
    """Nothing: the names of the classes are in the situation."""


def describe(ready: Prepared) -> dict[str, Any]:
    """Counts are of images."""
    parts = {"train": ready.train, "test": ready.test}
    return {
        "layout": ready.opened.layout,
        "train": len(ready.train),
        "test": 0 if ready.test is None else len(ready.test),
        "classes": list(ready.train.classes),
        "image_size": ready.size,
        "boxes": {name: 0 if part is None else len(part.truth.boxes) for name, part in parts.items()},
        "boxes_by_class": dict(zip(ready.train.classes, _by_class(ready.train).tolist(), strict=True)),
        "dropped": dict(ready.opened.counts),
        "notes": findings(ready),
        "skipped": [f"{one.file}: {one.reason}" for one in ready.skipped[:NAMED]],
    }


def diagnose(ready: Prepared, *, progress: bool = False) -> None:
    """None: the reader's findings are in the description."""


def findings(ready: Prepared) -> list[str]:
    """The reader's findings, as sentences."""
    told = list(ready.opened.notes)
    told += [f"{reason}: {count:,}." for reason, count in ready.opened.counts.items()]
    if broken := sum(len(part.pixels.skipped) for part in (ready.train, ready.test) if part is not None):
        told.append(f"image cannot be decoded: {broken:,}.")
    train = ready.train
    empty = int((np.diff(train.truth.starts) == 0).sum())
    if empty:
        told.append(
            f"{empty:,} of {counted(len(train), 'training picture')} {plural(empty, 'has')} no box: "
            f"{'a negative example' if empty == 1 else 'negative examples'}."
        )
    counts = _by_class(train)
    rare = [f"{train.classes[k]} ({counts[k]})" for k in np.argsort(counts, kind="stable") if counts[k] < RARE]
    if rare:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        told.append(f"Classes with few training boxes: {', '.join(rare[:5])}{more}.")
    if tiny := int((object_sides(train) < TINY).sum()):
        told.append(
            f"{counted(tiny, 'box')} {plural(tiny, 'is')} smaller than {TINY:.0f} px at {ready.size} px; "
            "a larger --image-size would help."
        )
    if ready.test is None:
        told.append("There are no test pictures: scores are on the training pictures.")
    return told


def _by_class(part: Boxed) -> np.ndarray:
    """Number of boxes without crowd of each class, int64 [K]."""
    truth = part.truth
    return np.bincount(truth.labels[~truth.crowd], minlength=len(truth.classes))


def _first(skipped: Sequence[Skipped]) -> str:
    return f"; the first unusable one is of {skipped[0].file}: {skipped[0].reason}" if skipped else ""


def _say(ready: Prepared) -> None:
    """Print what was found, on standard error, with the first skipped entries."""
    train, test = ready.train, ready.test
    held = "" if test is None else f", {counted(len(test), 'test picture')} with {len(test.truth.boxes):,}"
    told = [
        f"{ready.opened.layout}: {counted(len(train), 'training picture')} with "
        f"{counted(len(train.truth.boxes), 'box')} of {counted(len(train.classes), 'class')}{held}",
        *findings(ready),
        *(f"skipped {one.file}: {one.reason}" for one in ready.skipped[:3]),
    ]
    tell(told)
