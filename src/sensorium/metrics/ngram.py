"""Baselines of language models: byte frequencies, and interpolated Kneser-Ney (Chen & Goodman, 1999, section 2.8).

They model bytes whatever the tokenizer, so that the baseline is the same for all models. With c the counts at the
highest order, and at lower orders the number of different preceding bytes (N1+, "continuation" counts), each order m is
    p_m(w | h) = max(c(h w) - D_m, 0) / c(h) + D_m N1+(h .) / c(h) p_{m-1}(w | h'),     h' is h without its first byte,
    D_m = n1 / (n1 + 2 n2),          n1, n2: number of different m-grams that occur once, twice
and p_0 is uniform. If h was never seen, p_m = p_{m-1}.
A string of m <= 7 bytes is encoded as one integer in base 256; counts are sorted arrays of such integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BYTES = 256


@dataclass(frozen=True)
class _Order:
    """Counts of strings (sorted), and for each context its total count and its number of different continuations."""

    strings: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    sums: np.ndarray
    kinds: np.ndarray
    discount: float


class KneserNey:
    """An interpolated Kneser-Ney model of ``order`` bytes (1 to 7), of ``text`` uint8 [N]."""

    def __init__(self, text: np.ndarray, order: int = 5):
        if not 1 <= order <= 7:
            raise ValueError(f"order must be between 1 and 7 (a string is one 64-bit integer), got {order}")
        self.order, self.levels = order, []
        strings, counts = np.unique(_strings(np.asarray(text, np.uint8), order), return_counts=True)
        for m in range(order, 0, -1):
            self.levels.append(_order(strings, counts))
            # at the next lower order each different string counts once: the number of different preceding bytes
            strings, counts = np.unique(strings % BYTES ** (m - 1), return_counts=True)
        self.levels.reverse()

    def probability(self, text: np.ndarray) -> np.ndarray:
        """Probability of each byte of ``text`` uint8 [N] given those before it (fewer at the start): float64 [N]."""
        text = np.asarray(text, np.uint8)
        p = np.full(len(text), 1 / BYTES)
        for m, level in enumerate(self.levels, start=1):
            if len(text) < m:
                break
            strings = _strings(text, m)
            count = look(level.strings, level.counts, strings)
            total = look(level.contexts, level.sums, strings // BYTES)
            kinds = look(level.contexts, level.kinds, strings // BYTES)
            seen = total > 0
            total = np.maximum(total, 1)
            mixed = np.maximum(count - level.discount, 0) / total + level.discount * kinds / total * p[m - 1 :]
            p[m - 1 :] = np.where(seen, mixed, p[m - 1 :])
        return p

    def bits_per_byte(self, text: np.ndarray) -> float:
        return float(-np.log2(self.probability(text)).mean())


def unigram_bits(train: np.ndarray, test: np.ndarray) -> float:
    """Bits per byte of ``test`` uint8 [N] by the frequencies in ``train``, with add-one smoothing."""
    counts = np.bincount(np.asarray(train, np.uint8), minlength=BYTES) + 1.0
    return float(-np.log2(counts / counts.sum())[np.asarray(test, np.uint8)].mean())


def _strings(text: np.ndarray, m: int) -> np.ndarray:
    """Each run of m bytes as an integer: int64 [N - m + 1]."""
    found = np.zeros(max(0, len(text) - m + 1), np.int64)
    for i in range(m):
        found = found * BYTES + text[i : i + len(found)]
    return found


def _order(strings: np.ndarray, counts: np.ndarray) -> _Order:
    contexts, first, kinds = np.unique(strings // BYTES, return_index=True, return_counts=True)
    sums = np.add.reduceat(counts, first) if len(counts) else counts
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # without rare strings the estimate is 0 / 0, and without a discount unseen bytes would get no probability
    discount = once / (once + 2 * twice) if once and twice else 0.5
    return _Order(strings, counts, contexts, sums, kinds, discount)


def look(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """``values`` of the ``asked`` keys among sorted ``keys``, 0 if missing."""
    if len(keys) == 0:
        return np.zeros(len(asked), np.int64)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
