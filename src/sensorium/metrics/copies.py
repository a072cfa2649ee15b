"""Whether generated samples are copies of training pictures (Meehan, Chaudhuri & Dasgupta, 2020, *A non-parametric test to detect
data-copying in generative models*, arXiv:2004.05675).

With d(x) the distance of x to the nearest training picture, of M generated samples y and N held-out pictures x:
    nearer = share of all pairs with d(y) < d(x), ties half               Mann & Whitney's U / (M N)                 (section 3.1)
    error  = ((M + N + 1) / (12 M N))^1/2                                 if y and x have one distribution
About 1/2 if samples are as far from training pictures as new pictures are; more if they are copies, less if they are none of the data.
Shapes: N and M samples, T training pictures, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 1024


def nearest(features: Tensor, train: Tensor, k: int = 1, *, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Distances [M, k] of ``features`` [M, D] to the k nearest of ``train`` [T, D], the nearest first, and their indices."""
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be between 1 and {len(train)}, got {k}")
    found = []
    for rows in features.float().split(chunk):
        away, at = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        for start, others in zip(range(0, len(train), chunk), train.float().split(chunk), strict=True):
            each = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
            here = torch.arange(start, start + len(others), device=rows.device).expand(len(rows), -1)
            away, at = torch.cat([away, each], 1), torch.cat([at, here], 1)
            away, best = away.topk(min(k, away.shape[1]), largest=False)
            at = at.gather(1, best)
        found.append((away, at))
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def nearer(made: Tensor, held: Tensor) -> tuple[float, float]:
    """The share, and its error, of distances ``made`` [M] and ``held`` [N]."""
    if not len(made) or not len(held):
        raise ValueError("both need at least one distance")
    held = held.double().sort().values
    made = made.double().contiguous()
    above = len(held) - torch.searchsorted(held, made, right=True)
    ties = torch.searchsorted(held, made, right=True) - torch.searchsorted(held, made)
    share = float((above + ties / 2).sum()) / (len(made) * len(held))
    return share, math.sqrt((len(made) + len(held) + 1) / (12 * len(made) * len(held)))
