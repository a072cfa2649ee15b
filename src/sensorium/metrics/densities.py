"""Densities: bits per dimension, and two baselines of generative models of images.

    bits = -(log p(x) / D + log width) / log 2
where width is that of one gray level in the units of x: 1 for probabilities of discrete values; 2 / 256 for densities
of 8-bit values scaled to -1 .. 1 and dequantized by uniform noise, for which the mean is an upper bound
(Theis et al., 2016, arXiv:1511.01844, section 3.1).
Bernoulli      independent pixels: p(x) = prod_d p_d^x_d (1 - p_d)^(1 - x_d),  p_d = (ones_d + a) / (N + 2 a)
GaussianPCA    a normal distribution with the data's covariance along its first k principal components and their mean
               variance along all others: the maximum likelihood solution of probabilistic PCA (Tipping & Bishop, 1999)
Shapes: N samples to fit, B to evaluate, D dimensions, k components.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def bits_per_dim(log_prob: Tensor, dimensions: int, *, width: float = 1.0) -> dict[str, float | int]:
    """``{"bits_per_dim", "error", "n"}`` of log probabilities or densities [B] in nats; error is the standard error."""
    bits = -(log_prob.detach().double() / dimensions + math.log(width)) / math.log(2)
    error = float(bits.std() / math.sqrt(len(bits))) if len(bits) > 1 else math.nan
    return {"bits_per_dim": float(bits.mean()), "error": error, "n": len(bits)}


class Bernoulli:
    """Independent binary pixels, with ``probability`` [...] of a one each."""

    def __init__(self, probability: Tensor) -> None:
        self.probability = probability.double()

    @classmethod
    def fit(cls, x: Tensor, smoothing: float = 1.0) -> Bernoulli:
        """Fit to zeros and ones [N, ...]. smoothing: a, the pseudocount of ones and of zeros at each pixel."""
        return cls((x.double().sum(0) + smoothing) / (len(x) + 2 * smoothing))

    def log_prob(self, x: Tensor) -> Tensor:
        """Zeros and ones [B, ...] -> [B] nats, float64."""
        x = x.double()
        p = self.probability.to(x.device)
        return (torch.xlogy(x, p) + torch.special.xlog1py(1 - x, -p)).flatten(1).sum(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """[n, ...], float32."""
        dice = torch.rand(n, *self.probability.shape, generator=torch.Generator().manual_seed(seed))
        return (dice < self.probability).float()


class GaussianPCA:
    """A normal distribution, ``mean`` [D]: ``variances`` [k] along orthonormal ``directions`` [k, D], else ``rest``."""

    def __init__(
        self, mean: Tensor, directions: Tensor, variances: Tensor, rest: float, shape: tuple[int, ...]
    ) -> None:
        self.mean, self.directions, self.variances, self.rest, self.shape = mean, directions, variances, rest, shape

    @classmethod
    def fit(cls, x: Tensor, k: int) -> GaussianPCA:
        """Fit to samples [N, ...], k < N and <= D. Costs a decomposition of the smaller of [N, N] and [D, D]."""
        shape, x = tuple(x.shape[1:]), x.flatten(1).double()
        n, d = x.shape
        if not 1 <= k <= min(n - 1, d):
            raise ValueError(f"k must be between 1 and {min(n - 1, d)}, for {n} samples of {d} dimensions, got {k}")
        mean = x.mean(0)
        x = x - mean
        if d <= n:
            values, vectors = torch.linalg.eigh(x.T @ x / n)
            directions = vectors[:, -k:].T
        else:
            values, vectors = torch.linalg.eigh(x @ x.T / n)
            directions = torch.linalg.qr(x.T @ vectors[:, -k:].flip(1)).Q.T.flip(0)
        variances = values[-k:].clamp_min(0)
        left = float(x.square().sum()) / n - float(variances.sum())
        return cls(mean, directions.flip(0), variances.flip(0), max(0.0, left / (d - k)) if d > k else 0.0, shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B] nats, float64. ValueError if the data had zero variance in some direction: there is no
        density."""
        d, k = self.directions.shape[1], len(self.variances)
        if float(self.variances.min()) <= 0 or (d > k and self.rest <= 0):
            raise ValueError(
                "the samples lie in a subspace, so there is no density; fit fewer components, or add noise"
            )
        x = x.flatten(1).double() - self.mean
        along = x @ self.directions.T
        far = (along.square() / self.variances).sum(1)
        size = float(self.variances.log().sum())
        if d > k:
            far = far + (x - along @ self.directions).square().sum(1) / self.rest
            size += (d - k) * math.log(self.rest)
        return -(far + size + d * LOG_2PI) / 2

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """[n, ...], float32."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, len(self.variances), generator=generator, dtype=torch.float64) * self.variances.sqrt()
        other = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64) * math.sqrt(self.rest)
        other = other - (other @ self.directions.T) @ self.directions
        return (self.mean + z @ self.directions + other).float().view(n, *self.shape)
