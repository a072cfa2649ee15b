"""Fréchet distance between two sets of features (Dowson & Landau, 1982; as FID by Heusel et al., 2017,
arXiv:1706.08500).

Each set is described by its mean m and covariance S (divided by N - 1), as a normal distribution:
    d = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))
The trace term equals the minimum distance between square roots of the covariances: with S_a = A A^T and S_b = B B^T it
is min over rotations Q of |A - B Q|^2, reached at Q = U V^T of the singular value decomposition U s V^T of B^T A. That
is a sum of squares: never negative, and without the cancellation by which the formula above loses half of its digits if
the sets are similar. Sets of fewer samples than features need no special case.

Bias: with finite sets the distance is too large, by about c / N, and c differs from generator to generator (Chong &
Forsyth, 2020, arXiv:1911.07023). Compare only distances of equal counts, and with the distance between two halves of
the real set.
Shapes: N samples, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of features, accumulated in parts in float64 without cancellation (Chan et al., 1979)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> Moments:
        """Add features [N, D]; returns itself. Raises ValueError for another width or non-finite values."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be [N, {len(self.mean)}], got {list(features.shape)}")
        if len(features) == 0:
            return self
        features = features.detach().to("cpu", torch.float64)
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite")
        part = Moments(len(self.mean))
        part.count, part.mean = len(features), features.mean(0)
        part._scatter = (features - part.mean).T @ (features - part.mean)
        return self.merge(part)

    def merge(self, other: Moments) -> Moments:
        """Merge the moments of another; returns itself."""
        if other.count:
            total = self.count + other.count
            apart = other.mean - self.mean
            self._scatter = (
                self._scatter + other._scatter + torch.outer(apart, apart) * (self.count * other.count / total)
            )
            self.mean = self.mean + apart * (other.count / total)
            self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """[D, D]; needs two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self._scatter / (self.count - 1)


def moments(features: Tensor, chunk: int = 4096) -> Moments:
    """Of features [N, D], ``chunk`` rows at a time."""
    found = Moments(features.shape[1])
    for part in features.split(chunk):
        found.update(part)
    return found


def frechet(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """d between two sets of features [N, D] (N may differ) or their moments; exactly 0 if the moments are equal."""
    a, b = (moments(x) if isinstance(x, Tensor) else x for x in (a, b))
    if len(a.mean) != len(b.mean):
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} columns")
    cov_a, cov_b = a.covariance, b.covariance
    if torch.equal(a.mean, b.mean) and torch.equal(cov_a, cov_b):
        return 0.0
    root_a, root_b = _root(cov_a), _root(cov_b)
    u, _, vt = torch.linalg.svd(root_b.T @ root_a)
    return float((a.mean - b.mean).square().sum() + (root_a - root_b @ (u @ vt)).square().sum())


def frechet_error(a: Tensor, b: Tensor, rounds: int = 20) -> float:
    """The standard error of the distance by ``a`` [N, D]: the deviation of :func:`frechet_again`."""
    return float(frechet_again(a, b, rounds).std())


def frechet_again(a: Tensor, b: Tensor, rounds: int = 20) -> Tensor:
    """The distances of ``a`` [N, D] drawn again ``rounds`` times with seed 0 (the bootstrap), float64 [rounds]; b counts as known. Sets
    of as many samples are drawn alike, so that those of two are paired by sample."""
    dice, known = torch.Generator().manual_seed(0), moments(b)
    again = (a[torch.randint(len(a), (len(a),), generator=dice)] for _ in range(rounds))
    return torch.tensor([frechet(one, known) for one in again], dtype=torch.float64)


def _root(covariance: Tensor) -> Tensor:
    """A with A A^T = S."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * values.clamp_min(0).sqrt()
