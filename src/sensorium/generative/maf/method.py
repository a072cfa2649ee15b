"""MAF: masked autoregressive flow for density estimation (Papamakarios, Pavlakou & Murray, 2017, arXiv:1705.07057).

    z_d = (x_d - mu_d(x_<d)) exp(-alpha_d(x_<d))                                                                     (eq. 3, 4)
mu and alpha by a masked perceptron (MADE), in reading order, and in each further layer the other way round. The authors' batch norm
between layers is an affine map of each value here, which begins with the data (Glow's ActNorm). Pictures are logits at first
(section 4.3). Densities take one pass, samples D passes a layer.
Shapes: B images, D values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sensorium.generative.flow import NormalizingFlow
from sensorium.parts.density.coupling import Autoregressive
from sensorium.parts.density.invertible import ActNorm, Chain, Flat, Logit


class MAF(NormalizingFlow):
    """``layers`` autoregressive layers by perceptrons with the ``hidden`` units of each hidden layer. margin: of the logits."""

    def __init__(
        self, shape: Sequence[int], *, hidden: Sequence[int] = (1024,), layers: int = 5, margin: float = 1e-2
    ) -> None:
        if layers < 1 or not hidden:
            raise ValueError("MAF needs at least one layer, and one hidden layer in it")
        size = math.prod(shape)
        made = []
        for k in range(layers):
            places = torch.arange(size) if k % 2 == 0 else torch.arange(size).flip(0)
            made += [ActNorm(size), Autoregressive(places, hidden, seed=k)]
        super().__init__(Chain(Logit(margin), Flat(*shape), *made), shape)
