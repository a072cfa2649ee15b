"""Doubtful boxes: ObjectLab's scores against cleanlab's, and what they say of errors made on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sensorium.metrics import object_labels as objects
from sensorium.metrics.object_labels import Compared, compared, least_similarity

Picture = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
NONE = np.zeros((0, 4)), np.zeros(0, np.int64)


def boxes(rng: np.random.Generator, n: int, side: float = 200.0) -> np.ndarray:
    corner = rng.uniform(0, side, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 60, (n, 2))], axis=1)


def drawn(seed: int, pictures: int, classes: int) -> list[Picture]:
    """Annotations, and detections near some of them, of their class or not, and elsewhere; some pictures have none of
    either, some objects are annotated twice."""
    rng, found = np.random.default_rng(seed), []
    for i in range(pictures):
        given = boxes(rng, int(rng.integers(0, 7)))
        labels = rng.integers(0, classes, len(given))
        near = given[rng.random(len(given)) < 0.8]
        far = boxes(rng, int(rng.integers(0, 4)))
        detected = np.concatenate([near + rng.normal(0, 4, near.shape), far]) if i % 7 else np.zeros((0, 4))
        if len(given) and i % 5 == 0:
            given = np.concatenate([given, given[:1]])
            labels = np.append(labels, (labels[0] + 1) % classes)
        scores = np.sort(rng.choice([0.3, 0.5, 0.6, 0.9, 0.95, 0.97, 0.999], len(detected)))[::-1]
        found.append((given, labels, detected, rng.integers(0, classes, len(detected)), scores))
    return found


def theirs(pictures: list[Picture], classes: int) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    labels = [{"bboxes": given, "labels": of} for given, of, *_ in pictures]
    predictions = []
    for *_, detected, of, scores in pictures:
        rows = np.concatenate([detected, scores[:, None]], axis=1)
        each = np.empty(classes, dtype=object)
        each[:] = [rows[of == k] for k in range(classes)]
        predictions.append(each)
    return labels, predictions


def by_class(one: Picture) -> Picture:
    """Detections in cleanlab's order: by class."""
    given, labels, detected, of, scores = one
    order = np.argsort(of, kind="stable")
    return given, labels, detected[order], of[order], scores[order]


@pytest.mark.parametrize("seed, pictures, classes", [(0, 60, 3), (1, 37, 2), (2, 25, 7)])
def test_as_cleanlab_scores_them(seed: int, pictures: int, classes: int) -> None:
    rank = pytest.importorskip("cleanlab.object_detection.rank", reason="cleanlab is not installed")
    some = [by_class(one) for one in drawn(seed, pictures, classes)]
    labels, predictions = theirs(some, classes)
    ours = [compared(*one) for one in some]
    least = least_similarity(ours)
    expected = {
        "overlooked": rank.compute_overlooked_box_scores(labels=labels, predictions=predictions),
        "swapped": rank.compute_swap_box_scores(labels=labels, predictions=predictions),
        "misplaced": rank.compute_badloc_box_scores(labels=labels, predictions=predictions),
    }
    found = {
        "overlooked": [objects.overlooked(one, least).score for one in ours],
        "swapped": [objects.swapped(one, least).score for one in ours],
        "misplaced": [objects.misplaced(one).score for one in ours],
    }
    for kind, scores in expected.items():
        assert any(np.any(one < 0.9) for one in scores), f"no doubt of this kind to compare: {kind}"
        for i, score in enumerate(scores):
            assert found[kind][i] == pytest.approx(score, abs=1e-12, nan_ok=True), (kind, i)
        pool = rank.pool_box_scores_per_image(scores)
        assert [objects.pooled(one) for one in found[kind]] == pytest.approx(list(pool), abs=1e-12)
    quality = rank.get_label_quality_scores(labels, predictions, verbose=False)
    assert [objects.quality(one, least) for one in ours] == pytest.approx(list(quality), rel=1e-6, abs=1e-9)


