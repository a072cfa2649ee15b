"""Several crops of each picture, some smaller than others, through one backbone (SwAV: Caron et al., 2020,
arXiv:2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


def crop_features(backbone: Any, crops: Sequence[Tensor]) -> Tensor:
    """V crops [B, 3, H_v, W_v] -> features [V * B, D] of an Encoder: consecutive crops of one size share a pass."""
    same_size = (torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[-2:]))
    return torch.cat([backbone.features(images) for images in same_size])
