"""How a trained network sees pictures that were prepared for another: with its own normalization, at its own size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import SeesImages, Statistics

USUAL = 224  # a published network is used at this size, also where it was trained at a larger one


class Preprocess:
    """Pictures [B, 3, H, W] as they are prepared here -> as a network knows them.

        resize((x s + m - m_f) / s_f)

    given: (m, s), mean and deviation that the pictures were normalized with. own: (m_f, s_f) of those that the network was
    trained on; None: the same. side: in pixels, to which they are resized; None: as they come.
    """

    def __init__(self, given: Statistics, own: Statistics | None = None, side: int | None = None) -> None:
        (mean, std), (own_mean, own_std) = given, own or given
        self.scale = tuple(s / t for s, t in zip(std, own_std, strict=True))
        self.shift = tuple((m - n) / t for m, n, t in zip(mean, own_mean, own_std, strict=True))
        self.side = side

    def __call__(self, images: Tensor) -> Tensor:
        scale, shift = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.scale, self.shift))
        x = images * scale[:, None, None] + shift[:, None, None]
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
        return x


def usual_side(network: SeesImages) -> tuple[int, str]:
    """The side in pixels at which a published network is used, and why."""
    own = network.image_size
    trained = min(own) if isinstance(own, tuple) else own
    told = f"it was trained at {trained} px" if trained else "published networks are used at it"
    return min(trained or USUAL, USUAL), told
