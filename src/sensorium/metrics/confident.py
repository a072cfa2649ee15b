"""Confident learning: estimating uncertainty in dataset labels (Northcutt, Jiang, Chuang, 2021, arXiv:1911.00068).

A classifier that is as confident that a picture is of another class as it usually is of pictures of that class doubts
the label. With given labels y_i and probabilities p_ik from a classifier that was not trained on picture i, the usual
confidence in class k is
    t_k = mean of p_ik over the pictures with y_i = k,
picture i counts as the class  k_i = argmax p_ik  over the classes with p_ik >= t_k, if there is one, and the confident
joint is
    C_jk = number of pictures with y_i = j that count as k.
Suspects are those off its diagonal, unless the likeliest class of all is the given one. The most suspicious come first,
by self-confidence, p_iy: it finds more swapped labels than the margin p_iy - max over k != y of p_ik does where
classifiers are weak, since they are seldom sure of another class (``python -m benchmarks.suspects``).

Shapes: N pictures, K classes.
"""

from __future__ import annotations

import numpy as np

UNCOUNTED = -1
ROUNDING = 1e-6  # a probability that is equal to its threshold reaches it, whatever the rounding


def thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The usual confidence in each class [K]; infinite for a class without a picture."""
    count = np.bincount(labels, minlength=probabilities.shape[1])
    total = np.zeros(probabilities.shape[1])
    np.add.at(total, labels, probabilities[np.arange(len(labels)), labels])
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def counted_as(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The class as which each picture counts, int64 [N]; -1 if it reaches no class's usual confidence."""
    enough = probabilities >= thresholds(labels, probabilities) - ROUNDING
    best = np.where(enough, probabilities, -1.0).argmax(axis=1)
    # Of several confident classes it is the likeliest of all, which need not be among them.
    best = np.where(enough.sum(axis=1) > 1, probabilities.argmax(axis=1), best)
    return np.where(enough.any(axis=1), best, UNCOUNTED)


def joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The confident joint, int64 [K, K]: rows by the given label."""
    counted, classes = counted_as(labels, probabilities), probabilities.shape[1]
    known = counted != UNCOUNTED
    return np.bincount(labels[known] * classes + counted[known], minlength=classes**2).reshape(classes, classes)


def margins(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The normalized margin of each picture, in -1..1: of the given class over the likeliest other one."""
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1.0
    return probabilities[rows, labels] - others.max(axis=1)


def suspects(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The indices of pictures whose labels are doubtful, the most doubtful first.

    labels: int64 [N], 0..K-1. probabilities: float [N, K], of a classifier that did not learn from the picture.
    """
    counted = counted_as(labels, probabilities)
    doubted = (counted != UNCOUNTED) & (counted != labels) & (probabilities.argmax(axis=1) != labels)
    found = np.flatnonzero(doubted)
    return found[probabilities[found, labels[found]].argsort(kind="stable")]
