"""Doubtful labels: confident learning against cleanlab's, and swapped labels found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sensorium.metrics import confident
from sensorium.runs.suspects import out_of_fold


def drawn(seed: int, n: int, classes: int, sharp: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that know more or less of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    values = rng.normal(size=(n, classes))
    values[np.arange(n), labels] += sharp * rng.normal(0.6, 1, n)
    chances = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    return labels, chances


def test_a_small_example_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    chances = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]])
    assert confident.thresholds(labels, chances) == pytest.approx([0.6, 0.75])
    assert confident.counted_as(labels, chances).tolist() == [0, 0, 1, -1, 1]
    assert confident.joint(labels, chances).tolist() == [[2, 1], [0, 1]]
    assert confident.margins(labels, chances) == pytest.approx([0.8, 0.4, -0.6, 0.2, 0.8])
    assert confident.suspects(labels, chances).tolist() == [2]


def test_a_class_without_a_picture_doubts_nobody() -> None:
    labels = np.array([0, 0, 2, 2])
    chances = np.array([[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.0, 0.9, 0.1]])
    assert np.isinf(confident.thresholds(labels, chances)[1])
    assert 1 not in confident.counted_as(labels, chances)


@pytest.mark.parametrize(
    "seed, n, classes, sharp", [(0, 400, 2, 2.0), (1, 1000, 10, 3.0), (2, 997, 7, 1.0), (3, 60, 3, 5.0)]
)
def test_as_cleanlab_finds_them(seed: int, n: int, classes: int, sharp: float) -> None:
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    count = pytest.importorskip("cleanlab.count")
    labels, chances = drawn(seed, n, classes, sharp)
    expected = filters.find_label_issues(
        labels, chances, filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1
    )
    found = confident.suspects(labels, chances)
    assert sorted(found) == sorted(expected)
    own = chances[np.arange(n), labels]
    assert own[found] == pytest.approx(own[expected])
    joint = count.compute_confident_joint(labels, chances, calibrate=False)
    ours = confident.joint(labels, chances)
    np.fill_diagonal(ours, np.maximum(np.diag(ours), 1))  # theirs counts at least one right picture a class
    assert (ours == joint).all()
    assert confident.thresholds(labels, chances) == pytest.approx(count.get_confident_thresholds(labels, chances))


def test_labels_that_were_swapped_come_first() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 2000)
    features = torch.from_numpy(rng.normal(size=(5, 20))[truth] + 0.7 * rng.normal(size=(2000, 20))).float()
    swapped = rng.permutation(2000)[:100]
    labels = truth.copy()
    labels[swapped] = (truth[swapped] + rng.integers(1, 5, 100)) % 5
    found = confident.suspects(labels, out_of_fold(features, labels))
    assert len(set(found) & set(swapped)) >= 80
    assert set(found) <= set(swapped)


def test_no_picture_is_judged_by_a_classifier_of_its_own_label() -> None:
    """Features that say which picture it is, and nothing else: a classifier of all labels would know each."""
    labels = np.random.default_rng(0).integers(0, 2, 60)
    chances = out_of_fold(torch.eye(60), labels)
    assert np.isfinite(chances).all()
    assert (chances.argmax(1) == labels).mean() < 0.7


def test_a_class_with_one_picture_is_not_asked_about() -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2])
    chances = out_of_fold(torch.randn(21, 4, generator=torch.Generator().manual_seed(0)), labels)
    assert np.isnan(chances[20]).all()
    assert np.isfinite(chances[:20]).all()
