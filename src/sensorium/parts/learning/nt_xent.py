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
from sensorium.parts.gather import gather, rank


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5, negatives: Tensor | None = None) -> dict[str, Tensor]:
    """Projections of two views [B, P] each, of any lengths, against all processes' views and unit vectors ``negatives``
    [M, P], the same in all processes.

    Returns ``loss``, float32 or better: each process's is the mean over its own 2B views, and the mean over processes that
    of the global batch; ``contrast_top1`` (fraction of views whose nearest is their positive) and ``alignment`` (mean
    cosine of positives). Scalars, the last two detached.
    """
    B = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z_2BP = F.normalize(precise(torch.stack([z1, z2])), dim=-1)
        k_2NP = gather(z_2BP.transpose(0, 1)).transpose(0, 1)
        N = k_2NP.shape[1]
        logits = z_2BP.flatten(0, 1) @ k_2NP.flatten(0, 1).T / temperature  # [2B, 2N]

        i = torch.arange(B, device=z1.device) + rank() * B
        self_, positive = torch.cat([i, i + N]), torch.cat([i + N, i])
        logits = logits.scatter(1, self_[:, None], -torch.inf)
        if negatives is not None:
            logits = torch.cat([logits, z_2BP.flatten(0, 1) @ negatives.to(z_2BP.dtype).T / temperature], dim=1)
        loss = F.cross_entropy(logits, positive)

        found = (logits.detach().argmax(1) == positive).to(loss.dtype).mean()
        alignment = (z_2BP[0] * z_2BP[1]).detach().sum(-1).mean()
    return {"loss": loss, "contrast_top1": found, "alignment": alignment}
