"""Pictures as a published network knows them: of its own mean and deviation, at its own size.

    features(x) = f(resize((x s + m - m_f) / s_f))

x: pictures normalized by the data's mean m and deviation s; m_f, s_f and the size: those that f was trained with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBody, PreparesImages, SeesImages, Statistics

USUAL = 224  # a published network is used at this size, also where it was trained at a larger one


class AsTrained(nn.Module, Encoder, PreparesImages):
    """``network``, an Encoder, that gets pictures as it was trained on them.

    given, own: (mean, std) of the pictures that come and of those that it was trained with. side: that pictures are
    resized to (bilinear, antialiased, as everywhere else); None: as they come.
    """

    def __init__(self, network: Any, given: Statistics, own: Statistics | None = None, side: int | None = None) -> None:
        super().__init__()
        self.network: Any = network
        self.dim, self.side = network.dim, side
        (mean, std), (own_mean, own_std) = given, own or given
        self.normalization, self.own = given, own or given
        self.scale = tuple(s / t for s, t in zip(std, own_std, strict=True))
        self.shift = tuple((m - n) / t for m, n, t in zip(mean, own_mean, own_std, strict=True))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized by the data's statistics -> [B, dim]."""
        return self.network.features(self.prepared(images))

    def prepared(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalized by the data's statistics -> as the network knows pictures."""
        scale, shift = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (self.scale, self.shift))
        x = images * scale[:, None, None] + shift[:, None, None]
        if self.side is not None and x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        return x

    def layers_for_decay(self) -> dict[str, int]:
        return {f"network.{name}": at for name, at in self.network.layers_for_decay().items()}


def usual_side(network: SeesImages) -> tuple[int, str]:
    """The side in pixels at which a published network is used, and why."""
    own = network.image_size or network.trained_size
    trained = min(own) if isinstance(own, tuple) else own
    if not trained:
        return USUAL, "not told by its files: the usual size of published networks"
    more = f"; {USUAL} px are usual" if trained > USUAL else ""
    return min(trained, USUAL), f"trained at {trained} px{more}"


def inner(network: Any) -> Any:
    """The published network in an :class:`AsTrained`, the body in what extends it; any other network itself."""
    if isinstance(network, HasBody):
        return network.body
    return network.network if isinstance(network, AsTrained) else network
