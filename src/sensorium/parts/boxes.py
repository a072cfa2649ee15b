"""Boxes: their two usual forms, and overlap measures.

A box is (x1, y1, x2, y2), its left, top, right and bottom edge, or (cx, cy, w, h), its center and size.
    IoU  = |A and B| / |A or B|
    GIoU = IoU - (|H| - |A or B|) / |H|,   H the smallest box around both     (Rezatofighi et al., arXiv:1902.09630)
IoU is in [0, 1]; GIoU in (-1, 1], and decreases with the distance of disjoint boxes, so it always has a gradient.
Shapes: N, M boxes; "..." any number of dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Center and size -> edges, [..., 4]."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Edges -> center and size, [..., 4]."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes xyxy [..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` [N, 4] with every box of ``b`` [M, 4], xyxy -> [N, M]. 0 for two empty boxes."""
    both, either = _both_and_either(a[:, None], b[None])
    return both / _positive(either)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of every box of ``a`` [N, 4] with every box of ``b`` [M, 4], xyxy -> [N, M]."""
    return paired_giou(a[:, None], b[None])


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Elementwise GIoU of boxes ``a`` and ``b`` [..., 4], xyxy -> [...]. Broadcasts."""
    both, either = _both_and_either(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return both / _positive(either) - (hull - either) / _positive(hull)


def _both_and_either(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    both = size[..., 0] * size[..., 1]
    return both, area(a) + area(b) - both


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)
