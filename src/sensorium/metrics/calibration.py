"""Calibration: whether a classifier that says 80 % is right in 80 of 100 cases.

Temperature scaling divides the logits by one number T, which changes no prediction (Guo et al., 2017, arXiv:1706.04599):
    p = softmax(z / T),        T minimizes the mean of  -log p_y  over n labeled images,
where y counts as 1 - 1/(n + 2) of a label, and the rest as all classes: else a classifier that is right in all of a few
images would be certain of everything.
The expected calibration error (section 2, with bins of equal width):
    ECE = sum_b  |b| / n  *  | accuracy(b) - mean confidence(b) |,        confidence = max_k p_k.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
COLDEST, HOTTEST = 0.02, 50.0  # bounds of T: beyond, the images are all right, or say nothing


def temperature(logits: Tensor, labels: Tensor) -> float:
    """T for logits [N, K] of images with labels int64 [N]; 1 if there is no image."""
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    z, smoothed = logits.double(), 1 / (len(labels) + 2)

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(z / float(np.exp(log_t)), labels, label_smoothing=smoothed))

    found = minimize_scalar(loss, bounds=(float(np.log(COLDEST)), float(np.log(HOTTEST))), method="bounded")
    return float(np.exp(found.x))  # type: ignore[attr-defined]


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """The expected calibration error of probabilities [N, K] for labels int64 [N], in 0..1."""
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/b], (1/b, 2/b], ...
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(gaps.abs().sum()) / max(len(labels), 1)


def crossfitted(logits: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """Probabilities [N, K] of each half of the images at the temperature of the other half, so that no image is judged
    by a temperature that it helped to choose."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    found = torch.empty(logits.shape, dtype=torch.float64)
    for mine, other in ((order[0::2], order[1::2]), (order[1::2], order[0::2])):
        found[mine] = (logits[mine].double() / temperature(logits[other], labels[other])).softmax(dim=1)
    return found
