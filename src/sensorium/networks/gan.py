"""Generators and discriminators of GANs of two kinds.

    dcgan     batch norm and ReLU in the generator, strided convolutions of 4 x 4 and leaky ReLU in the discriminator (Radford et al.,
              2015, arXiv:1511.06434, section 3; the generator enlarges by nearest neighbors and convolves, which leaves no
              checkerboards: Odena et al., 2016)
    resnet    residual blocks with nearest-neighbor enlargement or average pooling; the discriminator sums over pixels and, with
              classes, adds their projection (Miyato et al., 2018, arXiv:1802.05957, tables 3 and 4; Miyato & Koyama, 2018,
              arXiv:1802.05637)
Sides need not be powers of two: the generator's maps have the sides of the discriminator's, rounded up.
Shapes: B images, C channels, H x W pixels, Z numbers of noise, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2


def sides_of(height: int, width: int) -> list[tuple[int, int]]:
    """The sides of maps from the picture's down to 4 or so pixels, each half of the one before, rounded up."""
    found = [(height, width)]
    while max(found[-1]) > 4 and min(found[-1]) > 1:
        found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
    return found


class Generator(nn.Module):
    """[B, Z], classes int64 [B] or None -> images [B, C, H, W] in -1..1. width: channels at the picture's side, doubled at each smaller
    one up to 8 times. residual: the kind of blocks."""

    def __init__(
        self, noise: int, shape: Sequence[int], width: int, *, classes: int = 0, residual: bool = False
    ) -> None:
        super().__init__()
        channels, height, across = shape
        self.sides = sides_of(height, across)[::-1]
        widths = [width * min(2**k, 8) for k in reversed(range(len(self.sides)))]
        self.residual = residual
        self.classes = nn.Embedding(classes, noise) if classes else None
        self.first = nn.Linear(noise * (2 if classes else 1), widths[0] * self.sides[0][0] * self.sides[0][1])
        kind = _Up if residual else _Plain
        self.norm = nn.Identity() if residual else nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList(kind(a, b) for a, b in itertools.pairwise(widths))
        self.after = nn.BatchNorm2d(widths[-1]) if residual else nn.Identity()
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        if self.classes is not None:
            assert classes is not None
            z = torch.cat([z, self.classes(classes)], 1)
        x = self.first(z).view(len(z), -1, *self.sides[0])
        x = x if self.residual else F.relu(self.norm(x))
        for side, block in zip(self.sides[1:], self.blocks, strict=True):
            x = block(x, side)
        return torch.tanh(self.last(F.relu(self.after(x)) if self.residual else x))


class _Plain(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, side: tuple[int, int]) -> Tensor:
        return F.relu(self.norm(self.conv(F.interpolate(x, size=side))))


class _Up(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.across = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, side: tuple[int, int]) -> Tensor:
        h = self.convs[0](F.interpolate(F.relu(self.norms[0](x)), size=side))
        h = self.convs[1](F.relu(self.norms[1](h)))
        return h + F.interpolate(self.across(x), size=side)


class Discriminator(nn.Module):
    """Images [B, C, H, W], classes int64 [B] or None -> logits [B]."""

    def __init__(self, shape: Sequence[int], width: int, *, classes: int = 0, residual: bool = False) -> None:
        super().__init__()
        channels, height, across = shape
        steps = len(sides_of(height, across)) - 1
        widths = [channels, *(width * min(2**k, 8) for k in range(steps))]
        kind = _Down if residual else _Strided
        self.blocks = nn.ModuleList(kind(a, b, first=not k) for k, (a, b) in enumerate(itertools.pairwise(widths)))
        self.residual = residual
        self.last = nn.Linear(widths[-1], 1)
        self.classes = nn.Embedding(classes, widths[-1]) if classes else None

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = F.relu(x) if self.residual else x
        x = x.sum((2, 3))
        logits = self.last(x)[:, 0]
        if self.classes is not None:
            assert classes is not None
            logits = logits + (self.classes(classes) * x).sum(1)
        return logits


class _Strided(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))), SLOPE)


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.across = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](x if self.first else F.relu(x))
        h = self.convs[1](F.relu(h))
        return _pooled(h) + self.across(_pooled(x))


def _pooled(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
