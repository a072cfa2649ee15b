"""Multinomial logistic regression on frozen features, solved to its optimum.

For standardised features x, classes y and strength l2 it minimises over W [D, K] and b [K]
    F(W, b) = mean_i  -log softmax(x_i W + b)[y_i]  +  l2 / 2 ||W||^2,
which scikit-learn's LogisticRegression minimises too, with C = 1 / (l2 N) (of two classes it fits the difference of
the columns, whose C is 2 / (l2 N)). F is convex and its optimum unique (but for
a constant in b), so any solver that gets there is the same judge. This one takes tens of iterations where plain L-BFGS
takes hundreds: with X^T X / N = V diag(s) V^T, the Hessian lies near  V diag(s / K + l2) V^T  for each class, so
    W = V diag(s / K + l2)^(-1/2) theta
makes the problem in theta well conditioned. Directions in which no feature varies are left out: W is zero there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-6  # largest gradient in theta at which to stop
ITERATIONS = 500


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw features: ``features @ weight.T + bias``, weight [K, D], bias [K]."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features.to(self.weight), self.weight, self.bias)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        return float((self.logits(features).argmax(dim=1).cpu() == labels.cpu()).double().mean())


class Logistic:
    """Training features [N, D], standardised and decomposed once, to be fitted at several strengths.

    Features that do not vary are only centred. Successive ``fit`` calls start from the solution before.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int):
        features = features.float()
        self.mean = features.mean(dim=0)
        std = features.std(dim=0, correction=0)
        # relative to the mean's size: a constant column must not turn rounding errors into a feature
        self.std = torch.where(std > 1e-6 * (self.mean.abs() + 1e-12), std, torch.ones_like(std))
        self.x_ND = (features - self.mean) / self.std
        self.labels = labels.to(features.device)
        self.classes = classes
        self.spectrum_R, self.basis_DR = _decompose(self.x_ND)
        # few images: the problem is small in the basis, and float64 is free; many: a second copy would not pay
        self.in_basis = len(self.x_ND) <= self.x_ND.shape[1]
        self.rows = (self.x_ND @ self.basis_DR).double() if self.in_basis else self.x_ND
        self.weight_RK = self.spectrum_R.new_zeros(len(self.spectrum_R), classes)  # of the last solution, in the basis
        self.bias_K = self.spectrum_R.new_zeros(classes)

    @torch.no_grad()
    def fit(self, l2: float, tolerance: float = TOLERANCE) -> Probe:
        """The optimum at strength ``l2`` > 0, in terms of raw features; ``tolerance`` on the gradient of theta."""
        from scipy.optimize import minimize

        scale_R1 = (self.spectrum_R / self.classes + l2).rsqrt()[:, None]
        answer = torch.zeros(len(self.labels), self.classes, dtype=torch.float64, device=self.labels.device)
        answer[torch.arange(len(self.labels)), self.labels] = 1

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.from_numpy(flat).to(self.labels.device).view(-1, self.classes)
            weight_RK, bias_K = scale_R1 * theta[:-1], theta[-1]
            log_p = ((self.rows @ self._of_rows(weight_RK)).double() + bias_K).log_softmax(dim=1)
            loss = -(answer * log_p).sum() / len(answer) + l2 / 2 * weight_RK.square().sum()
            slope_NK = (log_p.exp() - answer) / len(answer)
            grad_RK = scale_R1 * (self._to_basis(self.rows.T @ slope_NK.to(self.rows)) + l2 * weight_RK)
            return float(loss), torch.cat([grad_RK, slope_NK.sum(dim=0, keepdim=True)]).flatten().cpu().numpy()

        start = torch.cat([self.weight_RK / scale_R1, self.bias_K[None]]).flatten().cpu().numpy()
        options = {"maxiter": ITERATIONS, "maxcor": 20, "gtol": tolerance, "ftol": 1e-12}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        theta = torch.from_numpy(found).to(self.labels.device).view(-1, self.classes)
        self.weight_RK, self.bias_K = scale_R1 * theta[:-1], theta[-1]
        weight_DK = (self.basis_DR.double() @ self.weight_RK) / self.std[:, None]
        bias_K = self.bias_K - self.mean.double() @ weight_DK
        return Probe(weight_DK.T.float().contiguous(), bias_K.float())

    def _of_rows(self, weight_RK: Tensor) -> Tensor:
        return weight_RK if self.in_basis else self.basis_DR @ weight_RK.float()

    def _to_basis(self, grad: Tensor) -> Tensor:
        return (grad if self.in_basis else self.basis_DR.T @ grad).double()


def _decompose(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (float64 [R]) and eigenvectors (float32 [D, R]) of ``X^T X / N``, those above rounding errors only."""
    n, d = x_ND.shape
    gram = (x_ND @ x_ND.T if n < d else x_ND.T @ x_ND) / n
    spectrum, basis = torch.linalg.eigh(gram.double())
    kept = spectrum > 1e-6 * spectrum[-1].clamp_min(1e-30)
    spectrum, basis = spectrum[kept], basis[:, kept].float()
    if n < d:
        basis = x_ND.T @ basis / (spectrum * n).sqrt().float()
    return spectrum, basis
