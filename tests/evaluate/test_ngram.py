"""Kneser-Ney against a dictionary's worth of plain code, and as a distribution."""

from collections import Counter

import numpy as np
import pytest

from sensorium.metrics.ngram import BYTES, KneserNey, unigram_bits


def plain(text: bytes, order: int, history: bytes, byte: int) -> float:
    """The equations of the module, with dictionaries."""
    p = 1 / BYTES
    for m in range(1, order + 1):
        grams = Counter(text[i : i + order] for i in range(len(text) - order + 1))
        for _ in range(order - m):
            grams = Counter(gram[1:] for gram in grams)
        once, twice = (sum(c == n for c in grams.values()) for n in (1, 2))
        d = once / (once + 2 * twice) if once and twice else 0.5
        h = history[len(history) - (m - 1) :] if m > 1 else b""
        if len(h) < m - 1:
            break
        follow = {gram: c for gram, c in grams.items() if gram[:-1] == h}
        if follow:
            total = sum(follow.values())
            p = max(grams[h + bytes([byte])] - d, 0) / total + d * len(follow) / total * p
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_equations(order: int) -> None:
    train, test = b"abracadabra, the cat sat on a mat; abracadabra!", b"the bra sat on zabra"
    found = KneserNey(np.frombuffer(train, np.uint8), order).probability(np.frombuffer(test, np.uint8))
    expected = [plain(train, order, test[max(0, i - order + 1) : i], byte) for i, byte in enumerate(test)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 7])
def test_sums_to_one_after_any_history(order: int) -> None:
    rng = np.random.default_rng(0)
    model = KneserNey(rng.integers(97, 104, 500, np.uint8), order)
    for _ in range(5):
        history = rng.integers(96, 106, 8, np.uint8)
        each = [model.probability(np.append(history, byte).astype(np.uint8))[-1] for byte in range(BYTES)]
        assert sum(each) == pytest.approx(1)
        assert min(each) > 0


def test_a_longer_history_helps_on_repeating_text_and_a_unigram_does_not() -> None:
    text = np.frombuffer(b"to be, or not to be: that is the question. " * 20, np.uint8)
    bits = [KneserNey(text[:-200], order).bits_per_byte(text[-200:]) for order in (1, 2, 5)]
    assert bits[0] > bits[1] > bits[2]
    assert unigram_bits(text[:-200], text[-200:]) == pytest.approx(bits[0], abs=0.7)


def test_unigram_of_even_bytes_is_eight_bits() -> None:
    even = np.arange(256, dtype=np.uint8)
    assert unigram_bits(even, even) == pytest.approx(8)
    with pytest.raises(ValueError, match="order must be"):
        KneserNey(even, 8)
