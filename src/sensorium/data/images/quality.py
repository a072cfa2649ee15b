"""Pictures of doubtful quality: blurred, dark, bright, with little information, of an odd size or an odd shape.

With w and h the sides, s = sqrt(w h), q1 and q3 the quartiles of s in the data set, p_k the k-th percentile of the
perceived brightness sqrt(0.241 R^2 + 0.691 G^2 + 0.068 B^2) / 255, and H the entropy of a channel's 256 values in bits, mean
of the three channels:

    dark                p_99 < 0.32
    bright              p_5 > 0.95
    little information  H < 3 - log2 3
    odd size            s < q1 - 3 (q3 - q1)  or  s > q3 + 3 (q3 - q1)
    odd shape           min(w / h, h / w) < 0.35
    blurred             e / c < 0.6        e, c: standard deviations of the Laplacian and of the gray levels, longer side 64;
                        e / c < 0.3 of its median over all such, of pictures of 16 to 63 pixels, at their own size

These are the statistics and thresholds of cleanvision 0.3 (Cleanlab) on RGB pixels, but for blur. Its measure is e with negative
values cut off and with the frame of the filtered picture, which its filter leaves as gray as it was, so that bright pictures are
never blurred; it also passes over pictures with much of one gray level. ``python -m benchmarks.quality`` compares both: of 43
photographs, each blurred by 4 % of its longer side, 43 are below 0.6, and cleanvision finds 16; as they are, the least is 1.05.
e / c is the same in fog and in the dark. In small pictures a sharp edge is as wide as the object, so that they are compared with each
other: of 6,000 of CIFAR-10 none is below 0.3 of the median, and of 300 blurred by 6 % of their side 98 % are.

Of small pictures less is told: one below 16 pixels isn't called blurred, nor one below 32 of little information, as it can hold no
more. And what one picture in five is is no fault of a picture but
how the data are: X-rays are dark, drawings have few colors. It is told of the data, as a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

DARK, BRIGHT, ENTROPY, SHAPE, BLUR = 0.32, 0.95, 3 - np.log2(3), 0.35, 0.6
SIZES_APART = 3.0  # distances between the quartiles
SIZE_FACTOR = 1.25  # where nearly all have one size, the quartiles are equal, and a pixel more would be odd
FEW = 10  # of fewer pictures the quartiles of the sizes say nothing
REDUCED = 64  # the longer side at which blur is measured, if a picture is so large
TINY, RELATIVE = (
    16,
    0.3,
)  # the least longer side at which it is measured, and the limit of smaller ones, of their median
SMALL = 32  # the longer side from which on a picture can be said to hold little information
USUAL, SOME = 0.2, 5  # what more than this fraction of the pictures are, and more than so many, is told of the data set
_SAMPLED = 64  # the most of a side of the grid of pixels that brightness and entropy are taken from
_PIECE = 1 << 16  # pixels that are counted at once, so that they stay in the processor's cache
_PERCEIVED = np.array([0.241, 0.691, 0.068], np.float32)


@dataclass(frozen=True)
class Measures:
    """Of n pictures, each float32 [n]: ``high`` and ``low``, the 99th and 5th percentile of the brightness (0 to 1),
    ``entropy`` in bits, ``sharpness`` (NaN of tiny pictures), and ``sizes``, (width, height) float64 [n, 2]."""

    high: np.ndarray
    low: np.ndarray
    entropy: np.ndarray
    sharpness: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Doubtful:
    """Indices of pictures by kind, the worst first: ``told`` are doubtful, ``usual`` are as many others of their data are. A
    kind that can be said of no picture is in neither."""

    told: dict[str, np.ndarray]
    usual: dict[str, np.ndarray]


def sampled(pixels: np.ndarray) -> np.ndarray:
    """Pixels [..., H, W, C] of an even grid, at most 64 a side. They are picked, not averaged: an average has neither
    the darkest nor the brightest ones."""
    rows, columns = (-(-side // _SAMPLED) for side in pixels.shape[-3:-1])
    return pixels[..., (rows - 1) // 2 :: rows, (columns - 1) // 2 :: columns, :]


def levels(pixels: np.ndarray) -> np.ndarray:
    """(99th, 5th percentile of the brightness, entropy) of pictures uint8 [n, H, W, 3], float32 [n, 3]."""
    count = pixels.shape[1] * pixels.shape[2]
    piece = max(1, _PIECE // max(count, 1))
    return np.concatenate([_levels(pixels[i : i + piece]) for i in range(0, len(pixels), piece)])


def _levels(pixels: np.ndarray) -> np.ndarray:
    n, count = len(pixels), pixels.shape[1] * pixels.shape[2]
    values = np.empty((n, 4, count), np.int64)
    values[:, :3] = pixels.reshape(n, count, 3).transpose(0, 2, 1)
    brightness = pixels.reshape(-1, 3).astype(np.float32)
    brightness *= brightness
    values[:, 3] = (np.sqrt(brightness @ _PERCEIVED) + 0.5).reshape(n, count)
    values += 256 * np.arange(4 * n).reshape(n, 4, 1)
    histograms = np.bincount(values.ravel(), minlength=1024 * n).reshape(n, 4, 256)
    counts = np.arange(count + 1, dtype=np.float32)
    entropy = np.log2(count) - (counts * np.log2(np.maximum(counts, 1)))[histograms[:, :3]].sum(2).mean(1) / count
    below = histograms[:, 3].cumsum(1)
    high, low = ((below < share * count).sum(1) / 255 for share in (0.99, 0.05))
    return np.stack([high, low, entropy], 1).astype(np.float32)


def levels_of_each(samples: Sequence[np.ndarray]) -> np.ndarray:
    """:func:`levels` of pictures of different sizes; those of one size together, which is quicker."""
    found = np.empty((len(samples), 3), np.float32)
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, sample in enumerate(samples):
        alike.setdefault(sample.shape, []).append(k)
    for members in alike.values():
        found[members] = levels(np.stack([samples[k] for k in members]))
    return found


def sharpness(image: Image.Image) -> float:
    """e / c of an RGB picture, NaN if its longer side is below 16.

    Contrast cancels out, so that fog or darkness alone are no blur. It is measured at one size for all that are so large,
    since noise and compression are sharp at full size in any picture.
    """
    longer = max(image.size)
    if longer < TINY:
        return float("nan")
    gray = image.convert("L")  # first: one channel is reduced in place of three, to the same values
    width, height = (max(3, round(side * min(1.0, REDUCED / longer))) for side in image.size)
    if (width, height) != image.size:
        gray = gray.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    levels = np.asarray(gray, np.float32)
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    edges = 9 * levels[1:-1, 1:-1] - (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])
    contrast = float(levels.std())
    return float(edges.std()) / contrast if contrast else float("nan")


def beyond(measures: Measures, spared: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the pictures beyond each threshold, the worst first. ``spared``, bool [n]: told of already, as blank or as
    badly scaled ones; they are neither blurred, dark, bright nor of little information."""
    longer = measures.sizes.max(1, initial=0)
    entropy = np.where(longer >= SMALL, measures.entropy, np.nan)
    shape = measures.sizes.min(1, initial=np.inf) / np.maximum(longer, 1)
    kinds = {
        "blurred": (_beside(measures.sharpness, longer < REDUCED, ~spared), BLUR, ~spared),
        "dark": (measures.high, DARK, ~spared),
        "bright": (-measures.low, -BRIGHT, ~spared),
        "little_information": (entropy, ENTROPY, ~spared),
        "odd_shape": (shape, SHAPE, np.ones(len(shape), bool)),
    }
    found = {}
    for kind, (value, limit, meant) in kinds.items():
        if np.isfinite(value[meant]).any():
            worse = np.flatnonzero(meant & (value < limit))
            found[kind] = worse[np.argsort(value[worse], kind="stable")]
    if len(shape) >= FEW:
        found["odd_size"] = _odd_sizes(np.sqrt(measures.sizes.prod(1)))
    return found


