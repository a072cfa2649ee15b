"""Detection data: images with boxes, from COCO JSON, Pascal VOC XML or YOLO text (see :mod:`coco` and :mod:`files`).

A sample is ``{"image": uint8 [3, H, W], "boxes": float32 [N, 4] absolute (x1, y1, x2, y2), "labels": int64 [N],
"crowd": bool [N], "area": float32 [N], "id"}``, and if the files have outlines "masks": bool [N, H, W] (an object
without one is its box). Boxes are known without decoding an image, and are compared with the image's header:
    not finite, without width or height, outside the image, of an unknown class   dropped, listed and counted
    partly outside the image                                                      clipped to it and counted
    an outline that does not match the image                                      dropped and counted, the box is kept
    An image without boxes is kept as a negative example. ``crowd`` marks boxes that are ignored in training and
    evaluation: COCO's regions of many objects, VOC's "difficult" ones. ``area`` is COCO's if given (of the object's
    mask, which its evaluation uses for object sizes), else the box's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.boxes.masks import Outline, drawn, outline_of
from sensorium.data.images import decode
from sensorium.data.images.decode import BadImage
from sensorium.data.images.decode import _reason as reason_of
from sensorium.data.images.sets import EncodedImages, Source
from sensorium.data.log import Log, Skipped
from sensorium.data.scenes.scenes import Scenes
from sensorium.errors import SensoriumError

HELD_OUT = 0.2
_MOVED = 0.01  # pixels: rounding moves an edge by less, clipping by more


@dataclass
class Raw:
    """One image's entry in a file. ``at``: its index in ``source``; ``size`` (width, height) in the file, None if not
    given; ``boxes`` float64 [N, 4], edges in pixels, or in fractions of the image if ``relative``."""

    name: str
    id: Any
    at: int
    size: tuple[int, int] | None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    labels: list[str | None] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    outlines: list[Any] = field(default_factory=list)  # COCO's "segmentation"; none at all, or one per box
    relative: bool = False


@dataclass
class Listed:
    """One split from a reader."""

    source: Source
    raws: list[Raw]


@dataclass(frozen=True, eq=False)
class BoxSet:
    """Map-style images with boxes. ``rows`` int64 [N]: indices into ``images``; ``sizes`` int64 [N, 2]: heights and
    widths; ``boxes`` float32 [M, 4], ``labels`` int64, ``crowd`` bool and ``areas`` float32 [M] of all images,
    concatenated, those of image i at ``starts[i]:starts[i + 1]``; ``outlines`` [M] of their masks, or None if the
    files have none; ``classes`` by label, ``ids`` by image."""

    images: EncodedImages
    rows: np.ndarray
    ids: Sequence[Any]
    classes: tuple[str, ...]
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    outlines: Sequence[Outline | None] | None = None

    @property
    def names(self) -> list[str]:
        """The origin of each image, for display."""
        return [self.images.names[int(row)] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises :class:`BadImage` for an image that cannot be decoded."""
        index = range(len(self))[int(index)]
        found: Any = self.images[int(self.rows[index])]
        image = found["image"]
        height, width = (int(n) for n in self.sizes[index])
        if tuple(image.shape[1:]) != (height, width):
            there = f"{image.shape[2]} x {image.shape[1]}"
            name = self.images.names[int(self.rows[index])]
            raise BadImage(name, f"its header says {width} x {height} pixels, there are {there}")
        masks = {"masks": found["masks"]} if "masks" in found else {}  # scenes have them
        if not masks and self.masked:
            masks = {"masks": self.masks(index)}
        return {"image": image, **self.truth(index), **masks}

    @property
    def masked(self) -> bool:
        """Whether there are masks: of outlines in files, or of scenes."""
        return self.outlines is not None or isinstance(self.images, Scenes)

    def masks(self, index: int) -> Any:
        """Masks of image ``index``, bool [N, H, W] in its own pixels."""
        import torch

        if self.outlines is None:
            return self.images[int(self.rows[index])]["masks"]
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        height, width = (int(n) for n in self.sizes[index])
        return torch.from_numpy(drawn(self.outlines[rows], self.boxes[rows], (height, width)))

    def truth(self, index: int) -> dict[str, Any]:
        """A sample without its image and masks; nothing is decoded."""
        import torch  # here, so that inspecting a data set does not import torch

        index = range(len(self))[int(index)]
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        columns = {"boxes": self.boxes, "labels": self.labels, "crowd": self.crowd, "area": self.areas}
        return {k: torch.from_numpy(v[rows].copy()) for k, v in columns.items()} | {"id": self.ids[index]}

    def subset(self, indices: np.ndarray) -> BoxSet:
        """The images at ``indices`` (int [n]), in that order."""
        indices = np.asarray(indices, np.int64)
        counts = np.diff(self.starts)[indices]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        each = np.repeat(self.starts[indices] - starts[:-1], counts) + np.arange(starts[-1])
        return BoxSet(
            self.images, self.rows[indices], [self.ids[i] for i in indices], self.classes, self.sizes[indices], starts,
            self.boxes[each], self.labels[each], self.crowd[each], self.areas[each],
            None if self.outlines is None else [self.outlines[i] for i in each],
        )  # fmt: skip


