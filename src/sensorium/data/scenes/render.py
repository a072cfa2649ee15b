"""Rendering of scenes: a textured ground, lit objects with soft shadows from back to front, sensor noise.

An object covers a pixel by clip(1/2 - d, 0, 1), d its signed distance in pixels (analytic anti-aliasing), and
reflects color * pattern * (ambient + diffuse max(0, n.l)) + a highlight. Everything is one numpy operation for all
scenes of a chunk, and elementwise, so that a scene's pixels do not depend on its neighbors in the batch.
Shapes: n scenes, S the side in pixels, m the scenes that have the current object, sorted by class.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sensorium.data.scenes.layout import GROUNDS, SURFACES, Layout, bits
from sensorium.data.scenes.shapes import SHAPES

Array = np.ndarray
_CHUNK_PIXELS = 256 * 32 * 32
_AMBIENT = np.float32(0.45)
_SOFT = np.float32(0.025)  # half the width of a shadow's edge
_SCALES = np.array([shape.scale for shape in SHAPES], np.float32)
_REACH = 1.1  # every scaled shape is inside this multiple of its object's radius


def draw(layout: Layout, size: int) -> Array:
    """Images of the scenes: uint8 [n, 3, size, size]."""
    out = np.empty((len(layout), 3, size, size), np.uint8)
    step = max(1, _CHUNK_PIXELS // (size * size))
    for start in range(0, len(layout), step):
        part = layout.take(slice(start, start + step))
        canvas = _ground(part, size)
        for slot, rows in _back_to_front(part):
            _paint(canvas, part, slot, rows)
        out[start : start + step] = _develop(canvas, part)
    return out


def outlines(layout: Layout, size: int) -> tuple[Array, Array]:
    """The object of each pixel, int8 [n, S, S] (-1: the ground), and the number of pixels of each without occlusion [n,
    O].

    A pixel belongs to the nearest object that covers at least half of it.
    """
    owner = np.full((len(layout), size, size), -1, np.int8)
    alone = np.zeros(layout.kind.shape, np.int64)
    for slot, rows in _back_to_front(layout):
        corner = np.zeros(len(rows), np.int64)
        x, y, kind, _ = _frame(layout, slot, rows, size, (size, corner, corner))
        covered = _outline(x, y, kind, layout.vary[rows, slot, None, None]) <= 0
        owner[rows] = np.where(covered, np.int8(slot), owner[rows])
        alone[rows, slot] = covered.sum(axis=(1, 2))
    return owner, alone


@lru_cache(maxsize=8)
def _centres(size: int) -> Array:
    return ((np.arange(size, dtype=np.float64) + 0.5) / size).astype(np.float32)


def _back_to_front(layout: Layout) -> list[tuple[int, Array]]:
    """(object, scenes that have it), in painting order; the scenes sorted by the object's class."""
    order = [(3, layout.present[:, 3]), (2, layout.present[:, 2]), (1, ~layout.front), (0, layout.present[:, 0])]
    order.append((1, layout.front))
    found = []
    for slot, chosen in order:
        rows = np.flatnonzero(chosen & layout.present[:, slot])
        if len(rows):
            found.append((slot, rows[np.argsort(layout.kind[rows, slot], kind="stable")]))
    return found