def _beside(sharpness: np.ndarray, small: np.ndarray, meant: np.ndarray) -> np.ndarray:
    """Sharpness of which that of small pictures is relative: BLUR at RELATIVE times their median; NaN if they are few."""
    known = small & meant & np.isfinite(sharpness)
    middle = np.median(sharpness[known]) if known.sum() >= FEW else np.nan
    return np.where(small, sharpness * (BLUR / RELATIVE / middle), sharpness)


def judge(measures: Measures, spared: np.ndarray) -> Doubtful:
    """Which pictures are told of, and what is told of the data; see :func:`beyond`."""
    found = beyond(measures, spared)
    most = max(SOME, USUAL * len(spared))
    return Doubtful(
        {kind: worse for kind, worse in found.items() if len(worse) <= most},
        {kind: worse for kind, worse in found.items() if len(worse) > most},
    )


def _odd_sizes(side: np.ndarray) -> np.ndarray:
    """Indices, the one farthest from the median first."""
    first, median, third = np.quantile(side, (0.25, 0.5, 0.75))
    apart = SIZES_APART * (third - first)
    times = np.maximum(side, 1) / max(median, 1)
    factor = np.maximum(times, 1 / times)
    odd = np.flatnonzero(((side < first - apart) | (side > third + apart)) & (factor >= SIZE_FACTOR))
    return odd[np.argsort(-factor[odd], kind="stable")]
