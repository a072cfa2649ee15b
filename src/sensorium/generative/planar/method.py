"""Planar and radial flows (Rezende & Mohamed, 2015, *Variational inference with normalizing flows*, arXiv:1505.05770), as densities of
pictures.

    z = x + u tanh(w.x + b)                                  across a plane                                               (eq. 10)
    z = x + beta / (alpha + |x - c|) (x - c)                 around a point                                               (eq. 14)
The paper bends a normal distribution to a posterior; here data are bent to a normal distribution. Pictures are logits at first.
Shapes: B images, D values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sensorium.generative.flow import NormalizingFlow
from sensorium.parts.density.invertible import ActNorm, Chain, Flat, Logit, Planar, Radial


class PlanarFlow(NormalizingFlow):
    """``layers`` bends after an affine map of each value, which begins with the data."""

    def __init__(self, shape: Sequence[int], *, layers: int = 32, radial: bool = False, margin: float = 1e-2) -> None:
        if layers < 1:
            raise ValueError("a planar flow needs at least one layer")
        size = math.prod(shape)
        bends = [Radial(size) if radial else Planar(size) for _ in range(layers)]
        super().__init__(Chain(Logit(margin), Flat(*shape), ActNorm(size), *bends), shape)
