"""The encoder and decoder of a VAE: strided convolutions to a vector, and back; and the flow of its latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.density.coupling import GatedAutoregressive
from sensorium.parts.density.invertible import Chain, Planar


def halved(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """The sides after no, one, ... strided convolutions, rounded up."""
    found = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        found.append((height, width))
    return found


class Encoder(nn.Module):
    """[B, C, H, W] -> [B, outputs]; a strided convolution for each of ``widths``, then one hidden layer."""

    def __init__(self, shape: Sequence[int], outputs: int, widths: Sequence[int], hidden: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.ModuleList()
        for wide in widths:
            self.layers.append(nn.Sequential(nn.Conv2d(channels, wide, 3, 2, 1), nn.GroupNorm(4, wide), nn.SiLU()))
            channels = wide
        low, across = halved(height, width, len(widths))[-1]
        self.inner, self.last = nn.Linear(channels * low * across, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.last(F.silu(self.inner(x.flatten(1))))


class Decoder(nn.Module):
    """[B, inputs] -> [B, outputs, H, W]; the encoder's way back, by nearest neighbors and convolutions."""

    def __init__(self, inputs: int, shape: Sequence[int], outputs: int, widths: Sequence[int], hidden: int) -> None:
        super().__init__()
        _, height, width = shape
        self.sides = halved(height, width, len(widths))[::-1]
        low, across = self.sides[0]
        self.first, self.inner = nn.Linear(inputs, hidden), nn.Linear(hidden, widths[-1] * low * across)
        following = [*reversed(widths[:-1]), widths[0]]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(4, b), nn.SiLU())
            for a, b in zip(reversed(widths), following, strict=True)
        )
        self.last = nn.Conv2d(widths[0], outputs, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.inner(F.silu(self.first(z)))
        x = F.silu(x).view(len(z), -1, *self.sides[0])
        for side, layer in zip(self.sides[1:], self.layers, strict=True):
            x = layer(F.interpolate(x, size=side))
        return self.last(x)


def flow_of(latents: int, steps: int, context: int, *, planar: bool = False) -> Chain:
    """``steps`` of a flow of ``latents``, each given all of ``context`` numbers: planar ones, or those of IAF, whose orders alternate
    and whose networks have two hidden layers of so many units."""
    if planar:
        return Chain(*(Planar(latents, context) for _ in range(steps)))
    order = torch.arange(latents)
    orders = [order.flip(0) if k % 2 else order for k in range(steps)]
    return Chain(*(GatedAutoregressive(one, (context, context), context, seed=k) for k, one in enumerate(orders)))


def widths_of(side: int, wide: int) -> tuple[int, ...]:
    """Channels of each scale: ``wide``, and twice as many each time that a side of ``side`` pixels is halved, to 7 at least."""
    found = [wide]
    while (side := (side + 1) // 2) > 7 and len(found) < 4:
        found.append(2 * found[-1])
    return tuple(found)
