"""InfoNCE of predictions k places ahead (CPC: van den Oord et al., 2018, arXiv:1807.03748, eq. 4).

From the context at place i of a sample the target k places further is predicted, and told from the targets at all places of
all samples:
    L_k = mean over i of -log( exp(p[i] . t[i + k]) / sum over the K targets t of all samples of exp(p[i] . t) )
Places are the rows of a grid (the columns of a row are predicted each by itself), or moments: a grid of one column.
Shapes: B samples of this process, N of all, h x w places, E dimensions, K = N h w.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.parts.gather import gather, rank


def contrast(p: Tensor, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Predictions [B, E, h - k, w] of the targets [B, E, h, w] k rows below -> L_k among those of all processes, and the
    fraction of predictions whose best target is the right one; the latter without gradient. 0-d."""
    B, E, h, w = t.shape
    every = gather(t.flatten(2).transpose(1, 2)).reshape(-1, E)  # [N h w, E]
    logits = p.flatten(2).transpose(1, 2).reshape(-1, E) @ every.T
    first = (torch.arange(B, device=t.device) + rank() * B) * h * w + k * w
    own = (first[:, None] + torch.arange((h - k) * w, device=t.device)).flatten()
    right = (logits.detach().argmax(1) == own).to(logits.dtype).mean()
    return F.cross_entropy(logits, own), right
