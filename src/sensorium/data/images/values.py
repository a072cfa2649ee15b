"""Pictures of more than 8 bits: 16-bit and float files, as 8 bits.

Cameras and microscopes store 10, 12 or 14 bits in files of 16: scaled by 65,535 they would be nearly black. A ``Scale``
says which values are black and white. That of a data set is measured once (:func:`sensorium.data.images.sets.measure`),
kept in the situation of a run, and used for every picture that the run sees, so that equal values are equally bright. A
picture without one is scaled by its own values.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

TOPS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""The largest values of 8, 10, 12, 14 and 16 bits; floats may also end at 1."""
Scale = tuple[float, float]
"""The values that are black and white."""
_ROWS = 1 << 22  # values converted at a time


def is_wide(image: Image.Image) -> bool:
    """Whether an opened, not yet loaded image has more than 8 bits that its decoded mode may lose."""
    return image.mode.startswith("I") or image.mode == "F" or _wide_raw(image) is not None


def wide_values(image: Image.Image, again: Any) -> np.ndarray | None:
    """All bits of a wide image: [H, W], or uint16 [H, W, 3] of a color one; None if only 8 bits can be had.

    ``again()`` opens the same file a second time: Pillow decodes one of the two bytes of a 16-bit color at a time.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image.load()
        return np.asarray(image)
    raw = _wide_raw(image)
    image.load()
    high = np.asarray(image)
    if raw is None or high.ndim != 3 or high.shape[2] < 3:
        return None
    if high[..., :3].max(initial=0) >= 64:  # 16 bits: the lower byte doesn't show
        return None
    try:
        other = again()
        other.tile = [tile._replace(args=_swapped(tile.args)) for tile in other.tile]
        other.load()
        low = np.asarray(other)
    except Exception:  # a kind of which Pillow reads only one byte
        return None
    return (high[..., :3].astype(np.uint16) << 8) | low[..., :3] if low.shape == high.shape else None


def scale_of(low: float, high: float, floating: bool) -> Scale:
    """The scale of values from ``low`` to ``high``: 0 to the smallest of ``TOPS`` (and 1 of floats) that holds them, or
    their own range if some are negative or beyond 16 bits."""
    top = next((top for top in ((1.0,) if floating else ()) + TOPS if high <= top), None)
    return (low, high) if low < 0 or top is None else (0.0, top)


def to_eight(values: np.ndarray, scale: Scale | None) -> np.ndarray:
    """Values of any shape -> uint8 of the same: ``scale`` (or that of the values alone) to 0..255, what is beyond it
    clipped."""
    floating = values.dtype.kind == "f"
    base, white = scale_of(*span(values), floating) if scale is None else map(float, scale)
    top = max(white - base, 1e-12)
    if values.dtype == np.uint16:
        table = np.round(np.clip((np.arange(1 << 16) - base) * (255.0 / top), 0, 255)).astype(np.uint8)
        return table[values]
    out = np.empty(values.shape, np.uint8)
    step = max(1, _ROWS // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, len(values), step):
        part = values[start : start + step].astype(np.float32)
        if floating:
            np.nan_to_num(part, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        out[start : start + step] = np.round(np.clip((part - base) * (255.0 / top), 0, 255)).astype(np.uint8)
    return out


def span(values: np.ndarray) -> tuple[float, float]:
    """(smallest, largest) value; what is not finite counts as 0."""
    if values.dtype.kind == "f":
        low = high = 0.0
        known = False
        for row in np.array_split(values, max(1, values.size // _ROWS)):
            finite = np.where(np.isfinite(row), row, 0)
            a, b = float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf))
            low, high, known = (min(low, a), max(high, b), True) if known else (a, b, True)
        return low, high
    return float(values.min()), float(values.max())


def _wide_raw(image: Image.Image) -> str | None:
    """The raw mode of a file whose colors have 16 bits, such as "RGB;16B"."""
    tiles = image.tile if isinstance(image, ImageFile) else []
    if not tiles:
        return None
    args = tiles[0].args
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) and ";16" in raw and len(image.getbands()) >= 2 else None


def _swapped(args: Any) -> Any:
    """The decoder's arguments with a raw mode that reads the other byte."""
    raw = args[0] if isinstance(args, tuple) else args
    order = raw[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    raw = raw[: raw.index(";16")] + (";16B" if order == "L" else ";16L")
    return (raw, *args[1:]) if isinstance(args, tuple) else raw
