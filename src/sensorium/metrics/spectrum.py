"""What the spectrum of an encoder's features says of them without labels. Shapes: N samples, D dimensions, V views of each.

RankMe (Garrido et al., 2022, arXiv:2210.02885, eq. 1), the effective rank of the features Z [N, D]:
    p_k = sigma_k(Z) / |sigma(Z)|_1 + eps,        RankMe = exp(-sum_k p_k log p_k)
A collapsed encoder scores near 1, whatever its loss; the maximum is min(N, D).

alpha-ReQ (Agrawal et al., 2022, "alpha-ReQ: assessing representation quality in self-supervised learning by measuring
eigenspectrum decay"): the eigenvalues of the covariance fall as lambda_k ~ k^-alpha; good features have an alpha near 1, larger
ones use few directions, smaller ones are noise in many. As in the authors' code, ranks 4 to 100, weighted by 1 / rank.

LiDAR (Thilak et al., 2023, arXiv:2312.04000, eqs. 1 to 4), the effective rank of a linear discriminant analysis whose classes
are the samples, each with several views:
    S_b = covariance of the samples' means,    S_w = mean covariance of a sample's views + delta I
    S = S_w^-1/2 S_b S_w^-1/2,    p_k = lambda_k(S) / |lambda(S)|_1 + eps,    LiDAR = exp(-sum_k p_k log p_k)
Directions count in which samples differ more than the views of one, so that noise does not raise it.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLES = 25_600  # the paper's count, beyond which the estimate hardly changes
EPSILON = 1e-7
DELTA = 1e-4
RANKS = (4, 100)  # of the eigenvalues that alpha is fitted to


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D], in 1..min(N, D); 0 if all are zero. At most 25,600, evenly spaced, are
    used."""
    if len(features) > SAMPLES:
        features = features[torch.arange(SAMPLES) * len(features) // SAMPLES]
    if features.shape[0] < features.shape[1]:
        features = features.T
    # singular values by the Gram matrix in float64: as accurate as an SVD in float32, and far faster
    return _effective(torch.linalg.eigvalsh(_gram(features)).clamp_min(0).sqrt())


@torch.no_grad()
def alpha_req(features: Tensor) -> float | None:
    """The exponent by which the eigenvalues of the covariance of features [N, D] fall; None if fewer than two of the
    ranks that count are there, or they are zero."""
    values = torch.linalg.eigvalsh(_gram(features - features.double().mean(0))).flip(0)
    ranks = torch.arange(RANKS[0], min(RANKS[1], len(values), len(features) - 1) + 1)
    values = values[ranks - 1]
    if len(values) < 2 or not bool((values > values[0] * 1e-12).all()):
        return None
    x, y, weight = ranks.double().log(), values.log(), 1 / ranks.double()
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return float(-(weight * x * y).sum() / (weight * x * x).sum())


@torch.no_grad()
def lidar(features: Tensor) -> float:
    """LiDAR of the features [N, V, D] of V views of each of N samples, in 1..min(N - 1, D); 0 if all samples are
    alike."""
    x = features.double()
    means = x.mean(1)
    within = (x - means[:, None]).flatten(0, 1)
    between = means - means.mean(0)
    s_w = within.T @ within / len(within) + DELTA * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(s_w)
    root = between @ (vectors * values.rsqrt()) @ vectors.T
    return _effective(torch.linalg.eigvalsh(root.T @ root).clamp_min(0))


def _gram(features: Tensor) -> Tensor:
    gram = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    for part in features.split(4096):
        part = part.double()
        gram += part.T @ part
    return gram


def _effective(values: Tensor) -> float:
    """The exponential of the entropy of values >= 0; 0 if all are zero."""
    if float(values.sum()) == 0:
        return 0.0
    p = values / values.sum() + EPSILON
    return float(torch.exp(-(p * p.log()).sum()))
