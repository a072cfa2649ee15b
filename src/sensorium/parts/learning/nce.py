"""Noise-contrastive estimation of unnormalized models (Gutmann & Hyvarinen, 2010, AISTATS; Mnih & Teh, 2012,
arXiv:1206.6426).

A model log p(x) = f(x) - log Z learns, log Z included, by telling data from noise of a known density q, k noise samples
for each of the data. With the log-odds G(x) = f(x) - log Z - log q(x) - log k:

    L = E_data softplus(-G) + k E_q softplus(G)

For many samples its minimum is the true density, normalized, whatever the noise (that covers the data). Mnih & Teh fix
log Z, for a model of many contexts, at a constant. Shapes: B data, k noise samples of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise


def nce_loss(data: Tensor, noise: Tensor, q_data: Tensor, q_noise: Tensor) -> Tensor:
    """0-d, in nats for each of the data: 0 at best, (1 + k) log 2 if G is 0.

    data [B, ...], noise [B, ..., k]: log p, of the model. q_data, q_noise: log q at the same samples. Raises ValueError
    for other shapes.
    """
    if noise.shape[:-1] != data.shape or q_data.shape != data.shape or q_noise.shape != noise.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (data, noise, q_data, q_noise))
        raise ValueError(f"scores must be [B, ...] of data and [B, ..., k] of noise, twice; got {shapes}")
    log_k = math.log(noise.shape[-1])
    true, drawn = (precise(p) - precise(q) - log_k for p, q in ((data, q_data), (noise, q_noise)))
    return (F.softplus(-true) + F.softplus(drawn).sum(-1)).mean()


class NCE(nn.Module):
    """:func:`nce_loss` of an unnormalized model f with a learned ``log_z``, which begins at ``start``."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.log_z = nn.Parameter(torch.tensor(float(start)))

    def forward(self, data: Tensor, noise: Tensor, q_data: Tensor, q_noise: Tensor) -> Tensor:
        """f of the data [B, ...] and of the noise [B, ..., k], and log q of both -> 0-d."""
        return nce_loss(data - self.log_z, noise - self.log_z, q_data, q_noise)