def one_picture(given: list[Any], labels: list[int], found: list[Any], of: list[int], scores: list[float]) -> Compared:
    arrays = (np.array(given, float), np.array(labels), np.array(found, float), np.array(of), np.array(scores))
    return compared(*arrays)


CELL, FAR = [10, 10, 30, 30], [100, 100, 120, 120]


def test_what_each_score_is_of() -> None:
    right = one_picture([CELL], [0], [CELL], [0], [0.99])
    assert objects.swapped(right, 0.01).score == pytest.approx([1.0])
    assert objects.misplaced(right).score == pytest.approx([1.0])
    assert np.isnan(objects.overlooked(right, 0.01).score).all()
    assert objects.confirmed(right) == pytest.approx([1.0])

    missing = one_picture([CELL], [0], [CELL, FAR], [0, 0], [0.99, 0.98])
    judged = objects.overlooked(missing, 0.01)
    assert np.isnan(judged.score[0])
    assert judged.score[1] == pytest.approx(0.1 * np.exp(-0.1 * np.hypot(90, 90)))
    assert judged.by.tolist() == [-1, 0]

    other = one_picture([CELL], [0], [CELL], [1], [0.99])
    assert objects.swapped(other, 0.01).score == pytest.approx([0.01])
    assert objects.swapped(other, 0.01).by.tolist() == [0]
    assert objects.confirmed(other) == pytest.approx([0.0])

    aside = one_picture([[16, 16, 36, 36]], [0], [CELL], [0], [0.9])
    overlap = 14 * 14 / (2 * 400 - 14 * 14)
    assert objects.misplaced(aside).score == pytest.approx([0.9 * overlap + 0.1 * np.exp(-0.1 * np.hypot(6, 6))])


def test_a_class_has_its_own_threshold() -> None:
    """A detector is less sure of one class than of another; the usual score of each says what is much."""
    one = one_picture([CELL, FAR], [0, 0], [CELL, FAR], [1, 2], [0.6, 0.6])
    for sure, expected in ((0.95, [1.0, 1.0]), ([0.9, 0.5, 0.9], [0.01, 1.0]), ([0.9, 0.5, 0.5], [0.01, 0.01])):
        threshold = np.array(sure) if isinstance(sure, list) else sure
        assert objects.swapped(one, 0.01, threshold).score == pytest.approx(expected, abs=1e-4)


def test_neighbors_that_touch() -> None:
    """Published: a detection that touches an annotation is of no overlooked object."""
    beside = one_picture([CELL], [0], [[28, 10, 48, 30]], [0], [0.99])
    assert np.isnan(objects.overlooked(beside, 0.01).score).all()
    assert objects.overlooked(beside, 0.01, touching=0.1).score < 0.2


@pytest.mark.parametrize("given, found", [(0, 0), (0, 3), (3, 0)])
def test_pictures_without_boxes_or_detections(given: int, found: int) -> None:
    rng = np.random.default_rng(0)
    mine, seen = boxes(rng, given), boxes(rng, found)
    one = compared(mine, np.zeros(given, int), seen, np.zeros(found, int), np.full(found, 0.99))
    assert least_similarity([one]) == 1.0
    assert objects.swapped(one, 0.5).score.tolist() == [1.0] * given
    assert objects.misplaced(one).score.tolist() == [1.0] * given
    assert objects.confirmed(one).tolist() == [0.0] * given
    assert objects.overlooked(one, 0.5).score == pytest.approx([0.5 * 0.01] * found)
    assert least_similarity([]) == 1.0


def test_the_softmin_follows_the_lowest() -> None:
    assert objects.pooled(np.array([0.2, np.nan, 0.2])) == pytest.approx(0.2)
    assert objects.pooled(np.array([np.nan])) == 1.0
    assert 0.1 < objects.pooled(np.array([0.1, 0.9])) < 0.11
