"""Fully visible sigmoid belief network (Neal, 1992; Frey, 1998, *Graphical models for machine learning and digital communication*;
as a baseline of deep ones: Gan, Henao, Carlson & Carin, 2015, *Learning deep sigmoid belief networks with data augmentation*).

Each pixel is a logistic regression on those before it, row by row from the top left:
    p(x) = prod_d p(x_d | x_<d),     p(x_d = 1 | x_<d) = sigmoid(c_d + sum_{d' < d} W[d, d'] x_d')
Shapes: B images, D pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.generative.binary import BinaryImages


class FVSBN(BinaryImages):
    """A distribution over binary images or vectors of ``shape``, without the batch. Weights and biases begin at zero."""

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__(shape)
        self.weight = nn.Parameter(torch.zeros(self.inputs, self.inputs))
        self.bias = nn.Parameter(torch.zeros(self.inputs))

    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        """y: the logit of a one at each pixel, given earlier ones. [B, ...] -> the same shape."""
        return F.linear(x.flatten(1), self.weight.tril(-1), self.bias).view_as(x)

    def in_turn(
        self, x: Tensor, which: int = 0, known: Tensor | None = None
    ) -> tuple[Sequence[int], Callable[[int], Tensor]]:
        """A step costs d products a sample, not D^2."""
        return range(self.inputs), lambda d: x[:, :d] @ self.weight[d, :d] + self.bias[d]
