"""The ten shapes of the scenes generator, as signed-distance functions with fake normals.

A shape lives in its own frame: x to the right, y downward, inside the unit circle. ``outline(x, y, vary)`` is the
distance to the silhouette, negative inside (exact or to first order; its zero level is exact). ``normals(x, y, vary)``
is the part of the surface's unit normal in the image plane; a flat shape has none of its own, it gets a bevel from
its distance's gradient. ``vary`` in [0, 1) changes a shape within its class (the width of a cone, the view of a cube).
Shapes: x, y [m, S, S]; vary [m, 1, 1]; everything float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Shape:
    """One class: name, silhouette, normals (``None``: flat, with a bevel), and a scale that evens out the areas."""

    name: str
    outline: Callable[[Array, Array, Array], Array]
    normals: Callable[[Array, Array, Array], tuple[Array, Array]] | None
    scale: float


def _ellipse(x: Array, y: Array, rx: Array | float, ry: Array | float) -> Array:
    """Distance to an axis-parallel ellipse, exact to first order at its rim."""
    u, v = x / rx, y / ry
    k = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / rx) ** 2 + (v / ry) ** 2)
    return k * (k - 1) / (slope + 1e-6)


def _ball(x: Array, y: Array, vary: Array) -> Array:
    return np.sqrt(x * x + y * y) - 1


def _ball_normals(x: Array, y: Array, vary: Array) -> tuple[Array, Array]:
    return x, y


_CUBE_HALF, _CUBE_PITCH = 0.6, 0.6


def _cube_axes(vary: Array) -> tuple[tuple[Array, Array, Array], ...]:
    """The cube's three visible face normals, seen from above at a turn of ``vary``: (right, down, toward the eye)."""
    turn = 0.4 + 0.77 * vary
    c, s = np.cos(turn), np.sin(turn)
    flat, steep = np.float32(sin(_CUBE_PITCH)), np.float32(cos(_CUBE_PITCH))
    nil, one = np.zeros_like(turn), np.ones_like(turn)
    return (c, s * flat, s * steep), (-s, c * flat, c * steep), (nil, -one * steep, one * flat)


def _cube(x: Array, y: Array, vary: Array) -> Array:
    """A cube's projection is the sum of three segments: a hexagon of three pairs of parallel sides."""
    axes = _cube_axes(vary)
    outline = None
    for k in range(3):
        gx, gy, _ = axes[k]
        length = np.sqrt(gx * gx + gy * gy)
        px, py = -gy / length, gx / length
        reach = sum(np.abs(axes[j][0] * px + axes[j][1] * py) for j in range(3) if j != k) * _CUBE_HALF
        side = np.abs(x * px + y * py) - reach
        outline = side if outline is None else np.maximum(outline, side)
    assert outline is not None
    return outline


def _cube_normals(x: Array, y: Array, vary: Array) -> tuple[Array, Array]:
    """The nearest of the three face planes along the line of sight gives the normal."""
    axes = _cube_axes(vary)
    nearest, nx, ny = None, np.empty_like(x), np.empty_like(x)
    for ax, ay, towards in axes:
        height = (_CUBE_HALF - x * ax - y * ay) / towards
        if nearest is None:
            nearest = height
            nx[:], ny[:] = ax, ay
            continue
        front = height < nearest
        nearest = np.minimum(nearest, height)
        np.copyto(nx, ax, where=front)
        np.copyto(ny, ay, where=front)
    return nx, ny


_CONE_BASE = np.float32(0.58)


def _cone(x: Array, y: Array, vary: Array) -> Array:
    width = 0.58 + 0.16 * vary
    height = _CONE_BASE + 1
    side = (np.abs(x) * height - width * (y + 1)) / np.sqrt(height * height + width * width)
    return np.minimum(np.maximum(side, y - _CONE_BASE), _ellipse(x, y - _CONE_BASE, width, 0.3 * width))


def _cone_normals(x: Array, y: Array, vary: Array) -> tuple[Array, Array]:
    half = (0.58 + 0.16 * vary) * np.maximum(y + 1, 0.05) / (_CONE_BASE + 1)
    return np.clip(x / half, -1, 1) * np.float32(0.93), np.full_like(x, -0.2)


