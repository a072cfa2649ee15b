"""A ConvNet for the 2020s (Liu et al., 2022, arXiv:2201.03545), and ConvNeXt V2 (Woo et al., 2023, arXiv:2301.00808).

A ResNet modernized step by step toward a vision transformer: a stem of patches, depthwise 7x7 convolutions that mix
positions, and an inverted bottleneck of two linear layers that mixes channels. A block, on x of C channels:
    y = fc2(gelu(fc1(LayerNorm(dwconv(x)))))                    4 C hidden channels         (figure 4)
    x = x + gamma y                                             LayerScale, of the first paper
V2 has global response normalization of the hidden channels h = gelu(...) before fc2, and no LayerScale:
    g_c = |h_c|, over all positions;   n_c = g_c / mean_c g_c                               (eqs. 1, 2)
    grn(h)_c = weight_c h_c n_c + bias_c + h_c                                              (algorithm 1)
Before each stage but the first LayerNorm and a 2x2 convolution of stride 2. The feature is the LayerNorm of the mean
over the positions of the last map; with ``norm_first`` the mean of the normed positions (timm's ``head_norm_first``).

The network computes in [B, H, W, C], so that norms and linear layers see channels last. Incomplete patches at the right
and lower edge are left out by every convolution, as in others' code.
Shapes: B images, H and W of a map, C_i channels of stage i, s_i its stride.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import MapEncoder
from sensorium.errors import SensoriumError
from sensorium.parts.block import LayerScale
from sensorium.parts.drop import DropPath
from sensorium.parts.init import fill_

Sizes = dict[str, tuple[tuple[int, ...], int]]

# name -> (blocks per stage, channels of the first stage, which double from stage to stage). "micro" is for a CPU: so
# small that it makes several hundred steps a minute, which these networks need before they learn; the others are those of
# the papers.
_MICRO = {"micro": ((1, 1, 1), 32)}
CONVNEXT_SIZES: Sizes = _MICRO | {
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "xlarge": ((3, 3, 27, 3), 256),
}
CONVNEXTV2_SIZES: Sizes = _MICRO | {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "huge": ((3, 3, 27, 3), 352),
}
Init = Literal["normal", "lecun"]
LAYER_SCALE = 1e-6
TINY = 1e-30  # the least squared norm of a channel
GROUP = 3  # blocks that form one layer for layer-wise learning rate decay


def convnext(size: str, image_size: int, *, grn: bool = False, **numbers: Any) -> ConvNeXt:
    """A ConvNeXt, or with ``grn`` a ConvNeXt V2, of a named size for images of about ``image_size`` pixels, which picks
    the stem's patch: 4 pixels if the last map is then at least 2x2, else 2.

    "micro" has initial weights by the size of the layer, and a LayerScale that begins at 1: with those of the papers,
    0.02 and 1e-6, its branches are nothing for as long as a short training lasts.

    size: a key of ``CONVNEXT_SIZES`` or ``CONVNEXTV2_SIZES``. numbers: arguments of :class:`ConvNeXt` that override those
    of the name. Raises SensoriumError for an unknown size.
    """
    sizes = CONVNEXTV2_SIZES if grn else CONVNEXT_SIZES
    if size not in sizes:
        near = get_close_matches(size, sizes, 1, 0.3)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise SensoriumError(f"convnext: no size '{size}';{hint} choose one of {', '.join(sizes)}.")
    depths, width = sizes[size]
    usual: dict[str, Any] = {"depths": depths, "widths": tuple(width * 2**i for i in range(len(depths))), "grn": grn}
    usual["patch"] = 4 if image_size // (4 * 2 ** (len(depths) - 1)) >= 2 else 2
    usual["layer_scale"] = 0.0 if grn else 1.0 if size == "micro" else LAYER_SCALE
    usual["init"] = "lecun" if size == "micro" else "normal"
    return ConvNeXt(**usual | numbers)


class ConvNeXt(nn.Module, MapEncoder):
    """A ConvNeXt for any image size; images smaller than the last stride are zero-padded to it, right and below.

    depths: blocks of each stage. widths: channels of each stage. patch: side of the stem's patches in pixels. grn: global
    response normalization in every block. layer_scale: the initial factor of every block's branch, 0 for no LayerScale.
    norm_first: the last norm is before pooling. eps: of the norms; pool_eps: of the last one, if it is another.
    drop_path: rate at the last block, to which it rises linearly from 0. init: weights of standard deviation 0.02 as in
    the papers, or "lecun": one over the root of a layer's inputs, which suits narrow networks.
    Attributes: ``dim`` of the features, ``channels`` and ``strides`` of the maps (one entry per stage).
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        widths: tuple[int, ...] = (96, 192, 384, 768),
        *,
        patch: int = 4,
        grn: bool = False,
        layer_scale: float = LAYER_SCALE,
        norm_first: bool = False,
        eps: float = 1e-6,
        pool_eps: float | None = None,
        drop_path: float = 0.0,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {init!r}")
        if len(widths) != len(depths) or not depths or min(depths) < 1:
            raise ValueError(f"convnext: {len(widths)} widths for stages of {depths} blocks")
        self.depths, self.channels, self.patch = tuple(depths), tuple(widths), patch
        self.grn, self.layer_scale, self.norm_first = grn, layer_scale, norm_first
        self.eps, self.pool_eps = eps, eps if pool_eps is None else pool_eps
        self.dim = widths[-1]
        self.strides = tuple(patch * 2**i for i in range(len(depths)))

        total = sum(depths)
        rates = iter([drop_path * i / max(1, total - 1) for i in range(total)])
        self.stem = nn.Sequential(Convolution(3, widths[0], patch, stride=patch), nn.LayerNorm(widths[0], eps=eps))
        self.stages = nn.ModuleList()
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = [Block(width, grn, layer_scale, eps, next(rates)) for _ in range(depth)]
            self.stages.append(Stage(widths[i - 1] if i else None, width, blocks, eps))
        last = nn.LayerNorm(self.dim, eps=self.pool_eps)
        self.norm_pre, self.norm = (last, nn.Identity()) if norm_first else (nn.Identity(), last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if init == "normal":
                    nn.init.trunc_normal_(module.weight, std=0.02)
                else:
                    fill_(module.weight, "lecun", "truncated")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        # In the format of the maps, or every step would convert weights and gradients.
        self.to(memory_format=torch.channels_last)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> each stage's output [B, H_i, W_i, C_i]."""
        least, (height, width) = self.strides[-1], images.shape[-2:]
        if height < least or width < least:
            images = F.pad(images, (0, max(0, least - width), 0, max(0, least - height)))
        x = self.stem(images.permute(0, 2, 3, 1))
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> each stage's output [B, C_i, H // s_i, W // s_i], finest first, without the last norm."""
        return [x.permute(0, 3, 1, 2) for x in self._stages(images)]

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the last map, pooled and normed."""
        return self._pooled(self._stages(images)[-1])

    def features_and_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] -> [B, dim] and all maps."""
        stages = self._stages(images)
        return self._pooled(stages[-1]), [x.permute(0, 3, 1, 2) for x in stages]

    def _pooled(self, last: Tensor) -> Tensor:
        return self.norm(self.norm_pre(last).mean((1, 2)))

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer: 0 for the stem, then a layer for every three blocks of a stage (the 12 layers of the
        paper's fine-tuning, appendix A.2), the first with the stage's downsampling; the last norm is in the last one."""
        first, layers = 1, {}
        for s, depth in enumerate(self.depths):
            layers |= {f"stages.{s}.blocks.{i}.": first + i // GROUP for i in range(depth)}
            layers |= {f"stages.{s}.downsample.": first}
            first += -(-depth // GROUP)
        place = {"stem.": 0, "norm": first - 1} | layers
        return {
            name: next(at for head, at in place.items() if name.startswith(head)) for name, _ in self.named_parameters()
        }

    def forward(self, images: Tensor) -> Tensor:
        """The same as ``features``."""
        return self.features(images)


class Stage(nn.Module):
    """[B, H, W, inputs] -> [B, H // 2, W // 2, width] and blocks; inputs None: the first stage, without downsampling."""

    def __init__(self, inputs: int | None, width: int, blocks: list[Block], eps: float) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if inputs is not None:
            self.downsample = nn.Sequential(nn.LayerNorm(inputs, eps=eps), Convolution(inputs, width, 2, stride=2))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Block(nn.Module):
    """One block: [B, H, W, width] -> the same. layer_scale: the initial factor of the branch, 0 for no LayerScale."""

    def __init__(self, width: int, grn: bool, layer_scale: float, eps: float, drop_path: float) -> None:
        super().__init__()
        self.dwconv = Convolution(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, 4 * width)
        self.grn = GlobalResponseNorm(4 * width) if grn else nn.Identity()
        self.fc2 = nn.Linear(4 * width, width)
        self.ls = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grn(F.gelu(self.fc1(self.norm(self.dwconv(x)))))
        return x + self.drop_path(self.ls(self.fc2(y)))


class GlobalResponseNorm(nn.Module):
    """Channels compete by their norm over all positions of an image (Woo et al., 2023, arXiv:2301.00808, section 3.3):
    [B, H, W, D] -> the same; initially the identity."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Norms are computed in float32 or better."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # A vector_norm over dimensions before the last is ten times slower; at 0 the root alone has no gradient.
        length = wide.square().sum((1, 2), keepdim=True).clamp_min(TINY).sqrt()
        relative = length / (length.mean(dim=-1, keepdim=True) + self.eps)
        return x * (1 + self.weight * relative).to(x.dtype) + self.bias.to(x.dtype)


class Convolution(nn.Conv2d):
    """A convolution of [B, H, W, C]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
