"""Documents that are copies of others, exactly or nearly.

Exact ones are equal but for white space. Two documents are near copies if the sets of their sequences of five words have a Jaccard
similarity |A and B| / |A or B| of at least 0.8. Candidates are found by MinHash with banding (Broder, 1997; Leskovec et al., Mining of
Massive Datasets, chapter 3): with r = 5 values in each of b = 12 bands a pair of similarity s is compared with probability
1 - (1 - s^r)^b, 0.99 at 0.8 and 0.05 at 0.33.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WORDS, ALIKE = 5, 0.8
ROWS, BANDS = 5, 12
LEAST_WORDS = 20  # of a document that can be a near copy: a short one has too few sequences to tell
MOST_BYTES = 50_000  # of a document that are compared
MOST_ALIKE = 50  # of the documents of a band that are compared with one another
_ODD = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)


class Copies(NamedTuple):
    """Pairs (one document, a later one) of indices: equal, and nearly equal."""

    equal: list[tuple[int, int]]
    near: list[tuple[int, int]]


def copies(documents: Sequence[bytes]) -> Copies:
    """Which ``documents`` repeat an earlier one. Of several equal ones only the first is looked at for near copies."""
    first: dict[bytes, int] = {}
    equal, kept = [], []
    for i, document in enumerate(documents):
        key = hashlib.blake2b(b" ".join(document.split()), digest_size=16).digest()
        if key in first:
            equal.append((first[key], i))
        else:
            first[key] = i
            kept.append(i)
    return Copies(equal, _near(documents, kept))


def _near(documents: Sequence[bytes], which: Sequence[int]) -> list[tuple[int, int]]:
    numbers: dict[bytes, int] = {}
    sets = {i: found for i in which if len(found := shingles(documents[i], numbers))}
    buckets: dict[tuple[int, bytes], list[int]] = {}
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, ROWS * BANDS).astype(np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = rng.integers(0, 2**63, ROWS * BANDS).astype(np.uint64)
    for i, found in sets.items():
        with np.errstate(over="ignore"):
            least = np.array([(found * factor + shift).min() for factor, shift in zip(factors, shifts, strict=True)])
        for band in range(BANDS):
            buckets.setdefault((band, least[band * ROWS : (band + 1) * ROWS].tobytes()), []).append(i)
    pairs = set()
    for members in buckets.values():
        for k, later in enumerate(members[:MOST_ALIKE]):
            pairs |= {(earlier, later) for earlier in members[:k]}
    return sorted(pair for pair in pairs if jaccard(*(sets[i] for i in pair)) >= ALIKE)


def shingles(document: bytes, numbers: dict[bytes, int]) -> np.ndarray:
    """The different hashes of five words in sequence, uint64 [n], sorted; none of a document of fewer than 20 words.
    ``numbers``: the hashes of words so far."""
    words = document[:MOST_BYTES].lower().split()
    if len(words) < LEAST_WORDS:
        return np.zeros(0, np.uint64)
    for word in words:
        if word not in numbers:
            numbers[word] = zlib.crc32(word) << 32 | zlib.adler32(word)
    codes = np.array([numbers[word] for word in words], np.uint64)
    with np.errstate(over="ignore"):
        total = np.zeros(len(codes) - WORDS + 1, np.uint64)
        for k in range(WORDS):
            total += codes[k : len(codes) - WORDS + 1 + k] * _ODD[k]
        total ^= total >> np.uint64(29)
        return np.unique(total * _ODD[0])


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A and B| / |A or B| of two sets, each sorted without repetition."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(len(a) + len(b) - both, 1)