@dataclass(frozen=True)
class OpenedBoxes:
    """The result of :func:`open_boxes`. ``skipped`` lists what was dropped, ``counts`` is the count of each reason,
    including clipped boxes; ``notes`` are sentences about choices."""

    path: str
    layout: str
    train: BoxSet
    test: BoxSet | None = None
    val: BoxSet | None = None
    skipped: tuple[Skipped, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_boxes(path: str | Path, *, test: str | Path | None = None, limit: int | None = None) -> OpenedBoxes:
    """Find the layout of ``path`` and open its images with their boxes.

    ``path`` is a COCO JSON (its images in a folder or a .tar near it), or a folder of any of the three layouts.
    ``test`` opens a second path as the test set; its classes are matched by name. Without one the validation set is the
    test set, and without that a fifth of the images is held out, the same fifth every time. ``limit`` keeps at most
    that many images of each set. Every image's header is read here, no image is decoded.
    Raises SensoriumError for a user's error: a wrong path, an unknown layout, a damaged file, no image at all.
    """
    from sensorium.data.boxes.files import find_boxes

    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {limit} images is too few; must be at least 1.")
    log, where = Log(), printable(str(path))
    layout, classes, listed = find_boxes(Path(path).expanduser(), log)
    if test is not None:
        second = find_boxes(Path(test).expanduser(), log)[2]
        listed = {k: v for k, v in listed.items() if k != "test"} | {"test": second.get("test") or second["train"]}
    if not classes:
        raise SensoriumError(f"{where}: no box has a class; looked for {layout} annotations.")
    sets = {split: checked_set(part, classes, log) for split, part in listed.items()}
    for split in ("train", "test"):
        if split in sets and not len(sets[split]):
            first = f"; the first is {log.skipped[0].file}: {log.skipped[0].reason}" if log.skipped else ""
            raise SensoriumError(f"{where}: none of the {split} images can be used{first}.")
    sets = _with_test(sets, log)
    if limit is not None:
        sets = {split: _limited(images, limit) for split, images in sets.items()}
    opened = OpenedBoxes(where, layout, sets["train"], sets.get("test"), sets.get("val"), tuple(log.skipped))
    return replace(opened, counts=dict(log.counts.most_common()), notes=tuple(log.notes))


def checked_set(listed: Listed, classes: tuple[str, ...], log: Log) -> BoxSet:
    """A file's entries, compared with the images' headers."""
    labels_of = {name: i for i, name in enumerate(classes)}
    kept: list[Raw] = []
    sizes, boxes, labels = [], [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)]
    crowd, areas = [np.zeros(0, bool)], [np.zeros(0, np.float32)]
    outlines: list[Outline | None] = []
    for raw in listed.raws:
        size = _size(raw, listed.source, log)
        if size is None:
            continue
        mine = np.array([-1 if name is None else labels_of.get(name, -1) for name in raw.labels], np.int64)
        found, good = checked_boxes(raw, mine, size, log)
        stated = np.array(raw.areas or [np.nan] * len(mine), np.float64)[good]
        own = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        said = [raw.outlines[i] for i in np.flatnonzero(good)] if raw.outlines else [None] * len(found)
        mine_outlined = [outline_of(one, size, relative=raw.relative) if one else None for one in said]
        for one, outline in zip(said, mine_outlined, strict=True):
            if one and outline is None:
                log.skip(raw.name, "outline does not match the image; the box is kept")
        outlines += mine_outlined
        kept.append(raw)
        sizes.append((size[1], size[0]))
        boxes.append(found)
        labels.append(mine[good])
        crowd.append(np.array(raw.crowd, bool)[good])
        areas.append(np.where(np.isfinite(stated) & (stated > 0), stated, own).astype(np.float32))
    images = EncodedImages(_Moved(listed.source, [raw.at for raw in kept]), [printable(raw.name) for raw in kept])
    columns = (np.concatenate(parts) for parts in (boxes, labels, crowd, areas))
    starts = np.cumsum([len(rows) for rows in labels])  # starts with 0
    height_width = np.array(sizes, np.int64).reshape(-1, 2)
    has_masks = any(outline is not None for outline in outlines)
    ids = [raw.id for raw in kept]
    return BoxSet(
        images, np.arange(len(kept)), ids, classes, height_width, starts, *columns,
        outlines=outlines if has_masks else None,
    )  # fmt: skip


