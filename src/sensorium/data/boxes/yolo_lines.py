"""Lines of YOLO's texts, as many tools write them: numbers, and what they are.

    class cx cy w h                     a box, in fractions of the image
    class cx cy w h conf [id]           a saved prediction: a box, with its confidence and the number of its track
    class cx cy w h x1 y1 [v1] ...      a box and its K key points, by data.yaml's kpt_shape [K, 2 or 3]
    class x1 y1 x2 y2 x3 y3 ...         a polygon (of four points: an oriented box), which gives the box and the mask
    class x1 y1 x2 y2 x3 y3 ... conf    a saved prediction of a polygon
A class is a number, also "1.0", or one of the names; numbers are separated by spaces, tabs, commas or semicolons, and
have a point or a comma. What six numbers are (a triangle, or a box with confidence and track) and whether an odd last
number is a confidence or a fault is decided for all lines at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sensorium.data.boxes.listed import number, whole

_PLAIN = re.compile(r"[0-9.eE+\- \t]+")
_ORDINARY = re.compile(r"\d{1,9}(?:[ \t]+[0-9.eE+\-]+){4}[ \t]*", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?", re.ASCII)


class Row(NamedTuple):
    """Class and numbers float64 [n] of a line; ``counted``: its last number is written as an integer."""

    label: int
    numbers: np.ndarray
    counted: bool


class Form(NamedTuple):
    """What the numbers of all lines are: the ``points`` (K, 2 or 3) of a pose, whether six numbers are a tracked box,
    whether polygons have a confidence."""

    points: tuple[int, int] | None = None
    tracked: bool = False
    confident: bool = False


class Shape(NamedTuple):
    """Edges of a box, its polygon if it has one, and how many numbers were not used."""

    edges: np.ndarray
    polygon: np.ndarray | None
    unused: int = 0


def ordinary(lines: Sequence[str]) -> np.ndarray | None:
    """Class and box of each line, float64 [n, 5], where all lines are the first of the forms above as most tools write
    it; None where one is not. The same as :func:`row_of` of each."""
    if not all(map(_ORDINARY.fullmatch, lines)):
        return None
    try:
        return np.array(list(map(float, " ".join(lines).split())), np.float64).reshape(-1, 5)
    except ValueError:  # such as "1.2.3"
        return None


def row_of(line: str, numbered: Mapping[str, int]) -> Row:
    """The class and the numbers of a line; ``numbered``: classes by name. Raises ValueError that says what is wrong."""
    words = _words(line)
    label = whole(words[0], 999_999_999) if words else None
    if label is None:
        label = numbered.get(words[0]) if words else None
    if label is None:
        raise ValueError(f"'{(words or [''])[0][:20]}' is not a class number")
    try:
        if not _PLAIN.fullmatch(line):
            raise ValueError
        numbers = np.array(list(map(float, words[1:])), np.float64)
    except ValueError:
        numbers = np.array([number(word) for word in words[1:]], np.float64)
        if wrong := [w for w, n in zip(words[1:], numbers, strict=True) if n != n and "nan" not in w.casefold()]:
            raise ValueError(f"'{wrong[0][:20]}' is not a number") from None
    return Row(label, numbers, len(words) > 1 and words[-1].isascii() and words[-1].isdecimal())


def form_of(rows: Iterable[Row], points: tuple[int, int] | None) -> Form:
    """What the numbers of lines are; ``points`` as data.yaml says."""
    counts, tracked, visible = set(), True, True
    for row in rows:
        n = len(row.numbers)
        counts.add(n)
        tracked &= n != 6 or (row.counted and _is_box(row.numbers))
        if n > 6:
            visible &= _is_pose(row.numbers)
    tracked &= 6 in counts
    long = {n for n in counts if n > (6 if tracked else 5)}
    if points is None and visible and len(long) == 1 and counts <= {4, *long}:
        points = ((next(iter(long)) - 4) // 3, 3)
    return Form(points, tracked, bool(long) and all(n % 2 == 1 for n in long))


def edges_of(boxes: np.ndarray) -> np.ndarray:
    """(cx, cy, w, h) -> (x1, y1, x2, y2), of [..., 4]."""
    center, half = boxes[..., :2], boxes[..., 2:4] / 2
    return np.concatenate([center - half, center + half], -1)


def shape_of(row: Row, form: Form) -> Shape:
    """The box of a line. Raises ValueError that says what is wrong."""
    numbers = row.numbers
    n = len(numbers)
    extra = 0 if form.points is None else form.points[0] * form.points[1]
    if n in (4, 5) or (n == 6 and form.tracked) or (extra and 0 <= n - 4 - extra <= 2):
        return Shape(edges_of(numbers[:4]), None, n - 4)
    if extra:
        raise ValueError(f"{n} numbers after the class, not 4, or 4 + {extra} of key points")
    unused = 0
    if n > 6 and n % 2 == 1 and form.confident:
        unused = 1
    elif n >= 8 and n % 2 == 0 and row.counted and numbers[-1] > 1 and (numbers[:-1] <= 1).all():
        unused = 2  # confidence and track
    if n < 6 or (n - unused) % 2:
        raise ValueError(f"{n} numbers after the class, not 4")
    polygon = numbers[: n - unused]
    if not np.isfinite(polygon).all():
        return Shape(np.full(4, np.nan), None)
    x, y = polygon[::2], polygon[1::2]
    return Shape(np.array([x.min(), y.min(), x.max(), y.max()]), polygon, unused)


def _words(line: str) -> list[str]:
    words = line.strip("\0\ufeff \x1a").replace(";", " ").split()
    if "," not in line:
        return words
    bare = [word.strip(",") for word in words]
    commas = [word for word in bare if "," in word]
    if len(commas) >= 4 and "." not in line and all(_DECIMAL_COMMA.fullmatch(word) for word in commas):
        return [word.replace(",", ".") for word in bare if word]
    return " ".join(words).replace(",", " ").split()


def _is_box(numbers: np.ndarray) -> bool:
    """Whether the first four numbers are a box within an image, and the fifth a confidence."""
    center, half = numbers[:2], numbers[2:4] / 2
    within = (center - half >= -0.02).all() and (center + half <= 1.02).all() and (half > 0).all()
    return bool(within and 0 <= numbers[4] <= 1)


def _is_pose(numbers: np.ndarray) -> bool:
    """Whether numbers are a box and key points whose third numbers say 0, 1 or 2, if they are seen."""
    return len(numbers) >= 10 and (len(numbers) - 4) % 3 == 0 and bool(np.isin(numbers[6::3], (0, 1, 2)).all())
