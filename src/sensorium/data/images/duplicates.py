"""Duplicate images: exact, or near (recompressed, resized, slightly brightened).

Exact: the same decoded pixels, by a 64-bit hash. Near, in three stages, from cheap and coarse to fine: two 64-bit
difference hashes (a bit: whether a cell of a 9 x 8 gray thumbnail is clearly brighter than its left neighbor; of an 8 x
9 one, than its upper one) propose pairs within 6 bits in both (3 if t >= 0.99); 8 x 8 gray thumbnails, then 16 x 16
color ones decide. Each channel's mean is subtracted first, so that brightness does not matter:
    r(a, b) = <a - mean a, b - mean b> / (|a - mean a| |b - mean b|) >= t,   |mean a - mean b| <= 32 of 255
    t = max(0.95, 1 - (1 - q)^2)        q = the 99.9th percentile of r over random pairs
If all images are similar (trousers on black), q is close to 1 and only exceptionally similar pairs count as duplicates.
Up to 40,000 different images every pair is compared; beyond, only pairs that share one of four 16-bit bands of the
first hash, which finds all within 3 bits and most within 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

THUMB = 16
BITS = 6
BITS_ALIKE = 3
"""Whether t is at least 0.99, so that pairs must match more closely."""
CORRELATION = 0.95
BRIGHTNESS = 32.0
ALL_PAIRS = 40_000
MAX_PAIRS = 100_000
MAX_CANDIDATES = 20_000_000
_MAX_BUCKET = 4096
_STEP = 3  # gray levels: smaller differences are noise, and would make hashes of flat regions random


@dataclass(frozen=True)
class Pairs:
    """Near-duplicate pairs int64 [P, 2], i < j; ``complete`` is False if counting stopped at the limit."""

    pairs: np.ndarray
    complete: bool


def resize_weights(size: int, out: int) -> np.ndarray:
    """Antialiased bilinear resampling as a matrix [out, size], each row summing to 1."""
    scale = size / out
    width = max(scale, 1.0)
    centre = (np.arange(out) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centre[:, None]) / width)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, C] -> uint8 [n, 16, 16, C]."""
    rows, columns = (resize_weights(side, THUMB) for side in pixels.shape[1:3])
    count, height, width, channels = pixels.shape
    x = rows @ pixels.reshape(count, height, width * channels).astype(np.float32)
    x = x.reshape(count, THUMB, width, channels).transpose(0, 1, 3, 2) @ columns.T
    return np.clip(np.round(x.transpose(0, 1, 3, 2)), 0, 255).astype(np.uint8)


def difference_hashes(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 16, 16, 3] -> the hashes along rows and along columns, uint64 [n] each."""
    grey = _grey(thumbs)
    eight, nine = resize_weights(THUMB, 8), resize_weights(THUMB, 9)
    across, down = np.diff(eight @ grey @ nine.T, axis=2) > _STEP, np.diff(nine @ grey @ eight.T, axis=1) > _STEP
    hashes = [np.packbits(bits.reshape(len(thumbs), 64), axis=1).view(np.uint64)[:, 0] for bits in (across, down)]
    return hashes[0], hashes[1]


def groups_of_equal(digests: np.ndarray) -> list[np.ndarray]:
    """Groups (two or more indices, ascending) of equal digests uint64 [N], the first first."""
    order = np.argsort(digests, kind="stable")
    edges = np.flatnonzero(np.diff(digests[order]) != 0) + 1
    groups = [group for group in np.split(order, edges) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(thumbs: np.ndarray, all_pairs: int = ALL_PAIRS, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Near-duplicate pairs among different, not constant images uint8 [N, 16, 16, 3]."""
    if len(thumbs) < 2:
        return Pairs(np.zeros((0, 2), np.int64), True)
    across, down = difference_hashes(thumbs)
    small = _unit((resize_weights(THUMB, 8) @ _grey(thumbs) @ resize_weights(THUMB, 8).T).reshape(len(thumbs), 64, 1))
    least = _threshold(thumbs)
    bits = BITS if least < 0.99 else BITS_ALIKE
    kept: list[np.ndarray] = []
    count = tried = 0
    for block in _all_candidates(across, bits) if len(across) <= all_pairs else _banded_candidates(across, bits):
        block = block[np.bitwise_count(down[block[:, 0]] ^ down[block[:, 1]]) <= bits]
        tried += len(block)
        block = block[np.einsum("pk,pk->p", small[block[:, 0]], small[block[:, 1]]) >= least]
        sure = block[_alike(thumbs, block, least)]
        kept.append(sure)
        count += len(sure)
        if count > max_pairs or tried > MAX_CANDIDATES:
            return Pairs(np.unique(np.concatenate(kept), axis=0)[:max_pairs], False)
    pairs = np.concatenate(kept) if kept else np.zeros((0, 2), np.int64)
    return Pairs(np.unique(pairs, axis=0), True)


