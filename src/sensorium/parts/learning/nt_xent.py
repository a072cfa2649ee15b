"""NT-Xent, the normalized temperature-scaled cross-entropy (SimCLR: Chen et al., 2020, arXiv:2002.05709, eq. 1).

With z the L2-normalized projections of the 2N views of a batch and j(i) the other view of i's image:

    l_i = -log( exp(z_i . z_j(i) / tau) / sum over k != i of exp(z_i . z_k / tau) )        L = mean over i of l_i

Shapes: B images of this process, N of all, P dimensions, M further negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.learning.information import bound_scalars
from sensorium.parts.similarity import view_cosines


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5, negatives: Tensor | None = None) -> dict[str, Tensor]:
    """Projections of two views [B, P] each, of any lengths, against all processes' views and unit vectors ``negatives``
    [M, P], the same in all processes.

    Returns ``loss``, float32 or better: each process's is the mean over its own 2B views, and the mean over processes that
    of the global batch; ``contrast_top1`` (fraction of views whose nearest is their positive), ``alignment`` (mean cosine of
    positives), ``information`` (the bound of that of two views in nats, log K - loss for K = 2N - 1 + M candidates) and
    its ``ceiling``, log K. Scalars, all but the loss detached.
    """
    cosines, own, other = view_cosines(z1, z2)
    with torch.autocast(z1.device.type, enabled=False):
        logits = (cosines / temperature).scatter(1, own[:, None], -torch.inf)
        if negatives is not None:
            z_2BP = F.normalize(precise(torch.cat([z1, z2])), dim=-1)
            logits = torch.cat([logits, z_2BP @ negatives.to(z_2BP.dtype).T / temperature], dim=1)
        loss = F.cross_entropy(logits, other)
    found = (logits.detach().argmax(1) == other).to(loss.dtype).mean()
    alignment = cosines.detach().gather(1, other[:, None]).mean()
    return {"loss": loss, "contrast_top1": found, "alignment": alignment} | bound_scalars(loss, logits.shape[1] - 1)
