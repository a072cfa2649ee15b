"""Mixtures of two pictures and of their labels.

    mixup  (Zhang et al., 2018, arXiv:1710.09412)    x = w a + (1 - w) b                         w ~ Beta(alpha, alpha)
    CutMix (Yun et al., 2019, arXiv:1905.04899)      x = b in a box of the area 1 - w, else a    w ~ Beta(alpha, alpha)
    L = w L(y_a) + (1 - w) L(y_b)
A box is centered anywhere and cut off at the border; w is then the area that is left to a. Pictures 2k and 2k + 1 of the batch of all
processes are mixed with each other, each by a w of its own, so that one process equals N if each has an even number of them; a
picture whose partner is not there is left alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sensorium.base.draw import Draw


def mixed(
    images: Tensor, labels: Tensor, draw: Draw, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, C, H, W] and labels [B] -> mixed images, the labels of what was mixed in [B] and the weight w of each
    picture's own label, float32 [B]. ``mixup`` and ``cutmix`` are the alphas; if both are above 0, each picture gets one
    of the two. Raises ValueError for negative ones and if both are 0."""
    if min(mixup, cutmix) < 0 or not mixup + cutmix:
        raise ValueError(f"mixup {mixup:g} and cutmix {cutmix:g}: must not be negative, and one of them be above 0")
    draw, (height, width) = replace(draw, device="cpu"), images.shape[-2:]
    rows = torch.arange(draw.start, draw.stop)
    alone = ((rows ^ 1) < draw.start) | ((rows ^ 1) >= draw.stop)
    partner = torch.where(alone, rows, rows ^ 1) - draw.start
    blend, cut = (_beta(draw, alpha) if alpha else torch.ones(draw.count) for alpha in (mixup, cutmix))
    boxed = draw.chance(0.5 if mixup else 1.0) if cutmix else torch.zeros(draw.count, dtype=torch.bool)
    inside = _inside(draw, cut, height, width)  # [B, H, W]
    weight = torch.where(boxed, 1 - inside.float().mean((1, 2)), blend).masked_fill(alone, 1.0)
    share = torch.where(boxed[:, None, None], (~inside).float(), blend[:, None, None]).to(images.device)
    partner = partner.to(labels.device)
    return torch.lerp(images[partner], images, share[:, None]), labels[partner], weight.to(images.device)


def _beta(draw: Draw, alpha: float) -> Tensor:
    """Draws of Beta(alpha, alpha), float32 [B]."""
    seed = int(torch.randint(2**62, (), generator=draw.generator))
    drawn = np.random.default_rng(seed).beta(alpha, alpha, draw.total)
    return torch.from_numpy(drawn[draw.start : draw.stop]).float()


def _inside(draw: Draw, weight: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in a box of the area 1 - weight, cut off at the border, bool [B, H, W]."""
    side, center, found = (1 - weight).sqrt(), draw.rand(2), []
    for i, length in enumerate((height, width)):
        half = (length * side).int() // 2
        middle, at = (length * center[:, i]).int(), torch.arange(length)
        found.append((at >= (middle - half)[:, None]) & (at < (middle + half)[:, None]))
    return found[0][:, :, None] & found[1][:, None, :]
