"""Multi-crop: several crops of each image, two of them large, of which each predicts something of the others (SwAV: Caron et
al., 2020, arXiv:2006.09882, section 3.2; DINO: Caron et al., 2021, arXiv:2104.14294).

Shapes: B images, V crops, G global crops (the first of the V), D features, K classes, clusters or prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor


def by_size(encode: Callable[[Tensor], Tensor], crops: Sequence[Tensor]) -> Tensor:
    """V crops of [B, 3, H_v, W_v] -> features [V * B, D]: consecutive crops of one size share a pass."""
    return torch.cat([encode(torch.cat(list(group))) for _, group in groupby(crops, key=lambda crop: crop.shape[-2:])])


def across_crops(targets_GBK: Tensor, log_p_VBK: Tensor) -> Tensor:
    """Cross-entropy between distributions of G crops and logarithms of those predicted of V, as a mean over images and
    pairs of different crops. Scalar in nats."""
    cross_GV = -(targets_GBK.flatten(1) @ log_p_VBK.flatten(1).T) / log_p_VBK.shape[1]
    other = ~torch.eye(*cross_GV.shape, dtype=torch.bool, device=cross_GV.device)
    return cross_GV[other].mean()