def checked_boxes(raw: Raw, labels: np.ndarray, size: tuple[int, int], log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Usable boxes, clipped to an image of ``size`` (width, height), float32 [n, 4]; and their mask, bool [N]."""
    limits = np.array([*size, *size], np.float64)
    stated = raw.boxes * limits if raw.relative else raw.boxes
    with np.errstate(invalid="ignore"):
        boxes = np.clip(stated, 0, limits).astype(np.float32)
        faults = {
            "box not finite": ~np.isfinite(stated).all(1),
            "box without width or height": (stated[:, 2:] <= stated[:, :2]).any(1),
            "box outside the image": (boxes[:, 2:] <= boxes[:, :2]).any(1),
            "box of an unknown class": labels < 0,
        }
        cut = (np.abs(boxes - stated) > _MOVED).any(1)
    good = np.ones(len(boxes), bool)
    for reason, where in faults.items():
        for i in np.flatnonzero(where & good):
            what = raw.labels[i] if reason.endswith("class") else np.array2string(stated[i], precision=6)
            log.skip(raw.name, reason, f"box {i + 1}, {what}")
        good &= ~where
    if (cut & good).any():
        log.counts["box cut to the image"] += int((cut & good).sum())
    return boxes[good], good


def _size(raw: Raw, source: Source, log: Log) -> tuple[int, int] | None:
    """(width, height) from the image's header, or None if it can't be used."""
    try:
        width, height, _ = decode.header(source.read(raw.at), raw.name)
    except (BadImage, OSError, ValueError) as error:
        log.skip(raw.name, "image cannot be read", error.reason if isinstance(error, BadImage) else reason_of(error))
        return None
    if raw.size is not None and raw.size != (width, height):
        stated = f"{raw.size[0]} x {raw.size[1]} stated, {width} x {height} found"
        log.skip(raw.name, "image of another size than its annotation says", stated)
        return None
    return width, height


def number(value: Any) -> float:
    """A number of a file; NaN for anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def size_stated(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height from a file; None if invalid."""
    sides = number(width), number(height)
    return (int(sides[0]), int(sides[1])) if all(1 <= side < 1e9 for side in sides) else None


class _Moved:
    """Some of a source's images, in a given order."""

    def __init__(self, source: Source, at: list[int]):
        self.source, self.at = source, np.array(at, np.int64)

    def read(self, index: int) -> bytes | Path:
        return self.source.read(int(self.at[index]))

    def sign(self, digest: Any, indices: np.ndarray) -> None:
        self.source.sign(digest, self.at[indices])


def _with_test(sets: dict[str, BoxSet], log: Log) -> dict[str, BoxSet]:
    if "test" in sets:
        return sets
    if "val" in sets and len(sets["val"]):
        log.notes.append("There is no test set; the validation set is used as one.")
        return {"train": sets["train"], "test": sets["val"]}
    train = sets["train"]
    if len(train) < 2:
        log.notes.append("There is no test set, and too few images to hold one out.")
        return sets
    order = np.random.default_rng(0).permutation(len(train))
    held = max(1, round(HELD_OUT * len(train)))
    log.notes.append(f"There is no test set; {held:,} images, a fifth, are held out as one.")
    return {"train": train.subset(np.sort(order[held:])), "test": train.subset(np.sort(order[:held]))}


def _limited(images: BoxSet, limit: int) -> BoxSet:
    if len(images) <= limit:
        return images
    return images.subset(np.sort(np.random.default_rng(0).permutation(len(images))[:limit]))
