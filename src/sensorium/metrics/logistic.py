"""Multinomial logistic regression on frozen features, solved to its optimum.

For standardized features x, classes y and strength l2 it minimizes over W [D, K] and b [K]
    F(W, b) = mean_i  -log softmax(x_i W + b)[y_i]  +  l2 / 2 ||W||^2,
which scikit-learn's LogisticRegression minimizes too, with C = 1 / (l2 N) (for two classes it fits the difference of
the columns, whose C is 2 / (l2 N)). F is convex and its optimum unique (up to a constant in b), so the result does not
depend on the solver. This one takes tens of iterations where plain L-BFGS takes hundreds: with
X^T X / N = V diag(s) V^T, the Hessian is close to  V diag(s / K + l2) V^T  for each class, so
    W = V diag(s / K + l2)^(-1/2) theta
makes the problem in theta well conditioned, on all images and on most of them. With fewer images than dimensions only
their span is searched, since W is zero outside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-6  # stopping criterion: largest gradient in theta
SINGLE = 1e-5  # the same where rows are float32: below, rounding decides, and line searches fail
ITERATIONS = 500
SMALL = 1 << 20  # number of entries of X below which one thread is faster


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw features: ``features @ weight.T + bias``, weight [K, D], bias [K]."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features.to(self.weight), self.weight, self.bias)

    def right(self, features: Tensor, labels: Tensor) -> Tensor:
        """Which features [N, D] are classified correctly: bool [N], on the CPU."""
        return self.logits(features).argmax(dim=1).cpu() == labels.cpu()

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        return float(self.right(features, labels).double().mean())


class Logistic:
    """Training features [N, D], standardized and decomposed once, for fits at several strengths and on subsets.

    Constant features are only centered. Each solution starts from the previous one; ``reset`` starts from zero.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int):
        features = features.float()
        self.mean = features.mean(dim=0)
        std = features.std(dim=0, correction=0)
        # relative to the mean's size: a constant column must not turn rounding errors into a feature
        self.std = torch.where(std > 1e-6 * (self.mean.abs() + 1e-12), std, torch.ones_like(std))
        x_ND = (features - self.mean) / self.std
        self.labels = labels.to(features.device)
        self.answer_NK = F.one_hot(self.labels, classes).double()
        # few images: the problem is small in the basis, and float64 is cheap; many: a second copy would cost too much
        self.in_basis = len(x_ND) <= x_ND.shape[1]
        self.spectrum_R, self.basis_DR = _row_space(x_ND.double()) if self.in_basis else _eigen(x_ND)
        self.rows = x_ND.double() @ self.basis_DR if self.in_basis else x_ND
        self.reset()

    def reset(self) -> None:
        """Discard the last solution (weights in the basis, and biases)."""
        self.weight_RK = self.answer_NK.new_zeros(len(self.spectrum_R), self.answer_NK.shape[1])
        self.bias_K = self.answer_NK.new_zeros(self.answer_NK.shape[1])

    def fit(self, l2: float) -> Probe:
        """The optimum at strength ``l2`` > 0 on all images, in terms of raw features."""
        self.solve(l2)
        weight_DK = (self.basis_DR @ self.weight_RK.to(self.basis_DR)).double() / self.std[:, None]
        bias_K = self.bias_K - self.mean.double() @ weight_DK
        return Probe(weight_DK.T.float().contiguous(), bias_K.float())

    @torch.no_grad()
    def solve(self, l2: float, part: Tensor | None = None, tolerance: float | None = None) -> None:
        """Find the optimum on the images ``part`` (bool [N], all by default); ``tolerance`` on the gradient of theta."""
        from scipy.optimize import minimize

        device, classes = self.labels.device, self.answer_NK.shape[1]
        share = torch.ones(len(self.labels), device=device) if part is None else part.to(device)
        share_N1 = (share.double() / share.sum())[:, None]
        scale_R1 = (self.spectrum_R / classes + l2).rsqrt()[:, None]

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.from_numpy(flat).to(device).view(-1, classes)
            weight_RK = scale_R1 * theta[:-1]
            log_p = self._logits(weight_RK, theta[-1]).log_softmax(dim=1)
            loss = -(share_N1 * self.answer_NK * log_p).sum() + l2 / 2 * weight_RK.square().sum()
            slope_NK = share_N1 * (log_p.exp() - self.answer_NK)
            slope_DK = (slope_NK.T.to(self.rows) @ self.rows).T  # several times as fast as rows.T @ slope on a CPU
            slope_RK = slope_DK if self.in_basis else self.basis_DR.T @ slope_DK
            grad_RK = scale_R1 * (slope_RK + l2 * weight_RK)
            return float(loss), torch.cat([grad_RK, slope_NK.sum(dim=0, keepdim=True)]).flatten().cpu().numpy()

        start = torch.cat([self.weight_RK / scale_R1, self.bias_K[None]]).flatten().cpu().numpy()
        tolerance = tolerance or (TOLERANCE if self.in_basis else SINGLE)
        options = {"maxiter": ITERATIONS, "maxcor": 20, "gtol": tolerance, "ftol": 1e-12}
        with _threads(1 if self.rows.numel() < SMALL else torch.get_num_threads()):
            found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        theta = torch.from_numpy(found).to(device).view(-1, classes)
        self.weight_RK, self.bias_K = scale_R1 * theta[:-1], theta[-1]

    @torch.no_grad()
    def log_likelihood(self, part: Tensor) -> float:
        """Log-likelihood of the images ``part`` (bool [N]) under the last solution, in nats, summed."""
        log_p = self._logits(self.weight_RK, self.bias_K).log_softmax(dim=1)
        return float((self.answer_NK * log_p).sum(dim=1)[part.to(self.labels.device)].sum())

    @torch.no_grad()
    def probabilities(self, part: Tensor) -> Tensor:
        """Of each class, float64 [n, K], for the images ``part`` (bool [N]) under the last solution."""
        return self._logits(self.weight_RK, self.bias_K)[part.to(self.labels.device)].softmax(dim=1)

    def _logits(self, weight_RK: Tensor, bias_K: Tensor) -> Tensor:
        weight = weight_RK if self.in_basis else self.basis_DR @ weight_RK.float()
        return (self.rows @ weight).double() + bias_K


def _eigen(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (float64 [D]) and eigenvectors (float32 [D, D]) of ``X^T X / N``, for a preconditioner."""
    spectrum, basis = torch.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    return spectrum.clamp_min(0).double(), basis


def _row_space(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The same, in float64 and restricted to the span of the rows [D, R], by ``X X^T / N``: for fewer rows than
    columns."""
    spectrum, basis = torch.linalg.eigh(x_ND @ x_ND.T / len(x_ND))
    kept = spectrum > 1e-10 * spectrum[-1].clamp_min(1e-30)
    spectrum = spectrum[kept]
    return spectrum, x_ND.T @ basis[:, kept] / (spectrum * len(x_ND)).sqrt()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """One thread for small problems, where synchronization costs more than it saves, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
