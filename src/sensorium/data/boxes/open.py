"""Detection data: images with boxes, from COCO JSON, Pascal VOC XML, YOLO text or columns of boxes as on the Hugging
Face hub (:mod:`coco`, :mod:`voc`, :mod:`yolo`, :mod:`hub`).

A sample is ``{"image": uint8 [3, H, W], "boxes": float32 [N, 4] absolute (x1, y1, x2, y2), "labels": int64 [N],
"crowd": bool [N], "area": float32 [N], "id"}``, and if the files have outlines "masks": bool [N, H, W] (an object
without one is its box). Boxes are known without decoding an image, and are compared with the image's header:
    not finite, without width or height, outside the image, of an unknown class   dropped, listed and counted
    given twice                                                                   used once, listed and counted
    partly outside the image                                                      clipped to it and counted
    an outline that does not match the image                                      dropped and counted, the box is kept
    An image without boxes is kept as a negative example. ``crowd`` marks boxes that are ignored in training and
    evaluation: COCO's regions of many objects, VOC's "difficult" ones. ``area`` is COCO's if given (of the object's
    mask, which its evaluation uses for object sizes), else the box's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.boxes.checks import checked_set
from sensorium.data.boxes.files import find_boxes
from sensorium.data.boxes.listed import Listed, Sets
from sensorium.data.boxes.sets import BoxSet
from sensorium.data.images.folders import Files
from sensorium.data.images.sets import measure
from sensorium.data.images.values import Scale
from sensorium.data.log import Log, Skipped
from sensorium.data.names import about_alike
from sensorium.errors import SensoriumError

HELD_OUT = 0.2


@dataclass(frozen=True)
class OpenedBoxes:
    """The result of :func:`open_boxes`. ``skipped`` lists what was dropped, ``counts`` is the count of each reason,
    including clipped boxes; ``notes`` are sentences about choices; ``scale``: of 16-bit and float images, None if there
    are none."""

    path: str
    layout: str
    train: BoxSet
    test: BoxSet | None = None
    val: BoxSet | None = None
    skipped: tuple[Skipped, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scale: Scale | None = None


def open_boxes(
    path: str | Path, *, test: str | Path | None = None, limit: int | None = None, scale: Scale | None = None
) -> OpenedBoxes:
    """Find the layout of ``path`` and open its images with their boxes.

    ``path`` is a COCO JSON (its images in a folder or a .tar near it), a data.yaml, a Parquet file or
    metadata.jsonl with boxes, or a folder of any of these layouts. Training pictures that are also in the test or validation set are not trained on.
    ``test`` opens a second path as the test set; its classes are matched by name. Without one the validation set is the
    test set, and without that a fifth of the images is held out, the same fifth every time. ``limit`` keeps at most
    that many images of each set. ``scale``: of 16-bit and float images, that of a run; by default it is measured, and some
    are decoded for it. Every image's header is read here, no other image is decoded.
    Raises SensoriumError for a user's error: a wrong path, an unknown layout, a damaged file, no image at all.
    """
    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {limit} images is too few; must be at least 1.")
    log, where = Log(), printable(str(path))
    layout, classes, listed = find_boxes(Path(path).expanduser(), log)
    if test is not None:
        # Classes that are named by their number alone don't say what the numbers of another folder are.
        known = () if all(name.isdecimal() for name in classes) else classes
        second = find_boxes(Path(test).expanduser(), log, known)[2]
        listed = {k: v for k, v in listed.items() if k != "test"} | {"test": second.get("test") or second["train"]}
    listed = _apart(listed, log, given=test is not None)
    if not classes:
        raise SensoriumError(f"{where}: no box has a class; looked for {layout} annotations{_first(log)}.")
    log.notes += about_alike([*classes, *_labels(listed)])
    sets = {split: checked_set(part, classes, log) for split, part in listed.items()}
    scale, scaled = measure([part.images for part in sets.values()], scale)
    log.notes += filter(None, [scaled])
    if "val" in sets and not len(sets["val"]):
        del sets["val"]
    for split in ("train", "test"):
        if split in sets and not len(sets[split]):
            raise SensoriumError(f"{where}: none of the {split} images can be used{_first(log)}.")
    sets = _with_test(sets, log)
    if limit is not None:
        sets = {split: _limited(images, limit) for split, images in sets.items()}
    opened = OpenedBoxes(where, layout, sets["train"], sets.get("test"), sets.get("val"), tuple(log.skipped))
    return replace(opened, counts=dict(log.counts.most_common()), notes=tuple(log.notes), scale=scale)


def _first(log: Log) -> str:
    return f"; the first problem is of {log.skipped[0].file}: {log.skipped[0].reason}" if log.skipped else ""


def _labels(listed: Sets) -> list[str]:
    """The names that boxes have, also those that are no class of the training set."""
    return sorted({name for part in listed.values() for raw in part.raws for name in raw.labels if name})


def _apart(listed: Sets, log: Log, *, given: bool) -> Sets:
    """The splits without training pictures that the test or validation set has, too; without a validation or test set
    that is the training set itself, unless the test set is ``given`` as such."""
    if len(listed) == 1:
        return listed
    paths = {split: _files(part) for split, part in listed.items()}
    train = set(paths["train"].values())
    kept = dict(listed)
    for split in ("test", "val"):
        held = set(paths.get(split, {}).values())
        if held and held >= train and given and split == "test":
            log.notes.append("The test pictures are the training pictures.")
        elif held and held >= train:
            log.notes.append(f"The {split} pictures include all training pictures; they are not used as a {split} set.")
            del kept[split]
        elif shared := held & train:
            train -= shared
            n = len(shared)
            of = f"{'a ' * (n == 1)}{plural(n, f'{split} picture')}"
            log.notes.append(
                f"{counted(n, 'training picture')} {plural(n, 'is')} also {of}; {plural(n, 'it is')} not trained on."
            )
    if len(train) < len(set(paths["train"].values())):
        raws = [raw for raw in listed["train"].raws if paths["train"].get(raw.at) in train]
        kept["train"] = Listed(listed["train"].source, raws)
    return kept


def _files(part: Listed) -> dict[int, tuple[int, int]]:
    """(device, inode) of each picture by its index, if pictures are files: links to one file are that file."""
    found = {}
    for raw in part.raws if isinstance(part.source, Files) else ():
        with suppress(OSError, ValueError):
            place = os.stat(part.source.paths[raw.at])  # type: ignore[attr-defined]  # noqa: PTH116
            found[raw.at] = place.st_dev, place.st_ino
    return found


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
    log.notes.append(f"There is no test set; {counted(held, 'image')}, a fifth, {plural(held, 'is')} held out as one.")
    return {"train": train.subset(np.sort(order[held:])), "test": train.subset(np.sort(order[:held]))}


def _limited(images: BoxSet, limit: int) -> BoxSet:
    if len(images) <= limit:
        return images
    return images.subset(np.sort(np.random.default_rng(0).permutation(len(images))[:limit]))
