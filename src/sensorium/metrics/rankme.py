"""RankMe: effective rank of the features (Garrido et al., 2022, arXiv:2210.02885, eq. 1).

The exponential of the entropy of the normalized singular values of the features Z [N, D]:
    p_k = sigma_k(Z) / ||sigma(Z)||_1 + eps,        RankMe = exp(-sum_k p_k log p_k).
It needs no labels. A collapsed encoder scores near 1, whatever its loss; the maximum is min(N, D).
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLES = 25_600  # the paper's count, beyond which the estimate hardly changes
EPSILON = 1e-7


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D], in 1..min(N, D); 0 if all are zero. At most 25,600, evenly spaced, are
    used."""
    if len(features) > SAMPLES:
        features = features[torch.arange(SAMPLES) * len(features) // SAMPLES]
    if features.shape[0] < features.shape[1]:
        features = features.T
    # singular values by the Gram matrix in float64: as accurate as an SVD in float32, and far faster
    gram = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    for part in features.split(4096):
        part = part.double()
        gram += part.T @ part
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    if float(sigma.sum()) == 0:
        return 0.0
    p = sigma / sigma.sum() + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))
