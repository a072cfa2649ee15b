"""What files say of boxes, compared with the pictures: which can be used, and in which frame they are.

A picture whose EXIF orientation exchanges its sides has two sizes, upright and as its pixels are stored. The one that
its annotation states is the frame of its boxes, and the picture is used in it. Where an orientation doesn't show in
the size (turned by 180 degrees, mirrored, square, no size stated), the frame is the one that most of the other pictures
of the set are in, upright if there are none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.boxes.listed import Listed, Raw
from sensorium.data.boxes.masks import Outline, outline_of
from sensorium.data.boxes.repeated import repeated
from sensorium.data.boxes.sets import BoxSet, Moved, StoredImages
from sensorium.data.images import decode
from sensorium.data.images.decode import BadImage, reason_of
from sensorium.data.images.sets import Source
from sensorium.data.log import Log

UNREADABLE = "image cannot be read"
_MOVED = 0.01  # pixels: rounding moves an edge by less, clipping by more


def checked_set(listed: Listed, classes: tuple[str, ...], log: Log) -> BoxSet:
    """A file's entries, compared with the images' headers."""
    labels_of = {name: i for i, name in enumerate(classes)}
    kept: list[Raw] = []
    sizes, boxes, labels = [], [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)]
    crowd, areas = [np.zeros(0, bool)], [np.zeros(0, np.float32)]
    outlines: list[Outline | None] = []
    unturned = []
    framed = [(raw, frame) for raw, frame in zip(listed.raws, _frames(listed, log), strict=True) if frame is not None]
    numbers = [
        np.array([-1 if name is None else labels_of.get(name, -1) for name in raw.labels], np.int64)
        for raw, _ in framed
    ]
    again = repeated([raw for raw, _ in framed], log)
    as_stated = _as_stated(framed, numbers, again)
    for (raw, frame), mine, whole, twice in zip(framed, numbers, as_stated, again, strict=True):
        size = frame.size
        found, good = checked_boxes(raw, mine, size, log, twice) if whole is None else (whole, slice(None))
        own = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        kept.append(raw)
        unturned.append(frame.unturned)
        sizes.append((size[1], size[0]))
        boxes.append(found)
        labels.append(mine[good])
        crowd.append(np.array(raw.crowd, bool)[good])
        if raw.areas:
            stated = np.array(raw.areas, np.float64)[good]
            own = np.where(np.isfinite(stated) & (stated > 0), stated, own).astype(np.float32)
        areas.append(own)
        if not raw.outlines:
            outlines += [None] * len(found)
            continue
        said = [raw.outlines[i] for i in np.arange(len(mine))[good]]
        mine_outlined = [outline_of(one, size, relative=raw.relative) if one else None for one in said]
        for one, outline in zip(said, mine_outlined, strict=True):
            if one and outline is None:
                log.skip(raw.name, "outline does not match the image; the box is kept")
        outlines += mine_outlined
    source = Moved(listed.source, [raw.at for raw in kept])
    images = StoredImages(source, [printable(raw.name) for raw in kept], np.array(unturned, bool))
    columns = (np.concatenate(parts) for parts in (boxes, labels, crowd, areas))
    starts = np.cumsum([len(rows) for rows in labels])  # starts with 0
    height_width = np.array(sizes, np.int64).reshape(-1, 2)
    has_masks = any(outline is not None for outline in outlines)
    ids = [raw.id for raw in kept]
    return BoxSet(
        images, np.arange(len(kept)), ids, classes, height_width, starts, *columns,
        outlines=outlines if has_masks else None,
    )  # fmt: skip


def checked_boxes(
    raw: Raw, labels: np.ndarray, size: tuple[int, int], log: Log, twice: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Usable boxes, clipped to an image of ``size`` (width, height), float32 [n, 4]; and their mask, bool [N].
    ``twice`` bool [N]: those that are an earlier one again."""
    limits = np.array([*size, *size], np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        stated = raw.boxes * limits if raw.relative else raw.boxes
    boxes, faults, cut = _compared(stated, labels, limits)
    good = np.ones(len(boxes), bool)
    for reason, where in (faults | {"box that is given twice": twice}).items():
        for i in np.flatnonzero(where & good):
            edges = ", ".join(f"{edge:.6g}" for edge in stated[i])
            log.skip(raw.name, reason, f"box {i + 1}, {raw.labels[i] if reason.endswith('class') else edges}")
        good &= ~where
    if (cut & good).any():
        log.counts["box cut to the image"] += int((cut & good).sum())
    return boxes[good], good


def _compared(
    stated: np.ndarray, labels: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """(boxes clipped to ``limits``, float32 [N, 4]; where each fault is, bool [N]; where a box was cut, bool [N])."""
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = np.clip(stated, 0, limits).astype(np.float32)
        faults = {
            "box not finite": ~np.isfinite(stated).all(1),
            "box without width or height": (stated[:, 2:] <= stated[:, :2]).any(1),
            "box outside the image": (boxes[:, 2:] <= boxes[:, :2]).any(1),
            "box of an unknown class": labels < 0,
        }
        return boxes, faults, np.any(np.abs(boxes - stated) > _MOVED, axis=1)


def _as_stated(
    framed: list[tuple[Raw, _Frame]], labels: list[np.ndarray], again: list[np.ndarray]
) -> list[np.ndarray | None]:
    """The boxes of each picture that has nothing to tell, float32 [n, 4], compared all at once; None for the others."""
    if not framed:
        return []
    counts = [len(mine) for mine in labels]
    limits = np.repeat([(*frame.size, *frame.size) for _, frame in framed], counts, 0).astype(np.float64)
    relative = np.repeat([raw.relative for raw, _ in framed], counts)
    stated = np.concatenate([raw.boxes for raw, _ in framed])
    with np.errstate(invalid="ignore", over="ignore"):
        stated[relative] *= limits[relative]
    boxes, faults, told = _compared(stated, np.concatenate(labels), limits)
    for where in (*faults.values(), np.concatenate(again)):
        told |= where
    owners = np.repeat(np.arange(len(framed)), counts)
    clear = np.bincount(owners[told], minlength=len(framed)) == 0
    parts = np.split(boxes, np.cumsum(counts)[:-1])
    return [part if sound else None for part, sound in zip(parts, clear, strict=True)]


class _Frame(NamedTuple):
    """Size (width, height) in which a picture is used, whether that is as its pixels are stored, and whether it has an
    EXIF orientation at all."""

    size: tuple[int, int]
    unturned: bool
    turned: bool


def _frames(listed: Listed, log: Log) -> list[_Frame | None]:
    """The frame of each entry; None if its picture can't be used."""
    found = [_header(raw, listed.source, log) for raw in listed.raws]
    votes = 0  # for "as stored" minus "upright"
    for raw, seen in zip(listed.raws, found, strict=True):
        if seen is not None and seen[0] != seen[1] and raw.size in seen[:2]:
            votes += 1 if raw.size == seen[0] else -1
    frames = [None if f is None else _frame(raw, f, votes > 0, log) for raw, f in zip(listed.raws, found, strict=True)]
    unturned = sum(frame is not None and frame.unturned for frame in frames)
    upright = sum(frame is not None and frame.turned and not frame.unturned for frame in frames)
    if unturned:
        log.notes.append(
            f"{counted(unturned, 'picture')} {plural(unturned, 'is')} used as {plural(unturned, 'its')} pixels are "
            f"stored, without {plural(unturned, 'its')} EXIF orientation: the annotations state that size."
        )
    if upright:
        log.notes.append(
            f"{counted(upright, 'picture')} {plural(upright, 'is')} turned upright by {plural(upright, 'its')} EXIF "
            f"orientation, as are {plural(upright, 'its')} boxes."
        )
    return frames


def _header(raw: Raw, source: Source, log: Log) -> tuple[tuple[int, int], tuple[int, int], int] | None:
    """(width, height) as stored, the same upright, and the EXIF orientation; None if the header can't be read."""
    try:
        width, height, _, turn = decode.stored_header(source.read(raw.at), raw.name)
    except (BadImage, OSError, ValueError) as error:
        log.skip(raw.name, UNREADABLE, error.reason if isinstance(error, BadImage) else reason_of(error, raw.name))
        return None
    return (width, height), (height, width) if turn >= 5 else (width, height), turn


def _frame(raw: Raw, seen: tuple[tuple[int, int], tuple[int, int], int], as_stored: bool, log: Log) -> _Frame | None:
    stored, upright, turn = seen
    if raw.size is not None and raw.size not in (stored, upright):
        width, height = upright
        swapped = ", with width and height exchanged" if raw.size == (height, width) else ""
        stated = f"{raw.size[0]} x {raw.size[1]} stated, {width} x {height} found{swapped}"
        log.skip(raw.name, "image of another size than its annotation says", stated)
        return None
    unturned = turn > 1 and (as_stored if stored == upright or raw.size is None else raw.size == stored)
    return _Frame(stored if unturned else upright, unturned, turn > 1)
