"""Baselines of encoders: the most frequent class, raw pixels, random weights, and training from scratch.

The last is ``scratch``: fine-tuning's own training from new initial weights. Random weights are a serious baseline: the
features are a fixed random filter bank, and a linear probe of them often beats one of raw pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.encode import encode, labels_of, normalised
from sensorium.judge.finetune import scratch as scratch
from sensorium.metrics.knn import Labels, knn, whitened
from sensorium.metrics.linear import linear
from sensorium.metrics.spectrum import rankme

SIDE = 32  # pixels per side; larger images are downsampled


def majority(train_labels: Labels, test_labels: Labels) -> dict[str, float | int]:
    """``{"top1", "n"}`` of always predicting the most frequent training class (ties: the lowest); label -1 is
    ignored."""
    train, test = np.asarray(train_labels), np.asarray(test_labels)
    train, test = train[train >= 0], test[test >= 0]
    if len(train) == 0 or len(test) == 0:
        raise SensoriumError("Guessing needs labels in both the training and the test images: give labeled data.")
    return {"top1": float((test == np.bincount(train).argmax()).mean()), "n": len(test)}


def pixel_features(pixels: Pixels, *, side: int = SIDE, batch_size: int = 1024) -> Tensor:
    """Normalized pixels as features: float32 [N, 3 * s * s], s the image size, at most ``side``."""
    n, size = len(pixels.images), pixels.images.shape[-1]
    out = torch.empty(n, 3 * min(size, side) ** 2)
    for start in range(0, n, batch_size):
        part = normalised(
            torch.from_numpy(np.array(pixels.images[start : start + batch_size])), pixels.mean, pixels.std
        )
        if size > side:
            part = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
        out[start : start + len(part)] = part.flatten(1)
    return out


def pixels(
    train: Pixels, test: Pixels, *, fractions: Sequence[float], seeds: Sequence[int] = (0, 1, 2), k: int = 20
) -> dict[str, Any]:
    """``{"knn": {...}, "whitened": {...}, "linear": {...}}`` of :func:`pixel_features`."""
    return _scores(pixel_features(train), train, pixel_features(test), test, fractions, seeds, k)


def random_network(
    build_backbone: Callable[[], nn.Module],
    train: Pixels,
    test: Pixels,
    *,
    fractions: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    k: int = 20,
    seed: int = 0,
    **encoding: Any,
) -> dict[str, Any]:
    """``{"knn": {...}, "whitened": {...}, "linear": {...}, "rankme"}`` of a backbone with random initial weights from ``seed``.

    ``encoding``: arguments of :func:`sensorium.judge.encode.encode`: device, precision, batch size, progress.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backbone: Any = build_backbone()
    bank = encode(backbone, train, **encoding)
    scores = _scores(bank, train, encode(backbone, test, **encoding), test, fractions, seeds, k)
    return scores | {"rankme": rankme(bank)}


def _scores(
    bank: Tensor, train: Pixels, asked: Tensor, test: Pixels, fractions: Sequence[float], seeds: Sequence[int], k: int
) -> dict[str, Any]:
    have, truth = labels_of(train), labels_of(test)
    (white, white_asked), shrinkage = whitened(bank, have, asked)
    return {
        "knn": knn(bank, have, asked, truth, k=k),
        "whitened": knn(white, have, white_asked, truth, k=k) | {"shrinkage": shrinkage},
        "linear": linear(bank, have, asked, truth, fractions=fractions, seeds=seeds, classes=train.classes),
    }
