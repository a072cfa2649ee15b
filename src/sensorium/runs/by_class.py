"""What a comparison says of each class: how many of its test images each run gets right, and what more labels would add.

The interval of a share of n is Wilson's (1927): of all p that a test at 5 % does not reject,
    (s + z^2 / 2 +- z sqrt(s (1 - s / n) + z^2 / 4)) / (n + z^2),   s right ones, z = 1.96.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.judge.encode import labels_of
from sensorium.judge.feature_scores import Seen
from sensorium.judge.score import Score, Z
from sensorium.runs.results import OfClass, RunResult


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, of which ``right`` among ``n`` is the measurement; (0, 1) without any."""
    if not n:
        return 0.0, 1.0
    half = Z * math.sqrt(max(right * (1 - right / n), 0.0) + Z**2 / 4)
    middle = right + Z**2 / 2
    return max(0.0, (middle - half) / (n + Z**2)), min(1.0, (middle + half) / (n + Z**2))


def by_class(runs: Sequence[RunResult], score: Score, images: Seen) -> tuple[OfClass, ...]:
    """Each class of ``images`` with the share of its test images that each run gets right, as ``score`` counts; () where
    it counts no share, or no run has that for single images."""
    assert images.test is not None
    if not score.share:
        return ()
    truth = labels_of(images.test)
    truth = truth[truth >= 0]
    found: dict[str, np.ndarray] = {}
    for run in runs:
        own = run.score(score)
        if own is not None and own.outcomes is not None and own.outcomes.shape == truth.shape:
            found[run.name] = own.outcomes.astype(np.float64)
    if not found:
        return ()
    given = labels_of(images.train)
    rows = []
    for k, name in enumerate(images.train.classes):
        of = truth == k
        n = int(of.sum())
        right = {run: float(one[of].sum()) for run, one in found.items()}
        spans = {run: wilson(count, n) for run, count in right.items()}
        shares = {run: count / n for run, count in right.items()} if n else {}
        low, high = ({run: span[i] for run, span in spans.items()} if n else {} for i in (0, 1))
        rows.append(OfClass(name, int((given == k).sum()), n, shares, low, high))
    return tuple(rows)


def doubled(run: RunResult) -> float | None:
    """What twice the labels would add to the best score by labels, read off the last two fractions that were measured:
    accuracy rises about linearly with the logarithm of their number. None with fewer than two."""
    best: dict[int, float] = {}
    for score in run.scores:
        if score.group and score.labels and score.value is not None and score.share:
            best[score.labels] = max(best.get(score.labels, 0.0), score.value)
    if len(best) < 2:
        return None
    (few, low), (many, high) = sorted(best.items())[-2:]
    return (high - low) / math.log2(many / few)


def all_doubled(runs: Sequence[RunResult]) -> dict[str, float]:
    """:func:`doubled` of the runs that learned without labels: the others had all of them at every fraction."""
    found: dict[str, Any] = {run.name: doubled(run) for run in runs if run.finished and not run.by_labels}
    return {name: gain for name, gain in found.items() if gain is not None}
