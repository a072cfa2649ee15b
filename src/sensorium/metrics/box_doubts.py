"""Which boxes of a data set a detector doubts, of all its pictures in one order, whatever is doubted of them.

Scores of detectors differ: 0.4 may be much. What is much is told by the detections that are right, those that overlap an
annotation of their class by 0.5 or more: the usual score t_k of class k is the median of theirs, r_k the share of the annotations that
have one, and F_k(p) the share of theirs below p. With the support of class k for an annotation, the largest overlap times
min(1, p / t_k) of its detections of that class (:mod:`sensorium.metrics.object_labels`), a doubt is from 0 to 1:

    missing       F_k(p)                 of a detection with p >= t_k that overlaps no annotation by more than 0.2
    swapped       r_k (1 - support)      of an annotation that overlaps a detection of another class by 0.5 or more, and has more
                                         support of that class than of its own
    misplaced     r_k (1 - support)      of one whose best detection of its class overlaps it by 0.1 to 0.6 and is of no other annotation
    unconfirmed   r_k (1 - support)      of any other

An annotation has one doubt, and so have the detections of one place. Of annotations the order is that of their own class's support, as
it is of labels by self-confidence (:mod:`sensorium.metrics.confident`). ObjectLab's scores, which are kept beside it, rank boxes of one
kind about as well (``python -m benchmarks.box_suspects``), but not of several: those of missing boxes are all below 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sensorium.metrics.object_labels import (
    NOBODY,
    Compared,
    Judged,
    least_similarity,
    misplaced,
    overlaps,
    overlooked,
    support,
    swapped,
)

KINDS = ("missing", "swapped", "misplaced", "unconfirmed")
RIGHT = 0.5  # the overlap from which on a detection is of an annotation
TOUCHING = 0.2
PLACED = (0.1, 0.6)
FEW = 10  # right detections of a class with fewer say nothing: those of all classes do
WEAK = 0.5  # of the usual score: what a detection needs to say that an annotation is misplaced


class Doubt(NamedTuple):
    """``picture``, ``box`` and ``detection`` are indices, -1 for none: a missing box has no box, an unconfirmed one no detection.
    ``doubt``: 0 to 1. ``score``: ObjectLab's of that kind, None for unconfirmed ones."""

    picture: int
    kind: str
    box: int
    detection: int
    doubt: float
    score: float | None


class Usual(NamedTuple):
    """By class: the scores of right detections, ascending, their median [K], and the share of annotations found [K]."""

    scores: tuple[np.ndarray, ...]
    median: np.ndarray
    recall: np.ndarray


def usual(pictures: Sequence[Compared], classes: int) -> Usual | None:
    """What the right detections are like; None if there are fewer than ten."""
    right: list[list[float]] = [[] for _ in range(classes)]
    total = np.zeros(classes, np.int64)
    for one in pictures:
        total += np.bincount(one.given, minlength=classes)
        of_it = (one.given[:, None] == one.found) & (one.overlap >= RIGHT)
        best = np.where(of_it, one.scores, -1.0).max(axis=1, initial=-1.0)
        for k, score in zip(one.given.tolist(), best.tolist(), strict=True):
            if score >= 0:
                right[k].append(score)
    every = np.sort(np.concatenate([np.zeros(0), *map(np.asarray, right)]))
    if len(every) < FEW:
        return None
    scores = tuple(np.sort(np.array(some)) if len(some) >= FEW else every for some in right)
    recall = np.array([len(some) for some in right]) / np.maximum(total, 1)
    return Usual(scores, np.array([np.median(some) for some in scores]), recall)


def doubts(pictures: Sequence[Compared], known: Usual) -> list[Doubt]:
    """Every annotation and every missing box, the most doubtful first."""
    least = least_similarity(pictures)
    found = [doubt for i, one in enumerate(pictures) for doubt in _of_picture(i, one, known, least)]
    return sorted(found, key=lambda doubt: -doubt.doubt)


def _of_picture(at: int, one: Compared, known: Usual, least: float) -> list[Doubt]:
    own, other = (support(one, known.median, own=mine) for mine in (True, False))
    published = swapped(one, least, known.median).score, misplaced(one, WEAK * known.median).score
    place = _displaced(one, known)
    found, used = [], set()
    for i, k in enumerate(one.given.tolist()):
        j, kind, score = NOBODY, "unconfirmed", None
        if _contradicted(one, i, own, other):
            j, kind, score = int(other.by[i]), "swapped", float(published[0][i])
        elif place[i] != NOBODY:
            j, kind, score = int(place[i]), "misplaced", float(published[1][i])
        used.add(j)
        found.append(Doubt(at, kind, i, j, float(known.recall[k] * (1 - own.score[i])), score))
    return found + _missing(at, one, known, least, used)


def _contradicted(one: Compared, i: int, own: Judged, other: Judged) -> bool:
    """Whether annotation ``i`` has more support of another class, which is at its place."""
    j = other.by[i]
    return bool(j != NOBODY and one.overlap[i, j] >= RIGHT and other.score[i] > own.score[i])


def _displaced(one: Compared, known: Usual) -> np.ndarray:
    """The detection that is beside each annotation and of no other [L]; -1 without, or where one is at its place."""
    same = (one.given[:, None] == one.found) & (one.scores >= WEAK * known.median[one.found])
    overlap = np.where(same, one.overlap, 0.0)
    if not overlap.size:
        return np.full(len(one.given), NOBODY)
    owner = np.where(overlap.max(axis=0) >= RIGHT, overlap.argmax(axis=0), NOBODY)
    free = (owner == NOBODY) | (owner == np.arange(len(one.given))[:, None])
    beside = np.where(free & (overlap >= PLACED[0]), one.similarity * same, 0.0)
    by = np.where(beside.max(axis=1) > 0, beside.argmax(axis=1), NOBODY)
    return np.where(overlap.max(axis=1) < PLACED[1], by, NOBODY)


def _missing(at: int, one: Compared, known: Usual, least: float, used: set[int]) -> list[Doubt]:
    """Of the detections of one place the one of the largest doubt."""
    scores = overlooked(one, least, known.median, TOUCHING).score
    rank = [
        (
            float(np.searchsorted(known.scores[one.found[j]], one.scores[j], "right"))
            / len(known.scores[one.found[j]]),
            j,
        )
        for j in np.flatnonzero(~np.isnan(scores)).tolist()
        if j not in used
    ]
    kept: list[int] = []
    found = []
    for doubt, j in sorted(rank, key=lambda pair: (-pair[0], -one.scores[pair[1]], pair[1])):
        if overlaps(one.found_boxes[[j]], one.found_boxes[kept]).max(initial=0.0) < RIGHT:
            kept.append(j)
            found.append(Doubt(at, "missing", NOBODY, j, doubt, float(scores[j])))
    return found
