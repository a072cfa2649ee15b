"""Cosines between outputs of two views, as losses without negatives and contrastive ones compare them, and their spread.

    cos(a, b) = a . b / (|a| |b|)
    spread    = sqrt(D) * mean over dimensions of std over samples of z / |z|
The spread is 1 if the outputs are distributed evenly over the sphere and 0 if they have collapsed to one point (Chen & He,
2020, arXiv:2011.10566, section 4.1, which shows it without the factor). All in float32 or better, whatever the precision
of the outputs. Shapes: B samples of this process, N of all, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.gather import gather, rank, sum_over_processes, world_size


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """The mean cosine of rows, [B, D] each: a scalar. The mean over processes is that of the global batch."""
    with torch.autocast(a.device.type, enabled=False):
        return F.cosine_similarity(precise(a), precise(b), dim=-1).mean()


def view_cosines(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines of the outputs of two views [B, D] each with those of all processes.

    -> cosines [2B, 2N], all first views before the second ones; the columns of each row's own view [2B], and of the other
    view of its sample [2B].
    """
    B = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z_2BD = F.normalize(precise(torch.stack([z1, z2])), dim=-1)
        k_2ND = gather(z_2BD.transpose(0, 1)).transpose(0, 1)
        cosines = z_2BD.flatten(0, 1) @ k_2ND.flatten(0, 1).T
    N = k_2ND.shape[1]
    i = torch.arange(B, device=z1.device) + rank() * B
    return cosines, torch.cat([i, i + N]), torch.cat([i + N, i])


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """The spread of outputs [B, D] of all processes: a scalar."""
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(precise(z), dim=-1)
        count = len(unit) * world_size()
        mean = sum_over_processes(unit.sum(0)) / count
        variance = sum_over_processes((unit - mean).square().sum(0)) / count
        return variance.sqrt().mean() * z.shape[-1] ** 0.5
