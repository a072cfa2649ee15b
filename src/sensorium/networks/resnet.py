"""Deep residual learning for image recognition (He, Zhang, Ren, Sun, 2015, arXiv:1512.03385).

Residual blocks y = relu(x + f(x)) keep deep stacks trainable. Stages halve the resolution and double the channels. The
bottleneck has its stride in the 3x3 convolution ("v1.5").

Parameters have torchvision's names, without its classifier ``fc``. Four stems:
    imagenet   7x7 convolution, stride 2, then a 3x3 max-pool, stride 2
    small      3x3 convolution, stride 1, no pool: for images up to about 64 pixels (SimCLR, appendix B.9)
    half       3x3 convolution, stride 2, no pool: a quarter of the work of "small" in the first stage, for a CPU
    patch      one convolution of ``patch`` x ``patch``, stride ``patch``: the cheapest; incomplete patches are zero-padded

The network computes in channels-last memory format whatever that of its input: the results are the same and
convolutions are faster. Weights keep torch's default format, so that they save, load and export as usual.
Shapes: B images, C_i channels of stage i, s_i its stride.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import MapEncoder
from sensorium.errors import SensoriumError

Stem = Literal["imagenet", "small", "half", "patch"]

# name -> (blocks per stage, channels of the first stage, bottleneck). "micro" is for a CPU: three stages from half the
# resolution process three to four times as many images per second as four full ones, which matters more for short budgets.
RESNET_SIZES: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "micro": ((1, 1, 1), 64, False),
    "10": ((1, 1, 1, 1), 64, False),
    "18": ((2, 2, 2, 2), 64, False),
    "34": ((3, 4, 6, 3), 64, False),
    "50": ((3, 4, 6, 3), 64, True),
    "101": ((3, 4, 23, 3), 64, True),
}
SMALL_IMAGE = 64


def resnet(size: str, image_size: int, **numbers: Any) -> ResNet:
    """A ResNet of a named size for images of about ``image_size`` pixels, which picks the stem (small up to 64).

    size: a key of ``RESNET_SIZES``. numbers: arguments of :class:`ResNet` that override those of the name.
    Raises SensoriumError for an unknown size.
    """
    if size not in RESNET_SIZES:
        near = get_close_matches(size, RESNET_SIZES, 1, 0.3)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise SensoriumError(f"resnet: no size '{size}';{hint} choose one of {', '.join(RESNET_SIZES)}.")
    layers, width, bottleneck = RESNET_SIZES[size]
    stem = "small" if image_size <= SMALL_IMAGE else "imagenet"
    if size == "micro" and 24 <= image_size <= SMALL_IMAGE:
        stem = "half"
    return ResNet(**{"layers": layers, "width": width, "bottleneck": bottleneck, "stem": stem, **numbers})


class ResNet(nn.Module, MapEncoder):
    """A residual network for any image size.

    layers: blocks of each stage. width: channels of each stage's 3x3 convolutions, or the first's, which doubles from
    stage to stage. stem_width: channels of the stem (by default the first stage's). patch: side of the "patch" stem,
    unused by the others. first_stride: of the first stage. early_stride: bottlenecks have the stride in their first 1x1
    convolution, as in the paper ("v1"). zero_init: initialize every residual branch to zero (Goyal et al., 2017,
    arXiv:1706.02677).
    Attributes: ``dim`` of the features, ``channels`` and ``strides`` of the maps (one entry per stage).
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (2, 2, 2, 2),
        width: int | tuple[int, ...] = 64,
        *,
        bottleneck: bool = False,
        stem: Stem = "imagenet",
        stem_width: int | None = None,
        patch: int = 4,
        first_stride: int = 1,
        early_stride: bool = False,
        zero_init: bool = False,
    ):
        super().__init__()
        if stem not in get_args(Stem):
            raise SensoriumError(f"resnet: no stem '{stem}'; choose one of {', '.join(get_args(Stem))}.")
        widths = tuple(width * 2**i for i in range(len(layers))) if isinstance(width, int) else width
        if len(widths) != len(layers):
            raise ValueError(f"resnet: {len(widths)} widths for {len(layers)} stages")
        self.stem, self.early_stride = stem, early_stride
        kernel, stride, padding = {
            "imagenet": (7, 2, 3),
            "small": (3, 1, 1),
            "half": (3, 2, 1),
            "patch": (patch, patch, 0),
        }[stem]
        channels = stem_width or widths[0]
        self.conv1 = nn.Conv2d(3, channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()

        block = Bottleneck if bottleneck else BasicBlock
        options = {"early_stride": early_stride} if bottleneck else {}
        for i, blocks in enumerate(layers):
            stage = []
            for j in range(blocks):
                step = 1 if j > 0 else 2 if i > 0 else first_stride
                stage.append(block(channels, widths[i], stride=step, **options))
                channels = stage[-1].channels
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.stages = tuple(f"layer{i + 1}" for i in range(len(layers)))
        self.dim = channels
        self.channels = tuple(w * block.expansion for w in widths)
        start = stride * (2 if stem == "imagenet" else 1) * first_stride
        self.strides = tuple(start * 2**i for i in range(len(layers)))
        self._initialize(zero_init)
        # In the format of the maps, or every step would convert weights and gradients.
        self.to(memory_format=torch.channels_last)

    def _initialize(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)
                elif isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> each stage's output [B, C_i, ceil(H / s_i), ceil(W / s_i)], finest first."""
        x = images.contiguous(memory_format=torch.channels_last)
        if self.stem == "patch":
            patch = self.conv1.stride[0]
            x = F.pad(x, (0, -x.shape[-1] % patch, 0, -x.shape[-2] % patch))
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for name in self.stages:
            x = self.get_submodule(name)(x)
            outputs.append(x)
        return outputs

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: global average pooling of the last map."""
        return self.maps(images)[-1].mean((2, 3))

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, dim] and the last map."""
        last = self.maps(images)[-1]
        return last.mean((2, 3)), last

    def features_and_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] -> [B, dim] and all maps."""
        maps = self.maps(images)
        return maps[-1].mean((2, 3)), maps

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer: 0 for the stem, then the stages."""
        depth = {stage: i + 1 for i, stage in enumerate(self.stages)}
        return {name: depth.get(name.partition(".")[0], 0) for name, _ in self.named_parameters()}

    def forward(self, images: Tensor) -> Tensor:
        """The same as ``features``."""
        return self.features(images)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: [B, inputs, H, W] -> [B, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, inputs: int, width: int, *, stride: int = 1):
        super().__init__()
        self.channels = width
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, self.channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y.add_(x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions: [B, inputs, H, W] -> [B, 4 width, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, inputs: int, width: int, *, stride: int = 1, early_stride: bool = False):
        super().__init__()
        self.channels = width * self.expansion
        self.conv1 = _conv(inputs, width, 1, stride if early_stride else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, 1 if early_stride else stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, self.channels, 1)
        self.bn3 = nn.BatchNorm2d(self.channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, self.channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y.add_(x if self.downsample is None else self.downsample(x)))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut's projection of a block's input to the shape of its output, if they differ."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
