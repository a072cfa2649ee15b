"""The content of a scene before rendering: a table of numbers that only depends on (seed, index).

Every number is a hash of (seed, index, stream, column) by SplitMix64's finalizer: whole batches at once, the same in
any order, in any process and with any version of numpy. Lengths are in units of the image's side, angles in
radians, colors in 0..1; y points downward. Object 0 is the main one; ``n`` scenes, ``O`` = 4 objects.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from sensorium.data.scenes.shapes import SHAPES

CLASSES: tuple[str, ...] = tuple(shape.name for shape in SHAPES)
GROUNDS = ("plain", "cloudy", "striped", "checked")
SURFACES = ("plain", "striped", "spotted")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.66, 0.22),
    "cyan": (0.15, 0.78, 0.82),
    "blue": (0.16, 0.32, 0.88),
    "purple": (0.52, 0.20, 0.78),
    "pink": (0.96, 0.50, 0.72),
    "white": (0.93, 0.93, 0.92),
    "black": (0.23, 0.23, 0.24),
}
OBJECTS = 4
_CANDIDATES = 12
_LABELS, _ORDER, _SCENE, _OBJECT, _PLACE, _PIXELS, _TEXT, _CLIP = range(8)
Array = np.ndarray


def _mix(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def keys(seed: int, indices: Array, stream: int) -> Array:
    """One 64-bit key for each (seed, index, stream): uint64 [n]."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1))
    return _mix(_mix(np.atleast_1d(start)) + np.asarray(indices).astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))


