"""NICE: non-linear independent components estimation (Dinh, Krueger & Bengio, 2014, arXiv:1410.8516).

    z = exp(s) f_L(...f_1(x)),     f_l: of the values in even places those in odd ones are moved, and in the next layer the other way round
    b <- b + m_l(a)                                                                                          (section 3.2, eq. 10)
The volume never changes but by the last factors s; z is logistic (section 3.4). m are perceptrons.
Shapes: B images, D values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from sensorium.generative.flow import NormalizingFlow
from sensorium.parts.density.coupling import Coupling
from sensorium.parts.density.invertible import Chain, Flat, Scaling


class NICE(NormalizingFlow):
    """``layers`` couplings by perceptrons of ``depth`` hidden layers of ``hidden`` units."""

    def __init__(
        self, shape: Sequence[int], *, hidden: int = 1000, layers: int = 4, depth: int = 5, noise: int = 0
    ) -> None:
        size = math.prod(shape)
        if size < 2 or layers < 1 or depth < 1:
            raise ValueError(
                f"NICE of {size} values, {layers} layers and a depth of {depth}: at least two values, one layer, a depth of 1"
            )
        even = (torch.arange(size) % 2 == 0).float()
        couplings = [Coupling(perceptron(size, hidden, depth), even if k % 2 == 0 else 1 - even) for k in range(layers)]
        super().__init__(Chain(Flat(*shape), *couplings, Scaling(size)), shape, base="logistic", noise=noise)


def perceptron(size: int, hidden: int, depth: int) -> nn.Sequential:
    """[B, D] -> [B, D], zeros at first."""
    widths = [size, *(hidden,) * depth]
    inner = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    last = nn.Linear(hidden, size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*inner, last)
