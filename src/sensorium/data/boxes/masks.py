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

Outline = list[np.ndarray] | np.ndarray  # polygons, float64 [2 n] each; or run lengths, int64 [n]
_MOST = 1 << 20  # maximum numbers of one outline


def outline_of(said: Any, size: tuple[int, int], *, relative: bool = False) -> Outline | None:
    """A ``segmentation`` for an image of ``size`` (width, height), or None if it can't be a mask of that image.

    relative: polygons are in fractions of the image.
    """
    width, height = size
    try:
        if isinstance(said, dict):
            counts = said.get("counts")
            runs = _runs(counts) if isinstance(counts, str) else np.array(counts, np.int64)
            fits = said.get("size") == [height, width] and runs.ndim == 1 and 0 < len(runs) <= _MOST
            return runs if fits and (runs >= 0).all() and runs.sum(dtype=object) == width * height else None
        polygons = [np.array(one, np.float64) for one in said]
    except (TypeError, ValueError, OverflowError):
        return None
    good = polygons and all(
        p.ndim == 1 and 6 <= len(p) <= _MOST and len(p) % 2 == 0 and np.isfinite(p).all() for p in polygons
    )
    limits = np.array([width, height], np.float64)
    return (
        [np.clip(p.reshape(-1, 2) * (limits if relative else 1), 0, limits).ravel() for p in polygons] if good else None
    )


def drawn(outlines: Sequence[Outline | None], boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks bool [N, H, W] of an image of ``size`` (height, width). An object without an outline is its box, float
    [4]."""
    height, width = size
    masks = np.zeros((len(outlines), height, width), bool)
    for mask, outline, (x1, y1, x2, y2) in zip(masks, outlines, boxes, strict=True):
        if outline is None:
            mask[round(y1) : max(round(y2), round(y1) + 1), round(x1) : max(round(x2), round(x1) + 1)] = True
        elif isinstance(outline, np.ndarray):
            inside = np.repeat(np.arange(len(outline)) % 2 == 1, outline)
            mask[:] = inside.reshape(width, height).T
        else:
            from faster_coco_eval.core.mask import decode, frPyObjects, merge

            mask[:] = decode(merge(cast(Any, frPyObjects([p.tolist() for p in outline], height, width)))) > 0
    return masks


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
