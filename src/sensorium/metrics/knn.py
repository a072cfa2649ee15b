"""Weighted k-nearest-neighbor accuracy of features (Wu et al., 2018, arXiv:1805.01978; Caron et al., 2021,
arXiv:2104.14294).

Each of the k training images most similar to a test image, by cosine s_i, votes for its own class with weight
    w_i = exp(s_i / tau),        tau = 0.07,
and the class with the largest sum wins. Nothing is trained, so it evaluates the geometry of the features directly. It
underrates features with a few directions of large variance that all images share, such as those of masked autoencoders. Whitened
with the covariance C of the training features (Su et al., 2021, arXiv:2103.15316, for such features of text), they are compared by
    s(x, y) = cosine of (C + c I)^-1/2 (x - mean) and (C + c I)^-1/2 (y - mean),        c = r tr(C) / D,
r chosen on training images (:func:`whitened`), as the linear probe's strength is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.metrics.neighbors import CHUNK, neighbors

Labels = Tensor | np.ndarray
GRID = (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)  # shrinkages of a covariance, the strongest first
LOOKED = 500  # training images that choose among them


def knn(
    train: Tensor,
    train_labels: Labels,
    test: Tensor,
    test_labels: Labels,
    classes: int | Sequence[str] | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = CHUNK,
    device: torch.device | str = "cpu",
) -> dict[str, float | int]:
    """``{"top1", "n", "k"}`` for features [N, D] and labels [N]: accuracy in 0..1, test images counted, neighbors used.

    Images labeled -1 neither vote nor count. ``k`` is clipped to the number of labeled training images. ``chunk`` rows
    of ``train`` are compared at a time: :mod:`sensorium.metrics.neighbors` states the memory that this takes.
    """
    test, truth = labelled(test, test_labels, "test")
    predicted, used = predict(
        train, train_labels, test, classes, k=k, temperature=temperature, chunk=chunk, device=device
    )
    return {"top1": float((predicted == truth).double().mean()), "n": len(truth), "k": used}


def predict(
    train: Tensor,
    train_labels: Labels,
    test: Tensor,
    classes: int | Sequence[str] | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = CHUNK,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, int]:
    """The predicted class of each test feature (int64 [T]), and the number of neighbors used."""
    train, labels = labelled(train, train_labels, "training")
    count = int(labels.max()) + 1 if classes is None else classes if isinstance(classes, int) else len(classes)
    index_Tk, similarity_Tk = neighbors(train, test, k, chunk=chunk, device=device)
    # relative to the best: the same winner, and no overflow at a small temperature
    weight_Tk = ((similarity_Tk - similarity_Tk[:, :1]) / temperature).exp()
    predicted = [
        torch.zeros(len(index), count).scatter_add_(1, labels[index], weight).argmax(dim=1)
        for index, weight in zip(index_Tk.split(4096), weight_Tk.split(4096), strict=True)
    ]
    return torch.cat(predicted), index_Tk.shape[1]


def whitened(
    train: Tensor, labels: Labels, *others: Tensor, grid: Sequence[float] = GRID, looked: int = LOOKED
) -> tuple[list[Tensor], float]:
    """``train`` [N, D] and ``others`` [n, D], whitened with the mean and the covariance of ``train``, and the shrinkage, the one of
    ``grid`` by which most of ``looked`` labeled training images have the class of their neighbors among ten times as many others.

    Whitened up to a rotation, which no cosine depends on. Without a choice (two labeled images or one) it is the strongest.
    """
    known, classes = labelled(torch.arange(len(train)), labels, "training")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    held = min(looked, len(order) // 3)
    tried, among = order[:held], order[held : held + 10 * looked]
    mean, covariance = train.mean(0), train.new_zeros(train.shape[1], train.shape[1])
    for part in train.split(CHUNK):
        covariance.addmm_((part - mean).T, part - mean, alpha=1 / len(train))
    level = covariance.diagonal().mean().clamp_min(1e-12)  # features that are all equal have none

    def white(features: list[Tensor], shrinkage: float) -> list[Tensor] | None:
        """None if rounding has left directions without variance, which happens for the weakest."""
        identity = torch.eye(len(covariance), dtype=train.dtype)
        lower, failed = torch.linalg.cholesky_ex(covariance + shrinkage * level * identity)
        if failed:
            return None
        found = [torch.empty_like(x) for x in features]
        for x, out in zip(features, found, strict=True):
            for part, to in zip(x.split(CHUNK), out.split(CHUNK), strict=True):
                to.copy_(torch.linalg.solve_triangular(lower, (part - mean).T, upper=False).T)
        return found

    def right(shrinkage: float) -> float:
        found = white([train[known[among]], train[known[tried]]], shrinkage)
        return -1.0 if found is None else float(knn(found[0], classes[among], found[1], classes[tried])["top1"])

    chosen = max(grid, key=right) if len(tried) else grid[0]
    found = white([train, *others], chosen)
    if found is None:
        raise ValueError(f"the covariance shrunk by {chosen:g} has no inverse")
    return found, chosen


def labelled(features: Tensor, labels: Labels, which: str) -> tuple[Tensor, Tensor]:
    """The features and labels (int64) of the labeled images; the same tensor if all are labeled."""
    labels = torch.as_tensor(labels, dtype=torch.int64)
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} {which} features but {len(labels)} labels")
    known = labels >= 0
    if not known.any():
        raise SensoriumError(f"No {which} image has a label, so nothing can be scored: give labeled {which} data.")
    return (features, labels) if known.all() else (features[known], labels[known])