def _ring(x: Array, y: Array, vary: Array) -> Array:
    thick = 0.22 + 0.07 * vary
    return np.abs(np.sqrt(x * x + y * y) - (1 - thick)) - thick


def _ring_normals(x: Array, y: Array, vary: Array) -> tuple[Array, Array]:
    thick = 0.22 + 0.07 * vary
    radius = np.sqrt(x * x + y * y) + 1e-6
    tilt = np.clip((radius - (1 - thick)) / thick, -1, 1) / radius
    return x * tilt, y * tilt


def _star(x: Array, y: Array, vary: Array) -> Array:
    """Folded ten times into the sector between a tip (up) and a valley: there the outline is one line."""
    c, s = np.float32(cos(pi / 5)), np.float32(sin(pi / 5))
    x, y = np.abs(x), -y
    for _ in range(2):
        beyond = 2 * np.maximum(x * c - y * s, 0)
        x, y = np.abs(x - beyond * c), y + beyond * s
    inner = 0.42 + 0.1 * vary
    ex, ey = inner * s, inner * c - 1
    return (x * -ey + (y - 1) * ex) / np.sqrt(ex * ex + ey * ey)


def _cross(x: Array, y: Array, vary: Array) -> Array:
    x, y, width = np.abs(x), np.abs(y), 0.24 + 0.1 * vary
    return np.maximum(np.maximum(x, y) - np.float32(0.92), np.minimum(x, y) - width)


def _cylinder(x: Array, y: Array, vary: Array) -> Array:
    width = 0.46 + 0.14 * vary
    over = np.abs(y) - np.float32(0.6)
    return np.minimum(np.maximum(np.abs(x) - width, over), _ellipse(x, over, width, 0.32 * width))


def _cylinder_normals(x: Array, y: Array, vary: Array) -> tuple[Array, Array]:
    width = 0.46 + 0.14 * vary
    u, v = x / width, (y + np.float32(0.6)) / (0.32 * width)
    side = np.clip((np.sqrt(u * u + v * v) - 1) * 5 + 0.5, 0, 1)
    return np.clip(u, -1, 1) * side, np.float32(0.1) - np.float32(0.85) * (1 - side)


def _moon(x: Array, y: Array, vary: Array) -> Array:
    shift = x - (0.4 + 0.12 * vary)
    return np.maximum(np.sqrt(x * x + y * y) - 1, np.float32(0.8) - np.sqrt(shift * shift + y * y))


def _arrow(x: Array, y: Array, vary: Array) -> Array:
    x, half, neck = np.abs(x), np.float32(0.78), -0.15 + 0.15 * vary
    side = (x * (neck + 1) - half * (y + 1)) / np.sqrt((neck + 1) ** 2 + half * half)
    shaft = np.maximum(x - np.float32(0.3), np.abs(y - np.float32(0.4)) - np.float32(0.52))
    return np.minimum(np.maximum(side, y - neck), shaft)


def _heart(x: Array, y: Array, vary: Array) -> Array:
    """A square on its corner with a half disc on each of its upper sides."""
    half, root = np.float32(0.58), np.float32(sqrt(0.5))
    x, y = np.abs(x), y - np.float32(0.1)
    square = (x + np.abs(y)) * root - half
    u, v = x - half * root, y + half * root
    return np.minimum(square, np.sqrt(u * u + v * v) - half)


SHAPES: tuple[Shape, ...] = (
    Shape("ball", _ball, _ball_normals, 0.80),
    Shape("cube", _cube, _cube_normals, 0.84),
    Shape("cone", _cone, _cone_normals, 1.08),
    Shape("ring", _ring, _ring_normals, 0.86),
    Shape("star", _star, None, 1.06),
    Shape("cross", _cross, None, 0.96),
    Shape("cylinder", _cylinder, _cylinder_normals, 1.06),
    Shape("moon", _moon, None, 1.04),
    Shape("arrow", _arrow, None, 1.08),
    Shape("heart", _heart, None, 0.83),
)
