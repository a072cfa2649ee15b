"""COCO's masks of objects, polygons or run lengths, checked when read and rasterized on demand.

Polygons are lists x1, y1, x2, y2, ... in pixels, several for an object in parts. Run lengths count pixels in
column-major order, alternately outside and inside: a list of numbers, or its text form, with 5 bits per character, low
bits first, from the third count on as the difference to the count before the previous one.
Shapes: N objects, H x W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from sensorium.data.boxes.listed import whole

Outline = list[np.ndarray] | np.ndarray  # polygons, float64 [2 n] each; or run lengths, int64 [n]
_MOST = 1 << 20  # maximum numbers of one outline
_LONGEST = 4e6  # maximum length of an outline in pixels: drawing one takes about 80 bytes a pixel


def outline_of(said: Any, size: tuple[int, int], *, relative: bool = False) -> Outline | None:
    """A ``segmentation`` for an image of ``size`` (width, height), or None if it can't be a mask of that image.

    relative: polygons are in fractions of the image.
    """
    width, height = size
    try:
        if isinstance(said, dict):
            counts = said.get("counts")
            runs = _runs(counts) if isinstance(counts, str) else np.array(counts, np.int64)
            fits = _size_of(said) == (height, width) and runs.ndim == 1 and 0 < len(runs) <= _MOST
            return runs if fits and (runs >= 0).all() and runs.sum(dtype=object) == width * height else None
        limits = np.array([width, height], np.float64)
        parts = polygons_of(said)
        if parts is not None and all(len(one) >= 6 for one in parts):
            clipped = [np.clip(p.reshape(-1, 2) * (limits if relative else 1), 0, limits).ravel() for p in parts]
            return clipped if sum(map(_length, clipped)) <= _LONGEST else None
    except (TypeError, ValueError, OverflowError):
        pass
    return None


def polygons_of(said: Any) -> list[np.ndarray] | None:
    """Polygons float64 [2 n] of a ``segmentation``: a list of lists of numbers or of points, or one list of numbers.
    None if it has none, or one with an odd count of numbers, too many, or one that isn't finite."""
    try:
        if not isinstance(said, list | tuple) or not said:
            return None
        alone = all(isinstance(one, int | float | str) for one in said)
        parts = [np.array(one, np.float64) for one in ([said] if alone else said)]
    except (TypeError, ValueError, OverflowError):
        return None
    parts = [one.ravel() if one.ndim == 2 and one.shape[1] == 2 else one for one in parts]
    good = all(p.ndim == 1 and 0 < len(p) <= _MOST and len(p) % 2 == 0 and np.isfinite(p).all() for p in parts)
    return parts if good else None


def drawn(
    outlines: Sequence[Outline | None], boxes: np.ndarray, size: tuple[int, int], at: tuple[int, int] | None = None
) -> np.ndarray:
    """Masks bool [N, h, w] of an image of ``size`` (height, width), resized to ``at`` (h, w) if given. An object without
    an outline is its box, float [4]."""
    height, width = size
    h, w = at or size
    by = np.array([w / width, h / height])
    masks = np.zeros((len(outlines), h, w), bool)
    for mask, outline, box in zip(masks, outlines, boxes, strict=True):
        if outline is None:
            x1, y1, x2, y2 = (box.reshape(2, 2) * by).ravel().tolist()
            mask[round(y1) : max(round(y2), round(y1) + 1), round(x1) : max(round(x2), round(x1) + 1)] = True
        elif isinstance(outline, np.ndarray):
            mask[:] = _at_centers(outline, size, (h, w))
        else:
            from faster_coco_eval.core.mask import decode, frPyObjects, merge

            scaled = [(p.reshape(-1, 2) * by).ravel().tolist() for p in outline]
            mask[:] = decode(merge(cast(Any, frPyObjects(scaled, h, w)))) > 0
    return masks


def _at_centers(runs: np.ndarray, size: tuple[int, int], at: tuple[int, int]) -> np.ndarray:
    """A mask of run lengths at the pixels nearest to the centers of a grid: bool [h, w], without drawing the whole."""
    (height, width), (h, w) = size, at
    if size == at:
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    y = np.minimum((np.arange(h) + 0.5) * height / h, height - 1).astype(np.int64)
    x = np.minimum((np.arange(w) + 0.5) * width / w, width - 1).astype(np.int64)
    return np.searchsorted(np.cumsum(runs), y[:, None] + height * x, side="right") % 2 == 1


def _length(polygon: np.ndarray) -> float:
    """The length of a closed polygon in steps of a pixel, float64 [2 n] -> sum of max(|dx|, |dy|)."""
    points = polygon.reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum())


def _size_of(said: dict) -> tuple[int | None, ...]:
    sides = said.get("size")
    return tuple(whole(side) for side in sides) if isinstance(sides, list) and len(sides) == 2 else ()


def _runs(text: str) -> np.ndarray:
    """Decode the text form of run lengths. Raises ValueError if it is invalid."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not 0 < len(codes) <= _MOST or codes.min() < 0 or codes.max() >= 64 or codes[-1] & 32:
        raise ValueError("not run lengths")
    runs: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            if shift > 60:
                raise ValueError("a run of more than 60 bits")
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return np.array(runs, np.int64)
