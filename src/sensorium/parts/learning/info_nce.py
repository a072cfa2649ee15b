"""InfoNCE against a queue of keys (van den Oord et al., 2018, arXiv:1807.03748; MoCo: He et al., 2019, arXiv:1911.05722, eq. 1).

    L = mean over q of  -log( exp(q . k_+ / tau) / (exp(q . k_+ / tau) + sum over k in queue of exp(q . k / tau) ) )

of unit vectors q and k. Shapes: B queries of this process, P dimensions, K keys in the queue.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.learning.information import bound_scalars


def info_nce(q_BP: Tensor, k_BP: Tensor, queue_KP: Tensor, temperature: float) -> dict[str, Tensor]:
    """Queries and their keys, of any lengths, and unit vectors in the queue.

    Returns ``loss`` (float32 or better, in nats), ``contrast_top1`` (fraction of queries to which their key is nearer
    than any in the queue), ``alignment`` (mean cosine of queries and their keys), ``information`` and its ``ceiling``
    (:func:`sensorium.parts.learning.information.bound_scalars`); scalars, all but the loss detached.
    """
    with torch.autocast(q_BP.device.type, enabled=False):
        q_BP, k_BP = F.normalize(precise(q_BP), dim=1), F.normalize(precise(k_BP), dim=1)
        positive_B1, negative_BK = (q_BP * k_BP).sum(1, keepdim=True), q_BP @ queue_KP.to(q_BP.dtype).T
        logits = torch.cat([positive_B1, negative_BK], 1) / temperature  # [B, 1 + K]
        loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
        found = (positive_B1 > negative_BK.amax(1, keepdim=True)).detach().to(loss.dtype).mean()
    scalars = {"loss": loss, "contrast_top1": found, "alignment": positive_B1.detach().mean()}
    return scalars | bound_scalars(loss, logits.shape[1])
