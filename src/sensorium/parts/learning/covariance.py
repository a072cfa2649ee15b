"""What losses against redundancy take from a covariance: the energy of its off-diagonal."""

from __future__ import annotations

from torch import Tensor


def off_diagonal_energy(x: Tensor, y: Tensor) -> Tensor:
    """[N, D] twice, of the same N samples -> sum over i != j of C_ij^2 with C = x^T y. Scalar.

    The sum over all i, j is also that of (x x^T) * (y y^T), so that the smaller of an N x N and a D x D matrix is made.
    """
    if len(x) < x.shape[1]:
        gram = x @ x.T
        whole = (gram * (gram if y is x else y @ y.T)).sum()
    else:
        whole = (x.T @ y).square().sum()
    return whole - (x * y).sum(0).square().sum()
