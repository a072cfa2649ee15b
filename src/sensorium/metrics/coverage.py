"""Precision and recall of generated samples (Kynkäänniemi et al., 2019, arXiv:1904.06991), density and coverage (Naeem et al., 2020,
arXiv:2002.09797).

The manifold of a set of features is estimated as the union of balls around each member, whose radius is the distance to
its k-th nearest neighbor among the others (k = 3).
precision = fraction of the generated features within the real manifold         (fidelity)
recall    = fraction of the real features within the generated manifold         (diversity)
density   = mean over generated features of how many real balls hold it, divided by k          1 of the real distribution's own
coverage  = fraction of the real balls that hold a generated feature
An outlier has a large ball, so that the first two depend on it; density counts it as one of many, and coverage only uses balls of real
features. All depend on k and on the counts, which should be equal. Distances are sums of squared
differences, not differences of products, so that a copy is at distance exactly 0.
Memory beyond the inputs: two blocks of ``chunk * chunk`` distances. Shapes: N and M samples, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1024


def precision_recall(real: Tensor, made: Tensor, k: int = 3, *, chunk: int = CHUNK) -> dict[str, float | int]:
    """``{"precision", "recall", "n", "n_real", "k"}`` of features ``made`` [M, D] against ``real`` [N, D].

    Raises ValueError if a set has k samples or fewer.
    """
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], got {list(real.shape)} and {list(made.shape)}")
    real, made = real.detach().float(), made.detach().float()
    return {
        "precision": float(inside(made, real, radii(real, k, chunk=chunk), chunk=chunk).double().mean()),
        "recall": float(inside(real, made, radii(made, k, chunk=chunk), chunk=chunk).double().mean()),
        "n": len(made),
        "n_real": len(real),
        "k": k,
    }


def density_coverage(real: Tensor, made: Tensor, k: int = 5, *, chunk: int = CHUNK) -> dict[str, float]:
    """``{"density", "coverage"}`` of features ``made`` [M, D] against ``real`` [N, D]; k as in the paper.

    Raises ValueError if there are k real ones or fewer.
    """
    real, made = real.detach().float(), made.detach().float()
    held, hit = 0, []
    for balls, wide in zip(real.split(chunk), radii(real, k, chunk=chunk).split(chunk), strict=True):
        any_ = torch.zeros(len(balls), dtype=torch.bool, device=real.device)
        for rows in made.split(chunk):
            within = _distances(balls, rows) < wide[:, None]
            held += int(within.sum())
            any_ |= within.any(1)
        hit.append(any_)
    return {"density": held / (k * len(made)), "coverage": float(torch.cat(hit).double().mean())}


def radii(features: Tensor, k: int, *, chunk: int = CHUNK) -> Tensor:
    """The distance of each of ``features`` [N, D] to its k-th nearest among the others: [N]."""
    if not 1 <= k < len(features):
        raise ValueError(f"k must be between 1 and {len(features) - 1}, one less than the samples, got {k}")
    found = []
    for rows in features.split(chunk):
        nearest = features.new_full((len(rows), k + 1), torch.inf)  # includes itself, at distance 0
        for others in features.split(chunk):
            nearest = torch.cat([nearest, _distances(rows, others)], dim=1).topk(k + 1, largest=False).values
        found.append(nearest[:, -1])
    return torch.cat(found)


def inside(queries: Tensor, centres: Tensor, radius: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Which of ``queries`` [M, D] lie within ``radius`` [N] of one of ``centres`` [N, D]: bool [M]."""
    found = []
    for rows in queries.split(chunk):
        hit = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for balls, wide in zip(centres.split(chunk), radius.split(chunk), strict=True):
            hit |= (_distances(rows, balls) <= wide).any(1)
        found.append(hit)
    return torch.cat(found)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