def _frame(
    layout: Layout, slot: int, rows: Array, size: int, window: tuple[int, Array, Array], shift: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    """Pixel centers of the windows in the object's own frame: x, y [m, w, w]; its class [m]; its radius [m, 1, 1].

    ``window`` is side w, left [m] and top [m] in pixels; ``shift`` [m, 2] moves the object.
    """
    side, left, top = window
    grid = _centres(size)
    step = np.arange(side)
    kind = layout.kind[rows, slot]
    radius = layout.radius[rows, slot] * _SCALES[kind]
    at = np.stack([layout.x[rows, slot], layout.y[rows, slot]], axis=-1)
    if shift is not None:
        at = at + shift
    c, s = (f(layout.angle[rows, slot])[:, None] / radius[:, None] for f in (np.cos, np.sin))
    dx, dy = grid[left[:, None] + step] - at[:, :1], grid[top[:, None] + step] - at[:, 1:]
    x = (dx * c)[:, None, :] + (dy * s)[:, :, None]
    y = (dx * -s)[:, None, :] + (dy * c)[:, :, None]
    return x, y, kind, radius[:, None, None]


def _groups(kind: Array) -> list[tuple[int, slice]]:
    """Runs of equal values in a sorted array."""
    starts = [0, *(np.flatnonzero(kind[1:] != kind[:-1]) + 1).tolist(), len(kind)]
    return [(int(kind[start]), slice(start, stop)) for start, stop in pairwise(starts)]


def _outline(x: Array, y: Array, kind: Array, vary: Array) -> Array:
    distance = np.empty_like(x)
    for shape, part in _groups(kind):
        distance[part] = SHAPES[shape].outline(x[part], y[part], vary[part])
    return distance


def _normals(x: Array, y: Array, kind: Array, vary: Array, distance: Array, unit: Array) -> tuple[Array, Array]:
    """In-plane part of the unit normals, in the object's frame; ``unit`` [m, 1, 1] is a pixel's length there."""
    nx, ny = np.empty_like(x), np.empty_like(x)
    for shape, part in _groups(kind):
        normals = SHAPES[shape].normals
        if normals is None:
            nx[part], ny[part] = _bevel(distance[part], unit[part])
        else:
            nx[part], ny[part] = normals(x[part], y[part], vary[part])
    return nx, ny


def _bevel(distance: Array, unit: Array) -> tuple[Array, Array]:
    """A flat shape's rim slopes outward over a fifth of its radius: central differences, in the image's frame."""
    slope = np.clip(1 + distance * 5, 0, 1) * np.float32(0.4) / unit
    gx, gy = np.zeros_like(distance), np.zeros_like(distance)
    gx[:, :, 1:-1] = distance[:, :, 2:] - distance[:, :, :-2]
    gy[:, 1:-1] = distance[:, 2:] - distance[:, :-2]
    return gx * slope, gy * slope


def _paint(canvas: Array, layout: Layout, slot: int, rows: Array) -> None:
    """Paint one object's shadow and then the object onto its scenes of ``canvas`` [n, 3, S, S], in place."""
    size = canvas.shape[-1]
    light, shadow = layout.light[rows], layout.shadow[rows]
    side, left, top = _windows(layout, slot, rows, size)
    windows = sliding_window_view(canvas, (side, side), axis=(2, 3), writeable=True)  # type: ignore[call-overload]
    vary, opacity = layout.vary[rows, slot, None, None], layout.opacity[rows, slot, None, None]

    x, y, kind, radius = _frame(layout, slot, rows, size, (side, left, top), shift=-light[:, :2] * shadow[:, :1])
    dark = _outline(x, y, kind, vary)
    dark *= radius / (2 * _SOFT)
    np.subtract(0.5, dark, out=dark)
    np.clip(dark, 0, 1, out=dark)
    dark *= -shadow[:, 1, None, None] * opacity
    dark += 1

    x, y, kind, radius = _frame(layout, slot, rows, size, (side, left, top))
    distance = _outline(x, y, kind, vary)
    shade, gloss = _light(layout, slot, rows, x, y, kind, distance, 1 / (radius * size))
    _pattern(layout, slot, rows, x, y, shade)
    distance *= radius * size
    cover = np.clip(np.subtract(0.5, distance, out=distance), 0, 1, out=distance)
    cover *= opacity

    shade *= cover
    gloss *= cover
    dark *= 1 - cover
    colour = layout.colour[rows, slot]
    picture = windows[rows, :, top, left]
    picture *= dark[:, None]
    for channel in range(3):
        picture[:, channel] += gloss
        picture[:, channel] += shade * colour[:, channel, None, None]
    windows[rows, :, top, left] = picture


def _windows(layout: Layout, slot: int, rows: Array, size: int) -> tuple[int, Array, Array]:
    """The square of pixels that holds an object and its shadow: one side for all scenes, left and top [m]."""
    reach = layout.radius[rows, slot] * np.float32(_REACH) + layout.shadow[rows, 0] + _SOFT
    side = min(size, int(np.ceil(2 * reach.max() * size)) + 4)
    left, top = (
        np.clip(np.round(at[rows, slot] * size - side / 2), 0, size - side).astype(np.int64)
        for at in (layout.x, layout.y)
    )
    return side, left, top


def _light(
    layout: Layout, slot: int, rows: Array, x: Array, y: Array, kind: Array, distance: Array, unit: Array
) -> tuple[Array, Array]:
    """Brightness of the surface (1: a flat one facing the eye) and the highlight on top, each [m, S, S]."""
    nx, ny = _normals(x, y, kind, layout.vary[rows, slot, None, None], distance, unit)
    flat = np.array([shape.normals is None for shape in SHAPES])[kind]
    angle = np.where(flat, np.float32(0), layout.angle[rows, slot])
    c, s = np.cos(angle), np.sin(angle)
    light = layout.light[rows]
    # Rotate the light into the object's frame, which is cheaper than rotating every normal out of it.
    lx = (light[:, 0] * c + light[:, 1] * s)[:, None, None]
    ly = (light[:, 1] * c - light[:, 0] * s)[:, None, None]
    lz = light[:, 2, None, None]
    nz = nx * nx
    nz += ny * ny
    nz = np.sqrt(np.maximum(np.subtract(1, nz, out=nz), np.float32(0.01), out=nz), out=nz)
    shade = nx * lx
    shade += ny * ly  # the part that the highlight shares
    half = np.sqrt(2 + 2 * lz)
    gloss = (shade + nz * (lz + 1)) / half
    for _ in range(4):
        gloss *= gloss
    gloss *= layout.tone[rows, 3, None, None] * np.float32(0.6)
    nz *= lz
    shade += nz
    np.maximum(shade, 0, out=shade)
    shade *= (1 - _AMBIENT) / lz
    shade += _AMBIENT
    return shade, gloss


def _pattern(layout: Layout, slot: int, rows: Array, x: Array, y: Array, shade: Array) -> None:
    """Darken ``shade`` [m, w, w] by the surface's pattern, in place."""
    surface, pattern = layout.surface[rows, slot], layout.pattern[rows, slot][:, :, None, None]
    for k, name in enumerate(SURFACES):
        part = np.flatnonzero(surface == k)
        if name == "plain" or not len(part):
            continue
        frequency, phase, strength = pattern[part, 0], pattern[part, 1], pattern[part, 2]
        wave = np.sin(y[part] * frequency + phase)
        if name == "spotted":
            wave *= np.sin(x[part] * frequency + phase)
            wave *= 2
            wave -= 1
        wave *= 2
        wave += 0.5
        np.clip(wave, 0, 1, out=wave)
        wave *= -strength
        wave += 1
        shade[part] *= wave


def _ground(layout: Layout, size: int) -> Array:
    """The canvas before any object: float32 [n, 3, S, S]."""
    direction, frequency, phase, strength, slant = (column[:, None] for column in layout.ground_pattern.T)
    grid = _centres(size) - np.float32(0.5)
    blend = 0.5 + (np.cos(slant) * grid)[:, None, :] * 0.8 + (np.sin(slant) * grid)[:, :, None] * 0.8
    ends = layout.ground_colour[:, :, :, None, None]
    texture = _clouds(layout.pixel_key, size) * np.float32(0.08)
    turn = 2 * np.pi * frequency
    c, s = np.cos(direction) * turn, np.sin(direction) * turn
    for k, name in enumerate(GROUNDS):
        part = np.flatnonzero(layout.ground == k)
        if name == "plain" or not len(part):
            continue
        if name == "cloudy":
            texture[part] *= 4.5
            continue
        wave = np.sin((grid * c[part] + phase[part])[:, None, :] + (grid * s[part])[:, :, None])
        if name == "checked":
            wave *= np.sin((grid * -s[part])[:, None, :] + (grid * c[part] + phase[part])[:, :, None])
        texture[part] += np.clip(wave * 4, -1, 1) * strength[part, :, None]
    canvas = blend[:, None] * (ends[:, 1] - ends[:, 0])
    canvas += ends[:, 0]
    canvas += texture[:, None]
    return canvas


@lru_cache(maxsize=16)
def _interpolation(cells: int, size: int) -> Array:
    """Smooth weights [size, cells + 1] that stretch a lattice over the image."""
    at = (np.arange(size) + 0.5) / size * cells
    low = np.minimum(at.astype(np.int64), cells - 1)
    t = at - low
    t = t * t * (3 - 2 * t)
    weights = np.zeros((size, cells + 1))
    weights[np.arange(size), low] = 1 - t
    weights[np.arange(size), low + 1] = t
    return weights.astype(np.float32)


def _clouds(key: Array, size: int) -> Array:
    """Value noise of three octaves in about -1..1: [n, S, S]."""
    clouds = np.zeros((len(key), size, size), np.float32)
    for octave, cells in enumerate((3, 7, 15)):
        lattice = (bits(key + np.uint64(octave), (cells + 1) ** 2) >> np.uint64(40)).astype(np.float32)
        lattice = lattice.reshape(-1, cells + 1, cells + 1) * np.float32(2.0**-23) - 1
        stretch = _interpolation(cells, size)
        clouds += np.float32(0.6 / 1.5**octave) * (stretch @ lattice @ stretch.T)
    return clouds


def _develop(canvas: Array, layout: Layout) -> Array:
    """Contrast, brightness and noise (triangular, partly common to the channels), then uint8."""
    n, _, size, _ = canvas.shape
    contrast, brightness, grain = (layout.tone[:, k, None, None, None] * 255 for k in range(3))
    words = bits(layout.noise_key, size * size).astype("<u8", copy=False)
    lanes = words.view("<u2").reshape(n, 4, size, size).astype(np.float32)
    noise = lanes[:, :3]
    noise += lanes[:, 3:]
    noise *= grain * np.float32(2.0**-16)
    canvas *= contrast
    canvas += brightness - contrast / 2 - grain + 128
    canvas += noise
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
