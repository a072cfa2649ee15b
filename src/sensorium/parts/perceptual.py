"""Perceptual distances: the unreasonable effectiveness of deep features as a perceptual metric (Zhang et al., 2018,
arXiv:1801.03924).

The distance of two images is that of their features in a trained network, normalized over channels at each pixel:
    d(x, y) = sum_l mean_hw sum_c w_lc (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2                        (eq. 1)
LPIPS uses the features of VGG16 after each of its five blocks and weights w learned from human judgments. Without them,
any network with feature maps can be used: w is then 1 and the maps are averaged, a mean of 2 - 2 cos.
Both are frozen: always in evaluation mode, without gradients of their own, but with gradients for the images.
Shapes: B images in -1..1, C channels, H x W pixels, l maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-10  # of lengths, in the authors' code
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for images in -1..1


class Maps(Protocol):
    """A network that gives feature maps."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> list of [B, C_l, H_l, W_l]."""
        ...


class Perceptual(nn.Module):
    """A frozen distance of two batches of images [B, 3, H, W] -> [B]. ``described``: its name in words."""

    described: str

    def freeze(self) -> None:
        """Freeze; to be called when all parameters exist."""
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Perceptual:
        """Stays in evaluation mode."""
        return super().train(False)


class LPIPS(Perceptual):
    """VGG16 and the learned heads; random weights and ones until their files are loaded.

    blocks: channels of the convolutions, one tuple per block between two poolings. ``features`` has torchvision's
    indices. Images must have at least ``smallest`` pixels per side; else ValueError.
    """

    def __init__(self, blocks: Sequence[Sequence[int]] = VGG16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, ends = 3, []
        for i, widths in enumerate(blocks):
            layers += [nn.MaxPool2d(2)] if i else []
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            ends.append(len(layers))
        self.features, self.ends, self.smallest = nn.Sequential(*layers), tuple(ends), 2 ** (len(blocks) - 1)
        self.heads = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in blocks)
        for head in self.heads:
            nn.init.ones_(cast(nn.Conv2d, head).weight)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):  # not in the files: values on the meta device too
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)
        self.described = "LPIPS, random until loaded"
        self.freeze()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Of images in -1..1, after the last ReLU of each block."""
        if min(images.shape[-2:]) < self.smallest:
            raise ValueError(f"LPIPS needs images of at least {self.smallest} pixels, not {list(images.shape[-2:])}")
        x, found = (images - self.get_buffer("shift")) / self.get_buffer("scale"), []
        for i, layer in enumerate(self.features, 1):
            x = layer(x)
            if i in self.ends:
                found.append(x)
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = [cast(nn.Conv2d, head).weight.flatten() for head in self.heads]
        return torch.stack([apart(a, b, w) for a, b, w in zip(self.maps(x), self.maps(y), weights, strict=True)]).sum(0)


class FeatureDistance(Perceptual):
    """The same distance with any network with ``maps``, without heads.

    mean, std: of the images that the network was trained on, in 0..1. described: name of the network. The network
    becomes a part of this module and is frozen: pass a copy of one that is still trained.
    """

    def __init__(
        self, network: Maps, described: str, *, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.described = f"features of {described}"
        self.freeze()

    def maps(self, images: Tensor) -> list[Tensor]:
        """Of images in -1..1."""
        return self.network.maps(((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([apart(a, b) for a, b in zip(self.maps(x), self.maps(y), strict=True)]).mean(0)


def apart(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Maps [B, C, H, W] -> [B]: squared difference of the unit vectors, summed over channels (with ``weight`` [C]),
    mean over pixels. Float32 or better."""
    with torch.autocast(x.device.type, enabled=False):
        x, y = (F.normalize(m.to(torch.promote_types(m.dtype, torch.float32)), dim=1, eps=EPS) for m in (x, y))
        squared = (x - y).square()
        if weight is not None:
            squared = squared * weight.to(squared.dtype).view(-1, 1, 1)
        return squared.sum(1).mean((-2, -1))
