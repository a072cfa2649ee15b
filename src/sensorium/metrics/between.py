"""A baseline of masked language models: how often a token stood between the same neighbors, as far as these are known.

With c the counts in a training text, and Witten-Bell interpolation (Witten & Bell, 1991; Chen & Goodman, 1999, section 2.4)
    p(w | h) = (c(h w) + N1+(h .) q(w)) / (c(h) + N1+(h .)),         N1+: the number of different tokens seen beside h
    h = (left, right)   q = the mean of p(w | left) and p(w | right)
    h = left, or right  q = the frequencies of tokens, each counted once more
What was never seen changes nothing: p = q. A neighbor that is unknown (masked, or beyond the row) is left out.
"""

from __future__ import annotations

import numpy as np

from sensorium.metrics.ngram import look

UNKNOWN = -1


class Between:
    """Counts of ``tokens`` [N], integers below ``vocab``, between their neighbors."""

    def __init__(self, tokens: np.ndarray, vocab: int) -> None:
        tokens = np.asarray(tokens).astype(np.int64)
        counts = np.bincount(tokens, minlength=vocab) + 1.0
        self.vocab, self.frequency = vocab, counts / counts.sum()
        self._left = _Counts(tokens[:-1], tokens[1:], vocab)
        self._right = _Counts(tokens[1:], tokens[:-1], vocab)
        self._both = _Counts(tokens[:-2] * vocab + tokens[2:], tokens[1:-1], vocab)

    def probability(self, left: np.ndarray, token: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Of each token [n] given its neighbors [n], ``UNKNOWN`` where they are: float64 [n]."""
        left, token, right = (np.asarray(one).astype(np.int64) for one in (left, token, right))
        p, known_left, known_right = self.frequency[token], left != UNKNOWN, right != UNKNOWN
        by_left = np.where(known_left, self._left.mixed(left, token, p), p)
        by_right = np.where(known_right, self._right.mixed(right, token, p), p)
        both = known_left & known_right
        one = np.where(known_left, by_left, by_right)
        mean = (by_left + by_right) / 2
        return np.where(both, self._both.mixed(left * self.vocab + right, token, mean), one)


class _Counts:
    """How often each token [n] was seen beside each context [n]."""

    def __init__(self, contexts: np.ndarray, tokens: np.ndarray, vocab: int) -> None:
        self.vocab = vocab
        self.strings, self.counts = np.unique(contexts * vocab + tokens, return_counts=True)
        self.contexts, first, self.kinds = np.unique(self.strings // vocab, return_index=True, return_counts=True)
        self.sums = np.add.reduceat(self.counts, first) if len(first) else self.counts

    def mixed(self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p(w | h), with ``lower`` as q."""
        count = look(self.strings, self.counts, contexts * self.vocab + tokens)
        total, kinds = look(self.contexts, self.sums, contexts), look(self.contexts, self.kinds, contexts)
        return np.where(total > 0, (count + kinds * lower) / np.maximum(total + kinds, 1), lower)
