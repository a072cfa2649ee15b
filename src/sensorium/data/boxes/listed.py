"""What the readers of boxes give: the entries of a file as it says them, not yet compared with the pictures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted
from sensorium.data.images.sets import Source
from sensorium.data.log import Log

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


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


Sets = dict[str, Listed]


def number(value: Any) -> float:
    """A number of a file, of JSON or as text; NaN for anything else."""
    try:
        if isinstance(value, str):
            word = value.strip()
            return float(word) if len(word) < 400 and _NUMBER.fullmatch(word) else math.nan
        return float(value) if isinstance(value, int | float) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def whole(value: Any, most: int = 1 << 62) -> int | None:
    """A number of a file that is an integer from 0 to ``most``, also as "1" or "1.0"; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value <= most else None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value) if int(value) <= most else None
    found = number(value) if isinstance(value, str | float) else math.nan
    return int(found) if math.isfinite(found) and found == int(found) and 0 <= found <= min(most, 1 << 52) else None


def about_equal(names: Iterable[tuple[Any, str]], file: str) -> list[str]:
    """A note about classes of one name, from (number in the file, name) of each; none if all differ."""
    numbers: dict[str, list[str]] = {}
    for key, name in names:
        numbers.setdefault(name, []).append(printable(str(key))[:40])
    equal = [f"'{name[:80]}' ({', '.join(keys[:6])})" for name, keys in numbers.items() if len(keys) > 1]
    more = f" and {len(equal) - 6:,} more" if len(equal) > 6 else ""
    return [f"{printable(file)}: numbers of one name are one class: {', '.join(equal[:6])}{more}."] if equal else []


def say_fractions(raws: list[Raw], file: str, log: Log) -> None:
    """Mark the boxes of a file that counts in pixels as fractions of their images, if all of them can be nothing else."""
    edges = np.concatenate([raw.boxes for raw in raws] or [np.zeros((0, 4))])
    edges = edges[np.isfinite(edges).all(1)]
    if (edges > 0).any() and (edges <= 1).all():
        log.notes.append(f"The boxes of {printable(file)} are fractions of their images.")
        for raw in raws:
            raw.relative, raw.areas = True, []


def about_twice(twice: Counter[str], file: str) -> list[str]:
    """A note about keys that are in one JSON object more than once, from their counts."""
    each = ", ".join(f"'{printable(key[:40])}' in {counted(n, 'object')}" for key, n in twice.most_common(4))
    return [f"{printable(file)}: keys are given twice in one object, and the last is used: {each}."] if each else []


def size_stated(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height from a file; None if it doesn't say them."""
    sides = number(width), number(height)
    return (int(sides[0]), int(sides[1])) if all(1 <= side < 1e9 for side in sides) else None
