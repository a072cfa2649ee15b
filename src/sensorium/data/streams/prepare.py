"""Streams: recordings with a label for every step, or without any, cut into frames and windows.

A signal of many samples per second is cut into frames of several samples; frames are standardized by mean and standard
deviation of the training frames. New frames must be prepared the same way (:mod:`sensorium.use.watch`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import device_name
from sensorium.base.records import Amount, Count, Device, Size
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.data.images.open import open_data
from sensorium.data.log import tell
from sensorium.data.source import Source
from sensorium.data.streams.clips import open_clips
from sensorium.data.streams.faults import background
from sensorium.data.streams.open import UNKNOWN, AnyStream, Streams, Windows, open_streams
from sensorium.errors import SensoriumError


@dataclass(frozen=True)
class StreamSituation:
    """What a recipe's defaults depend on: the frames, their windows, and the machine.

    ``features`` values per frame, each of ``frame`` samples of a signal; ``classes``, of which ``background`` (None:
    none) is no action; windows of ``length`` frames and ``future`` after them, ``windows`` in all; ``rate`` in frames
    per second if known; ``mean`` and ``std`` of each value over the training frames, for standardization; ``encoder``:
    of the features, a run's folder or "motion", "" for raw data.
    """

    features: Size
    classes: tuple[str, ...]
    frame: Size
    length: Size
    future: Count
    windows: Count
    mean: tuple[float, ...]
    std: tuple[Amount, ...]
    rate: Amount | None = None
    background: Count | None = 0
    encoder: str = ""
    device: Device = "cpu"
    cores: Size = 1
    bf16: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"has {len(self.mean)} values of mean and {len(self.std)} of std")
        if self.background is not None and self.background >= len(self.classes):
            raise ValueError(f"has {len(self.classes)} classes, and background {self.background}")


SITUATION = StreamSituation
UNIT = "frames to learn from"
SHAPED_BY: tuple[str, ...] = ("frame", "length", "future")
KEPT: tuple[str, ...] = ()
LENGTHS = {"cpu": 32}
USUAL_LENGTH, USUAL_FUTURE = 64, 8
SIGNAL, FAST = 64, 20.0  # a signal, to be cut into frames: maximum values per step, minimum steps per second
FRAMES_A_SECOND = 4.0


@dataclass(frozen=True)
class Prepared:
    """Streams ready for training and evaluation; ``opened`` are in frames and standardized."""

    opened: Streams
    train: Windows
    frame: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    background: int | None

    @property
    def test(self) -> tuple[AnyStream, ...]:
        """The held-out recordings."""
        return self.opened.test


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Open the recordings, cut signals into frames of ``frame`` samples, and windows of ``length`` frames and
    ``future`` after them, which end at labeled frames, or if there are none, at all: then there are no classes."""
    for flag, value in (("--image-size", source.image_size), ("--limit", source.limit)):
        if value is not None:
            raise SensoriumError(f"{flag} is for pictures; this system learns from streams.")
    settings = source.settings
    opened = _open(source, progress)
    frame = _setting(settings, "frame", _usual_frame(opened))
    if frame > 1:
        opened = opened.framed(frame)
    longest = max(map(len, opened.train))
    length = _setting(settings, "length", min(LENGTHS.get(device_name(), USUAL_LENGTH), longest))
    future = _setting(settings, "future", USUAL_FUTURE)
    mean, std = (tuple(float(f"{v:.6g}") for v in values) for values in opened.moments())
    opened = opened.scaled(np.array(mean), np.array(std))
    known = any((stream.labels != UNKNOWN).any() for stream in opened.train)
    opened = opened if known else replace(opened, classes=())
    windows = Windows(opened.train, length, future, every=not known, classes=opened.classes)
    nothing = background(opened.classes)
    if progress:
        found = f"{opened.layout}: {len(opened.train):,} training and {counted(len(opened.test), 'test recording')}"
        tell([found, *opened.notes])
    return Prepared(opened, windows, frame, mean, std, nothing)


def situate(ready: Prepared) -> StreamSituation:
    """Size of frames and windows, classes, units and rate of the streams, and the machine."""
    device, windows = device_name(), ready.train
    return StreamSituation(
        windows.width,
        tuple(ready.opened.classes),
        ready.frame,
        windows.length,
        windows.future,
        len(windows),
        ready.mean,
        ready.std,
        ready.opened.rate,
        ready.background,
        ready.opened.encoder,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
    )


def wanted(situation: StreamSituation) -> dict[str, Any]:
    return {"settings": {name: getattr(situation, name) for name in ("frame", "length", "future")}}


def keep(ready: Prepared, folder: Path) -> None:
    """Nothing: classes and units are in the situation."""


def describe(ready: Prepared) -> dict[str, Any]:
    """Counts are of frames."""
    opened = ready.opened
    lasting = "" if opened.rate is None else f" of {1 / opened.rate:.3g} s"
    notes = [*opened.notes, *(f"{skip.file}: {skip.reason}" for skip in opened.skipped[:5])]
    if not opened.classes:
        notes.append("No training frame has a label: systems that need none learn from all frames.")
    elif ready.background is None:
        notes.append(f"No class is treated as background: '{opened.classes[0]}' counts as an action.")
    return {
        "layout": opened.layout,
        "train": sum(map(len, opened.train)),
        "test": sum(map(len, opened.test)),
        "classes": list(opened.classes),
        "unit": f"frames{lasting}",
        "recordings": {"train": len(opened.train), "test": len(opened.test)},
        "notes": notes,
    }


def diagnose(ready: Prepared, *, progress: bool = False) -> None:
    """None: the reader's findings are in the description."""


def _open(source: Source, progress: bool) -> Streams:
    if source.path != "scenes" and not source.path.startswith("scenes:"):
        return open_streams(source.path, test=source.test)
    scenes = open_data(source.path)
    with bar("rendering clips", progress) as advance:
        found = open_clips(len(scenes.train), len(scenes.test or ()), source.cache, progress=advance)
    return replace(found, path=source.path)


def _setting(settings: dict[str, Any], name: str, usual: int) -> int:
    value = settings.get(name)
    value = usual if value is None else int(value)
    if value < 1:
        raise SensoriumError(f"--{name} {value}: must be at least 1.")
    return value


def _usual_frame(opened: Streams) -> int:
    """A quarter of a second for a signal (by its rate and few values per step); 1 for everything else."""
    if opened.rate is None or opened.rate < FAST or opened.width > SIGNAL:
        return 1
    shortest = min(map(len, (*opened.train, *opened.test)))
    return max(1, min(round(opened.rate / FRAMES_A_SECOND), shortest))
