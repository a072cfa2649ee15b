"""ObjectLab: which boxes of an object detection data set are annotated wrongly (Tkachenko et al., 2023, arXiv:2309.00832).

A detector's boxes contradict annotations in three ways. With o the IoU and d the distance of the centers in pixels, an annotation
and a detection are similar by
    s = 0.9 o + 0.1 exp(-0.1 d)
and each score is from 0, surely wrong, to 1, no doubt; e is the least similarity above 0 in the whole data set, p a detection's score:
    overlooked    of a detection with p >= 0.95 that overlaps no annotation: its largest s with an annotation of its class;
                  e (1 - p) if its picture has none of its class; NaN for all other detections
    swapped       of an annotation: 1 - its largest s with a detection of another class with p > 0.95, at least e; e if another
                  annotation of another class covers it with o >= 0.95
    misplaced     of an annotation: its largest s with a detection of its class with p > 0.5 that overlaps it; 1 if there is none
A picture's score of a kind is the softmin of its boxes', sum_i s_i exp(-s_i / T) / sum_i exp(-s_i / T) with T = 0.1, and its quality the
geometric mean of the three. The paper has no score for an annotation of what isn't there; :func:`confirmed` is one.

Shapes: L annotations and M detections of a picture, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sensorium.parts.boxes import iou

OVERLAP_WEIGHT, DISTANCE_FACTOR = 0.9, 0.1
SURE, POSSIBLE = 0.95, 0.5
TWICE = 0.95  # the overlap of two annotations of one object
TEMPERATURE = 0.1
TINY = 1e-100
NOBODY = -1
Threshold = float | np.ndarray
"""A minimum score: one for all, or float [K], by class."""


@dataclass(frozen=True, eq=False)
class Compared:
    """The annotations and detections of one picture: ``boxes`` [L, 4] and ``found_boxes`` [M, 4], ``given`` [L] and ``found``
    [M] classes, the detections' ``scores`` [M], ``overlap`` and ``similarity`` [L, M], and ``twice`` bool [L]: annotated
    again as another class."""

    boxes: np.ndarray
    found_boxes: np.ndarray
    given: np.ndarray
    found: np.ndarray
    scores: np.ndarray
    overlap: np.ndarray
    similarity: np.ndarray
    twice: np.ndarray


class Judged(NamedTuple):
    """Scores [N], and by which detection (of an annotation) or annotation (of a detection) each was decided, -1 for
    none: int64 [N]."""

    score: np.ndarray
    by: np.ndarray


def compared(
    boxes: np.ndarray, given: np.ndarray, found_boxes: np.ndarray, found: np.ndarray, scores: np.ndarray
) -> Compared:
    """Annotations (``boxes`` xyxy [L, 4], classes ``given`` int [L]) and detections (``found_boxes`` [M, 4], ``found`` int
    [M], ``scores`` [M]) of one picture, in the same pixels."""
    boxes, found_boxes = (np.asarray(one, np.float64).reshape(-1, 4) for one in (boxes, found_boxes))
    overlap = overlaps(boxes, found_boxes)
    middle, found_middle = ((one[:, :2] + one[:, 2:]) / 2 for one in (boxes, found_boxes))
    apart = np.linalg.norm(middle[:, None] - found_middle[None], axis=-1)
    near = np.exp(-DISTANCE_FACTOR * apart)
    given, found = np.asarray(given, np.int64), np.asarray(found, np.int64)
    again = (overlaps(boxes, boxes) >= TWICE) & (given[:, None] != given)
    similarity = OVERLAP_WEIGHT * overlap + (1 - OVERLAP_WEIGHT) * near
    scores = np.asarray(scores, np.float64)
    return Compared(boxes, found_boxes, given, found, scores, overlap, similarity, again.any(axis=1))


def least_similarity(pictures: Iterable[Compared]) -> float:
    """e: the least similarity above 0 in a data set; 1 without any."""
    least = (float(one.similarity[one.similarity > 0].min(initial=1.0)) for one in pictures)
    return min(least, default=1.0)


def overlooked(one: Compared, least: float, sure: Threshold = SURE, touching: float = 0.0) -> Judged:
    """Scores [M] of the detections, NaN for those that say nothing of an overlooked object.

    least: e. touching: the largest overlap with an annotation, of any class, of what is still overlooked: where objects
    overlap one another, one that is not annotated overlaps its neighbors.
    """
    free = one.overlap.max(axis=0, initial=0.0) <= touching
    asked = free & (one.scores >= _at(sure, one.found))
    same = np.where(one.given[:, None] == one.found, one.similarity, -1.0)
    best, by = _best(same.T)
    score = np.where(by == NOBODY, least * (1 - one.scores), best)
    return Judged(np.where(asked, score, np.nan), np.where(asked, by, NOBODY))


def swapped(one: Compared, least: float, sure: Threshold = SURE) -> Judged:
    """Scores [L] of the annotations. least: e."""
    other = (one.given[:, None] != one.found) & (one.scores > _at(sure, one.found))
    best, by = _best(np.where(other, one.similarity, -1.0))
    score = np.where(by == NOBODY, 1.0, np.maximum(least, 1 - best))
    return Judged(np.where(one.twice, least, score), by)


def misplaced(one: Compared, possible: Threshold = POSSIBLE) -> Judged:
    """Scores [L] of the annotations."""
    same = (one.given[:, None] == one.found) & (one.scores > _at(possible, one.found)) & (one.overlap > 0)
    best, by = _best(np.where(same, one.similarity, -1.0))
    return Judged(np.where(by == NOBODY, 1.0, best), by)


def confirmed(one: Compared, sure: Threshold = SURE) -> np.ndarray:
    """How far detections confirm each annotation [L], 0 to 1: the largest o min(1, p / sure) of those of its class. Not of
    the paper."""
    return support(one, sure, own=True).score


def support(one: Compared, sure: Threshold, *, own: bool) -> Judged:
    """The largest o min(1, p / sure) of each annotation [L] with the detections of its class, or of the others."""
    strength = one.overlap * np.minimum(1.0, one.scores / _at(sure, one.found))
    best, by = _best(np.where((one.given[:, None] == one.found) == own, strength, -1.0))
    return Judged(np.maximum(best, 0.0), by)


def pooled(scores: np.ndarray, temperature: float = TEMPERATURE) -> float:
    """The softmin of a picture's scores, without NaN; 1 if there are none."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return 1.0
    weight = np.exp(-(known - known.min()) / temperature)
    return float((weight * known).sum() / weight.sum())


def quality(one: Compared, least: float, sure: Threshold = SURE, possible: Threshold = POSSIBLE) -> float:
    """A picture's quality: the geometric mean of its three pooled scores."""
    kinds = (overlooked(one, least, sure), swapped(one, least, sure), misplaced(one, possible))
    return float(np.exp(np.mean([np.log(TINY + pooled(kind.score)) for kind in kinds])))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes float64 [N, 4] and [M, 4] -> [N, M]."""
    return iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _at(threshold: Threshold, labels: np.ndarray) -> np.ndarray:
    """The threshold of each label [M]."""
    return np.broadcast_to(threshold, labels.shape) if np.ndim(threshold) == 0 else np.asarray(threshold)[labels]


def _best(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each row [N, M] and where it is; -1 and nobody where all are negative."""
    if not rows.size:
        return np.full(len(rows), -1.0), np.full(len(rows), NOBODY)
    best, by = rows.max(axis=1), rows.argmax(axis=1)
    return best, np.where(best < 0, NOBODY, by)
