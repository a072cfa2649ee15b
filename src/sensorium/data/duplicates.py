"""Images that are there twice: exactly, or nearly (recompressed, resized, brightened a little).

Exact: the same decoded pixels, by a 64-bit hash. Near, in two stages: a 64-bit difference hash (a bit says whether a
cell of a 9 x 8 grey thumbnail is clearly brighter than its left neighbour) proposes pairs within 6 bits, and 16 x 16
colour thumbnails decide. Pixels are compared after their mean is taken out, so that brightness does not matter:
    r(a, b) = <a - mean a, b - mean b> / (|a - mean a| |b - mean b|) >= 0.985,   |mean a - mean b| <= 24 of 255.
Up to 40,000 different images every pair is compared; beyond, pairs that share one of four 16-bit bands of the hash,
which finds all within 3 bits and most within 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

THUMB = 16
BITS = 6
CORRELATION = 0.985
BRIGHTNESS = 24.0
ALL_PAIRS = 40_000
MAX_PAIRS = 100_000
_MAX_BUCKET = 4096
_STEP = 3  # grey levels: less is noise, and would make hashes of flat regions random


@dataclass(frozen=True)
class Pairs:
    """Near-duplicate pairs int64 [P, 2], i < j; ``complete`` is False where counting stopped at the bound."""

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


def difference_hash(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [n, 16, 16, 3] -> uint64 [n]."""
    grey = thumbs.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    small = resize_weights(THUMB, 8) @ grey @ resize_weights(THUMB, 9).T
    bits = small[:, :, 1:] - small[:, :, :-1] > _STEP
    return np.packbits(bits.reshape(len(bits), 64), axis=1).view(np.uint64)[:, 0]


def groups_of_equal(digests: np.ndarray) -> list[np.ndarray]:
    """Groups (two or more indices, ascending) of equal digests uint64 [N], the first first."""
    order = np.argsort(digests, kind="stable")
    edges = np.flatnonzero(np.diff(digests[order]) != 0) + 1
    groups = [group for group in np.split(order, edges) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(thumbs: np.ndarray, all_pairs: int = ALL_PAIRS, max_pairs: int = MAX_PAIRS) -> Pairs:
    """Near-duplicate pairs among different, not constant images uint8 [N, 16, 16, 3]."""
    hashes = difference_hash(thumbs)
    candidates = _all_candidates(hashes) if len(hashes) <= all_pairs else _banded_candidates(hashes)
    kept: list[np.ndarray] = []
    count = 0
    for block in candidates:
        sure = block[_alike(thumbs, block)]
        kept.append(sure)
        count += len(sure)
        if count > max_pairs:
            return Pairs(np.unique(np.concatenate(kept), axis=0)[:max_pairs], False)
    pairs = np.concatenate(kept) if kept else np.zeros((0, 2), np.int64)
    return Pairs(np.unique(pairs, axis=0), True)


def _alike(thumbs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Which of the pairs int64 [P, 2] pass both tests, bool [P]."""
    verdict = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 4096):
        part = pairs[start : start + 4096]
        a, b = (thumbs[part[:, side]].reshape(len(part), -1).astype(np.float32) for side in (0, 1))
        mean_a, mean_b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
        a, b = a - mean_a, b - mean_b
        norms = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        close = (a * b).sum(1) >= CORRELATION * norms
        verdict[start : start + 4096] = close & (np.abs(mean_a - mean_b)[:, 0] <= BRIGHTNESS) & (norms > 0)
    return verdict


def _all_candidates(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs within BITS bits, block by block so that a block stays in the processor's cache."""
    rows, columns = 64, 8192
    for i in range(0, len(hashes), rows):
        for j in range(i, len(hashes), columns):
            apart = np.bitwise_count(hashes[i : i + rows, None] ^ hashes[None, j : j + columns])
            a, b = np.nonzero(apart <= BITS)
            pairs = np.stack([a + i, b + j], 1)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            if len(pairs):
                yield pairs


def _banded_candidates(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs within BITS bits that share a band; a bucket larger than the bound is compared in pieces of that size."""
    for band in range(4):
        values = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(values, kind="stable")
        edges = np.flatnonzero(np.diff(values[order]) != 0) + 1
        starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(order)]])
        for start, stop in zip(starts[stops - starts > 1], stops[stops - starts > 1], strict=True):
            for at in range(start, stop, _MAX_BUCKET):
                members = order[at : min(at + _MAX_BUCKET, stop)]
                for pairs in _all_candidates(hashes[members]):
                    yield np.sort(members[pairs], axis=1)
