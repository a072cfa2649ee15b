"""The linear probe: accuracy of a linear classifier on frozen features, at each label fraction.

For each fraction and seed, multinomial logistic regression (:mod:`sensorium.metrics.logistic`) is fitted to the
stratified subset. Its L2 strength is chosen on that subset alone: a fifth is held out (below 2,000 labels each fifth in
turn, because one fifth is too small), the strength with the highest held-out likelihood is selected (accuracy would be
too noisy on 200 labels; from the strongest on, until it has fallen twice), and the probe is refitted on the whole subset. Features are standardized by the subset's mean
and standard deviation. The test set is used once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.metrics.knn import Labels, labelled
from sensorium.metrics.logistic import Logistic, Probe
from sensorium.metrics.subsets import percent, stratified

GRID = (
    10.0,
    3.0,
    1.0,
    0.3,
    0.1,
    0.03,
    0.01,
    0.003,
    0.001,
    0.0003,
    0.0001,
)  # strongest first: each solution initializes the next
FOLDS = 5
FEW = 2000
ROUGHLY = 1e-3  # tolerance of the solutions that are compared; the final probe is fitted to its optimum
UNDECIDED = 0.1  # if no class has two labels, nothing can be held out


def linear(
    train: Tensor,
    train_labels: Labels,
    test: Tensor,
    test_labels: Labels,
    *,
    fractions: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    classes: Sequence[str] = (),
    grid: Sequence[float] = GRID,
    device: torch.device | str = "cpu",
    on_progress: Callable[[str, int], None] | None = None,
    keep: Callable[[str, int, Tensor], None] | None = None,
    keep_probe: Callable[[int, int, Probe], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """``{"1%": {"top1", "std", "stderr", "n", "labels", "seeds", "regularisation"}, ...}`` for features [N, D].

    ``top1`` is the mean over ``seeds`` (at 100 % there is one subset, hence one seed), ``std`` their sample standard
    deviation, ``stderr`` the binomial standard error of ``n`` test images, ``labels`` the labeled images used (of the
    first seed), ``regularisation`` the strength chosen for each seed. ``keep`` is called with fraction, seed and which
    of the labeled test images are right, bool [n]; ``keep_probe`` with the number of labels, seed and probe. Raises ``SensoriumError`` for a fraction that leaves a class without
    labels, and for a single class.
    """
    train, labels = labelled(train, train_labels, "training")
    test, truth = labelled(test, test_labels, "test")
    several_classes(labels)
    test = test.to(device)
    results: dict[str, dict[str, Any]] = {}
    for fraction in fractions:
        scores, strengths, used = [], [], seeds_for(fraction, seeds)
        subsets = [torch.from_numpy(stratified(labels.numpy(), fraction, seed, classes=classes)) for seed in used]
        for seed, subset in zip(used, subsets, strict=True):
            whole = len(subset) == len(labels)
            features = (train if whole else train[subset]).to(device)
            probe, strength = fit_probe(features, labels[subset], seed=seed, grid=grid)
            right = probe.right(test, truth)
            scores.append(float(right.double().mean()))
            if keep is not None:
                keep(percent(fraction), seed, right)
            if keep_probe is not None:
                keep_probe(len(subset), seed, probe)
            strengths.append(strength)
            if on_progress is not None:
                on_progress(percent(fraction), seed)
        results[percent(fraction)] = summary(scores, len(truth), len(subsets[0]), used) | {"regularisation": strengths}
    return results


def fit_probe(features: Tensor, labels: Tensor, *, seed: int = 0, grid: Sequence[float] = GRID) -> tuple[Probe, float]:
    """The probe of features [N, D] with labels [N], and its strength, chosen on held-out fifths of them."""
    problem = Logistic(features, labels, int(labels.max()) + 1)
    strength = _choose(problem, labels, seed, grid)
    problem.reset()
    return problem.fit(strength), strength


def _choose(problem: Logistic, labels: Tensor, seed: int, grid: Sequence[float]) -> float:
    fold = torch.from_numpy(folds(labels.cpu().numpy(), seed))
    if len(grid) == 1 or not (fold == 0).any():
        return grid[0] if len(grid) == 1 else UNDECIDED
    several = len(labels) < FEW
    likely = np.zeros(len(grid)) if several else np.full(len(grid), -np.inf)
    for held in range(FOLDS if several else 1):
        problem.reset()  # another fold's solution was fitted on this one's held-out labels
        for i, l2 in enumerate(grid):
            problem.solve(l2, fold != held, ROUGHLY)
            found = problem.log_likelihood(fold == held)
            likely[i] = likely[i] + found if several else found
            if not several and i > 1 and likely[i] < likely[i - 1] < likely[i - 2]:
                break  # it has one maximum, and weak strengths take longest
    return grid[int(likely.argmax())]


def folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """A fold 0..4 for each image, stratified by class; -1 (never held out) if a class has one label."""
    fold = np.full(len(labels), -1)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            queue = np.random.default_rng([seed, int(label), FOLDS]).random(len(members)).argsort(kind="stable")
            fold[members[queue]] = np.arange(len(members)) % FOLDS
    return fold


def several_classes(labels: Tensor) -> None:
    """Raise ``SensoriumError`` if all labels are one class."""
    if int(labels.min()) == int(labels.max()):
        raise SensoriumError(f"All {len(labels)} labeled training images are of one class: a classifier needs two.")


def seeds_for(fraction: float, seeds: Sequence[int]) -> list[int]:
    """The seeds of a fraction: one at 100 %, where all subsets are equal."""
    return list(seeds[:1]) if fraction == 1 else list(seeds)


def summary(scores: Sequence[float], n: int, labels: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds, and the binomial standard error on ``n`` images."""
    top1 = float(np.mean(scores))
    std = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
    stderr = math.sqrt(top1 * (1 - top1) / n)
    return {"top1": top1, "std": std, "stderr": stderr, "n": n, "labels": labels, "seeds": list(seeds)}
