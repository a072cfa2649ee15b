"""Images: decoded once into a memory map, square, with or without labels."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import device_name
from sensorium.base.records import Amount, Count, Device, Side, Size
from sensorium.base.terminal import bar
from sensorium.base.words import counted, plural
from sensorium.data.images import diagnose as diagnosis
from sensorium.data.images.cache import Pixels, cache, natural_size
from sensorium.data.images.open import Opened, open_data
from sensorium.data.images.values import Scale
from sensorium.data.log import tell
from sensorium.data.source import Source
from sensorium.errors import SensoriumError


@dataclass(frozen=True)
class Situation:
    """What a recipe's defaults depend on: the data and the machine.

    ``image_size`` in pixels, ``images`` in the training set, ``classes`` () where unlabeled, ``mean`` and ``std`` per
    channel in 0..1 scale, ``device`` "cpu", "cuda" or "mps", ``cores`` of the CPU, ``bf16`` whether the device has
    bfloat16 units. ``scale``: the values of 16-bit and float images that are black and white, None where all have 8 bits.
    """

    image_size: Side
    images: Count
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[Amount, Amount, Amount]
    device: Device = "cpu"
    cores: Size = 1
    bf16: bool = False
    scale: Scale | None = field(default=None, kw_only=True)


SITUATION = Situation
UNIT = "readable training images"
SHAPED_BY: tuple[str, ...] = ()
KEPT: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Data ready for training and evaluation: decoded, square, memory-mapped."""

    opened: Opened
    train: Pixels
    test: Pixels | None
    size: int


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Open the data, choose the working size (``source.image_size`` pixels, or from the images) and cache the
    pixels."""
    opened = open_data(source.path, test=source.test, limit=source.limit, scale=source.scale)
    size = source.image_size or natural_size(opened.train, cpu=device_name() == "cpu")
    if size < 8:
        raise SensoriumError(f"--image-size {size}: must be at least 8 pixels.")
    held = opened.test if opened.test is not None else opened.val
    with bar("decoding", progress) as advance:
        train = cache(opened.train, size, source.cache, progress=advance)
    with bar("decoding the test set", progress) as advance:
        test = None if held is None else cache(held, size, source.cache, progress=advance)
    if progress:
        beside = "" if test is None else f" and {counted(len(test), 'test image')}"
        tell(
            [
                f"{opened.layout}: {counted(len(train), 'training image')}{beside}",
                *opened.notes,
                *_lost(opened, train, test),
            ]
        )
    return Prepared(opened, train, test, size)


def _lost(opened: Opened, train: Pixels, test: Pixels | None) -> list[str]:
    """A sentence about the images that could not be decoded."""
    before = len(opened.train) + (0 if test is None else len(opened.test or opened.val or ()))
    lost = before - len(train) - (0 if test is None else len(test))
    return [f"{counted(lost, 'image')} cannot be decoded and {plural(lost, 'is')} skipped."] if lost else []


def situate(ready: Prepared) -> Situation:
    """Size, count, classes and statistics of the images, and the machine."""
    device, pixels = device_name(), ready.train
    return Situation(
        ready.size,
        len(pixels),
        tuple(pixels.classes),
        pixels.mean,
        pixels.std,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
        scale=ready.opened.scale,
    )


def wanted(situation: Situation) -> dict[str, Any]:
    return {"image_size": situation.image_size, "scale": situation.scale}


def keep(ready: Prepared, folder: Path) -> None:
    """Nothing: the images stay where they are."""


def describe(ready: Prepared) -> dict[str, Any]:
    return {
        "layout": ready.opened.layout,
        "train": len(ready.train),
        "test": len(ready.test) if ready.test is not None else 0,
        "classes": list(ready.train.classes),
        "image_size": ready.size,
    }


def diagnose(ready: Prepared, *, progress: bool = False) -> dict[str, Any]:
    """Counts, sizes, imbalance, duplicates, overlap and broken files of the images."""
    with bar("checking the data", progress) as advance:
        return diagnosis.diagnose(ready.opened, progress=advance).as_dict()