def bits(key: Array, columns: int) -> Array:
    """``columns`` hashes of each key: uint64 [n, columns]."""
    return _mix(key[:, None] + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def uniforms(seed: int, indices: Array, stream: int, columns: int) -> Array:
    """Uniform in [0, 1): float32 [n, columns]."""
    return (bits(keys(seed, indices, stream), columns) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def text_draws(seed: int, index: int) -> Array:
    """Uniform draws for the wording of one scene's text: [16]."""
    return uniforms(seed, np.array([index]), _TEXT, 16)[0]


def clip_draws(seed: int, index: int, frames: int) -> Array:
    """Uniform draws for one clip, one row per frame: [frames, 3]."""
    return uniforms(seed, np.array([index]), _CLIP, 3 * frames)[0].reshape(frames, 3)


def labels(seed: int, indices: Array) -> Array:
    """The main object's class of each scene, int64 [n]: each run of ten indices is a shuffle of the ten classes."""
    indices = np.asarray(indices, dtype=np.int64)
    count = len(CLASSES)
    shuffles = np.argsort(uniforms(seed, indices // count, _LABELS, count), axis=1, kind="stable")
    return shuffles[np.arange(len(indices)), indices % count]


@dataclass(frozen=True)
class Layout:
    """``n`` scenes as arrays. Per-object arrays are [n, O, ...]; colors of the ground are those of its two ends [n, 2,
    3]."""

    kind: Array  # class of each object, int64
    present: Array  # bool
    front: Array  # bool [n]: the first small object is in front of the main one
    x: Array
    y: Array
    radius: Array
    angle: Array
    vary: Array
    opacity: Array
    hue: Array  # index into COLOURS, int64
    colour: Array  # [n, O, 3]
    surface: Array  # index into SURFACES, int64
    pattern: Array  # frequency, phase and strength of the surface's pattern [n, O, 3]
    ground: Array  # index into GROUNDS, int64 [n]
    ground_colour: Array
    ground_pattern: Array  # direction, frequency, phase, strength, direction of the gradient [n, 5]
    light: Array  # unit vector to the light: right, down, toward the eye [n, 3]
    shadow: Array  # length and darkness of the shadows [n, 2]
    tone: Array  # contrast, brightness, noise's strength, shininess [n, 4]
    pixel_key: Array  # uint64 [n]: the ground's clouds
    noise_key: Array  # uint64 [n]: the sensor's noise

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: Array | slice) -> Layout:
        """The scenes ``rows``, in that order; repeats allowed."""
        return Layout(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def lay_out(seed: int, indices: Array) -> Layout:
    """Draw the scenes ``indices`` [n] of ``seed``."""
    indices = np.asarray(indices, dtype=np.int64)
    n = len(indices)
    main = labels(seed, indices)
    order = uniforms(seed, indices, _ORDER, len(CLASSES))
    order[np.arange(n), main] = -1
    u = uniforms(seed, indices, _SCENE, 26)
    o = uniforms(seed, indices, _OBJECT, OBJECTS * 11).reshape(n, OBJECTS, 11)
    small = 1 + (u[:, 0] * (OBJECTS - 1)).astype(np.int64)
    front = u[:, 1] < 0.5
    x, y, radius = _place(seed, indices, u[:, 2:5], o[:, :, 0], front)
    hue = (o[:, :, 3] * len(COLOURS)).astype(np.int64)
    pattern = np.stack([6.5 + 6.5 * o[:, :, 8], 2 * np.pi * o[:, :, 9], 0.2 + 0.25 * o[:, :, 10]], axis=-1)
    ground, ground_colour, ground_pattern = _grounds(u[:, 5:18])
    azimuth, height = 2 * np.pi * u[:, 18], 0.55 + 0.25 * u[:, 19]
    flat = np.sqrt(1 - height * height)
    tone = np.stack([0.75 + 0.4 * u[:, 22], -0.05 + 0.12 * u[:, 23], 0.01 + 0.05 * u[:, 24], 0.6 * u[:, 25]], axis=-1)
    return Layout(
        kind=np.argsort(order, axis=1, kind="stable")[:, :OBJECTS],
        present=np.arange(OBJECTS) <= small[:, None],
        front=front,
        x=x,
        y=y,
        radius=radius,
        angle=(2 * o[:, :, 1] - 1) * np.float32(0.9),
        vary=o[:, :, 2],
        opacity=np.ones((n, OBJECTS), np.float32),
        hue=hue,
        colour=np.clip(np.array(list(COLOURS.values()), np.float32)[hue] + 0.1 * (o[:, :, 4:7] - 0.5), 0, 1),
        surface=(o[:, :, 7] * len(SURFACES)).astype(np.int64),
        pattern=pattern.astype(np.float32),
        ground=ground,
        ground_colour=ground_colour,
        ground_pattern=ground_pattern,
        light=np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, height], axis=-1).astype(np.float32),
        shadow=np.stack([0.03 + 0.04 * u[:, 20], 0.25 + 0.35 * u[:, 21]], axis=-1).astype(np.float32),
        tone=tone.astype(np.float32),
        pixel_key=keys(seed, indices, _PIXELS),
        noise_key=keys(seed + 1, indices, _PIXELS),
    )


def clear(layout: Layout) -> Layout:
    """The same scenes without clutter: the main object alone, on a ground without stripes, checks or clouds."""
    alone = np.zeros_like(layout.present)
    alone[:, 0] = True
    return replace(layout, present=alone, ground=np.full_like(layout.ground, GROUNDS.index("plain")))


def _grounds(u: Array) -> tuple[Array, Array, Array]:
    """Kind [n], end colors [n, 2, 3] and pattern [n, 5] of the grounds, from draws [n, 13]."""
    level = 0.36 + 0.44 * u[:, 1, None, None] + 0.3 * (u[:, 2:4, None] - 0.5)
    tint = 0.28 * (u[:, 4:10].reshape(-1, 2, 3) - 0.5)
    ends = np.clip(level + tint + tint.mean(axis=1, keepdims=True), 0.05, 0.95)
    turn = 2 * np.pi * u[:, 10]
    pattern = np.stack([turn, 2.5 + 4.5 * u[:, 11], 2 * np.pi * u[:, 12], 0.08 + 0.14 * u[:, 3], turn * 7 + 1], axis=-1)
    return (u[:, 0] * len(GROUNDS)).astype(np.int64), ends.astype(np.float32), pattern.astype(np.float32)


def _place(seed: int, indices: Array, main: Array, sizes: Array, front: Array) -> tuple[Array, Array, Array]:
    """Positions and radii [n, O]: the main object inside the frame, the small ones around it and clear of each other.

    A small object over the main one has at most half its radius, so it can't hide more than 40 % of it.
    Each small one takes the first of a dozen random positions that keeps its distance, or else the best one.
    """
    n = len(indices)
    radius = np.empty((n, OBJECTS), np.float32)
    radius[:, 0] = 0.28 + 0.13 * main[:, 0]
    share = 0.35 + 0.2 * sizes[:, 1:]
    share[:, 0] = np.where(front, 0.33 + 0.15 * sizes[:, 1], share[:, 0])
    radius[:, 1:] = radius[:, :1] * share
    x, y = np.empty_like(radius), np.empty_like(radius)
    margin = 0.97 * radius[:, 0]
    x[:, 0] = margin + (1 - 2 * margin) * main[:, 1]
    y[:, 0] = margin + (1 - 2 * margin) * main[:, 2]
    tries = uniforms(seed, indices, _PLACE, (OBJECTS - 1) * _CANDIDATES * 2).reshape(n, OBJECTS - 1, _CANDIDATES, 2)
    rows = np.arange(n)
    for k in range(1, OBJECTS):
        margin = 0.85 * radius[:, k, None]
        px = margin + (1 - 2 * margin) * tries[:, k - 1, :, 0]
        py = margin + (1 - 2 * margin) * tries[:, k - 1, :, 1]
        need = [0.8 * radius[:, 0] + 0.25 * radius[:, k]] + [0.85 * (radius[:, j] + radius[:, k]) for j in range(1, k)]
        room = [np.hypot(px - x[:, j, None], py - y[:, j, None]) - need[j][:, None] for j in range(k)]
        slack = np.minimum(np.min(room, axis=0), 0)
        best = np.argmax(slack, axis=1)
        x[:, k], y[:, k] = px[rows, best], py[rows, best]
    return x, y, radius
