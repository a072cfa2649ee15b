"""Sinkhorn-Knopp: soft assignments of samples to prototypes that use all prototypes equally (Cuturi, 2013, arXiv:1306.0895),
as codes of SwAV (Caron et al., 2020, arXiv:2006.09882, eqs. 3-5).

Of all Q [N, K] whose samples have the weight 1 each and whose prototypes N / K, that of the largest sum of Q S + epsilon
H(Q), with the entropy H, is

    Q = diag(u) exp(S / epsilon) diag(v)

u and v are found by normalizing the prototypes and the samples in turn. Here Q is kept as its logarithm: exponentials of a
small epsilon would overflow, or leave a prototype that is far from all samples without any weight.
Shapes: B samples of this process, N of all processes, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.base.precision import precise
from sensorium.parts.gather import gather


def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Scores S [B, K], higher for nearer prototypes -> codes [B, K] in float32 or better, each row a distribution.

    The prototypes are shared by the samples of all processes, whose codes are those that one process would find; B may
    differ between processes. epsilon: above 0; the lower, the harder the codes. iterations: at least 1.
    """
    return log_sinkhorn(scores, epsilon, iterations).exp()


@torch.no_grad()
def log_sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """The logarithms of the codes of :func:`sinkhorn`, [B, K]."""
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"epsilon must be above 0 and iterations at least 1, got {epsilon:g} and {iterations}")
    with torch.autocast(scores.device.type, enabled=False):
        log_q = precise(scores) / epsilon
        for _ in range(iterations):
            log_q = log_q - gather(log_q.logsumexp(0, keepdim=True)).logsumexp(0)
            log_q = log_q.log_softmax(1)
        return log_q
