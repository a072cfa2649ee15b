"""Total coding rate: how many nats it takes to code samples up to a distortion (Ma et al., 2007; MCR2: Yu et al., 2020,
arXiv:2006.08558, eq. 2).

    R(Z) = 1/2 log det(I + d / (N eps) Z^T Z)

It grows with the volume that the samples span, so that maximizing it spreads unit vectors over all directions. Shapes: N
samples of all processes, B of this one, d dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.base.precision import precise
from sensorium.parts.gather import gather, sum_over_processes, world_size


def coding_rate(z: Tensor, eps: float) -> Tensor:
    """R of each set of samples [..., B, d] over all processes -> [...], float32 or better.

    eps: the squared distortion. log det(I + Z^T Z) = log det(I + Z Z^T), so that the smaller matrix is decomposed.
    """
    z = precise(z)
    B, d = z.shape[-2:]
    N = B * world_size()
    with torch.autocast(z.device.type, enabled=False):
        if d > N:
            rows = gather(z.movedim(-2, 0)).movedim(0, -2)
            product = rows @ rows.mT
        else:
            product = sum_over_processes(z.mT @ z)
        eye = torch.eye(min(N, d), dtype=z.dtype, device=z.device)
        # the _ex form: numbers that are not finite make the loss so, as everywhere else, instead of an error here
        factor = torch.linalg.cholesky_ex(eye + d / (N * eps) * product).L
        return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