def _threshold(thumbs: np.ndarray, samples: int = 16_384) -> float:
    """t from random pairs; robust to a few duplicates in a small set."""
    samples = min(samples, 32 * len(thumbs))
    rng = np.random.default_rng(0)
    a, step = rng.integers(0, len(thumbs), samples), rng.integers(1, len(thumbs), samples)
    r = [
        _likeness(thumbs, a[i : i + 4096], (a[i : i + 4096] + step[i : i + 4096]) % len(thumbs))[0]
        for i in range(0, samples, 4096)
    ]
    q = float(np.quantile(np.concatenate(r), max(0.0, 1 - max(0.001, 4 / len(thumbs)))))
    return max(CORRELATION, 1 - (1 - q) ** 2) if q > 0 else CORRELATION


def _grey(thumbs: np.ndarray) -> np.ndarray:
    return thumbs.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    """[n, k, C] -> [n, k * C] with each channel's mean subtracted, normalized to length 1 (0 stays 0)."""
    x = (x - x.mean(1, keepdims=True)).reshape(len(x), -1)
    return x / np.maximum(np.sqrt(np.einsum("nk,nk->n", x, x)), 1e-6)[:, None]


def _likeness(thumbs: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r, largest difference of the channels' means) of the pairs (i, j), float32 [P] each."""
    a, b = (thumbs[k].reshape(len(k), -1, 3).astype(np.float32) for k in (i, j))
    return np.einsum("pk,pk->p", _unit(a), _unit(b)), np.abs(a.mean(1) - b.mean(1)).max(1)


def _alike(thumbs: np.ndarray, pairs: np.ndarray, least: float) -> np.ndarray:
    """Which of the pairs int64 [P, 2] pass both tests, bool [P]."""
    verdict = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        r, apart = _likeness(thumbs, part[:, 0], part[:, 1])
        verdict[start : start + 4096] = (r >= least) & (apart <= BRIGHTNESS)
    return verdict


def _all_candidates(hashes: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    """Pairs (i < j) within ``bits`` bits, block by block so that a block stays in the processor's cache."""
    rows, columns = 16, 4096
    for i in range(0, len(hashes), rows):
        for j in range(i, len(hashes), columns):
            near = np.bitwise_count(hashes[i : i + rows, None] ^ hashes[None, j : j + columns]) <= bits
            a, b = np.divmod(np.flatnonzero(near), near.shape[1])
            pairs = np.stack([a + i, b + j], 1)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            if len(pairs):
                yield pairs


def _banded_candidates(hashes: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    """Pairs within ``bits`` bits that share a band; a bucket larger than the limit is compared in pieces of that
    size."""
    for band in range(4):
        values = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(values, kind="stable")
        edges = np.flatnonzero(np.diff(values[order]) != 0) + 1
        starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
        for start, stop in zip(starts[stops - starts > 1], stops[stops - starts > 1], strict=True):
            for at in range(start, stop, _MAX_BUCKET):
                members = order[at : min(at + _MAX_BUCKET, stop)]
                for pairs in _all_candidates(hashes[members], bits):
                    yield np.sort(members[pairs], axis=1)
