"""The network of airbench (Jordan, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498, section 3), which
learns more from small pictures in minutes than a residual network of the same cost.

    x_0 = gelu([w, -w] + b)          w: a frozen 2x2 convolution whose outputs are decorrelated and of variance 1
    x_i = two 3x3 convolutions with batch norm and GELU, a 2x2 max-pool after the first one         3 groups
    y   = the maximum of x_3 over all positions
The first min(inputs, outputs) filters of a convolution begin as the identity (section 3.2). In the paper the frozen filters are the
eigenvectors of the training pictures' 2x2 patches; here they are those of natural pictures, which hardly depend on the data: sums and
differences of the four pixels (Haar) of brightness and two opponent colors, scaled by a batch norm without parameters. What the training pictures do not have, such as color where all are gray, is left
out afterward: it would be scaled by a deviation of 0, and a gray level's difference between red and blue would drown the picture.

A picture of H pixels has maps of (H - 1) // s. Shapes: B images, C_i channels of group i, s_i its stride.
"""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import MapEncoder
from sensorium.errors import SensoriumError

# name -> channels of the groups: "94" as in the paper, "micro" for a CPU
AIRBENCH_SIZES: dict[str, tuple[int, ...]] = {"micro": (32, 128, 256), "94": (64, 256, 256)}
HAAR = ((1, 1, 1, 1), (1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1))  # of the pixels of a patch, row by row
ABSENT = (
    1e-6  # share of the largest variance, below which training pictures do not have something: a gray level is more
)
OPPONENT = ((1, 1, 1), (1, 0, -1), (1, -2, 1))  # of red, green and blue


def airbench(size: str) -> Airbench:
    """A network of a named size (``AIRBENCH_SIZES``). Raises SensoriumError for an unknown one."""
    if size not in AIRBENCH_SIZES:
        near = get_close_matches(size, AIRBENCH_SIZES, 1, 0.3)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise SensoriumError(f"airbench: no size '{size}';{hint} choose one of {', '.join(AIRBENCH_SIZES)}.")
    return Airbench(AIRBENCH_SIZES[size])


class Airbench(nn.Module, MapEncoder):
    """A network for small pictures of any size; those below 2^n + 1 pixels, for n groups, are zero-padded to it, right and
    below. widths: channels of each group. Attributes: ``dim`` of the features, ``channels`` and ``strides`` of the maps."""

    def __init__(self, widths: tuple[int, ...] = (64, 256, 256)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"airbench: widths must be at least one positive number, got {widths}")
        self.widths = tuple(widths)
        self.whiten = Whiten()
        inputs = (self.whiten.channels, *widths)
        self.groups = nn.ModuleList(Group(a, b) for a, b in zip(inputs, widths, strict=False))
        self.dim, self.channels = widths[-1], self.widths
        self.strides = tuple(2 ** (i + 1) for i in range(len(widths)))
        self.to(memory_format=torch.channels_last)  # in the format of the maps, or every step would convert weights

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> each group's output [B, C_i, (H - 1) // s_i, (W - 1) // s_i], finest first."""
        x, least = images.contiguous(memory_format=torch.channels_last), self.strides[-1] + 1
        x = F.pad(x, (0, max(0, least - x.shape[-1]), 0, max(0, least - x.shape[-2])))
        x = self.whiten(x)
        outputs = []
        for group in self.groups:
            x = group(x)
            outputs.append(x)
        return outputs

    def rows(self, side: int) -> tuple[int, ...]:
        """Rows of each map of an image of ``side`` pixels: the whitening takes one, the others are halved, rounded down."""
        return tuple((max(side, self.strides[-1] + 1) - 1) // stride for stride in self.strides)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the maximum over the positions of the last map."""
        return self.maps(images)[-1].amax((2, 3))

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, dim] and the last map."""
        last = self.maps(images)[-1]
        return last.amax((2, 3)), last

    def features_and_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] -> [B, dim] and all maps."""
        maps = self.maps(images)
        return maps[-1].amax((2, 3)), maps

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer: 0 for the biases of the first layer, then the groups."""
        return {
            name: int(name.split(".")[1]) + 1 if name.startswith("groups.") else 0
            for name, _ in self.named_parameters()
        }

    def forward(self, images: Tensor) -> Tensor:
        """The same as ``features``."""
        return self.features(images)


class Whiten(nn.Module):
    """[B, 3, H, W] -> [B, 24, H - 1, W - 1], not negative for one of each two: decorrelated patches and their negatives."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        haar, colors = torch.tensor(HAAR, dtype=torch.float32) / 2, torch.tensor(OPPONENT, dtype=torch.float32)
        filters = torch.einsum("hp,kc->hkcp", haar, F.normalize(colors, dim=1)).reshape(-1, 3, 2, 2)
        self.register_buffer("filters", filters.contiguous())
        self.norm = nn.BatchNorm2d(len(filters), affine=False)
        self.channels = 2 * len(filters)
        self.bias = nn.Parameter(torch.zeros(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.conv2d(x, self.filters.to(x.dtype)))
        if not self.training:
            variance = self.norm.running_var
            assert variance is not None
            x = x * (variance > ABSENT * variance.amax(0)).to(x.dtype)[:, None, None]
        return F.gelu(torch.cat([x, -x], dim=1) + self.bias[:, None, None])


class Group(nn.Module):
    """[B, inputs, H, W] -> [B, width, H // 2, W // 2]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = identity(inputs, width), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = identity(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def identity(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters are the identity, the others random."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[: min(inputs, outputs)])
    return conv
