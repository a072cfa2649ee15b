"""Swin Transformer: hierarchical vision transformer using shifted windows (Liu et al., 2021, arXiv:2103.14030).

A transformer with the feature maps of a convolutional network: tokens attend within windows only, every second block
shifts the windows, and between stages 2x2 neighbors are merged into one token. A pair of blocks (eq. 3):
    x = x + WindowAttention(LayerNorm(x))                  parts/attention/window.py; the second one of the pair shifted
    x = x + fc2(gelu(fc1(LayerNorm(x))))
    merging:  x = W LayerNorm([x_00, x_10, x_01, x_11])     4 C channels to 2 C, W without bias
The feature is the mean over the positions of the LayerNorm of the last map.

Any image size: images are zero-padded right and below to whole patches, odd maps to even ones before merging, as in
transformers, and normed maps to whole windows before they are shifted, as in transformers and torchvision (timm shifts
first; torchvision leaves incomplete patches out).
Shapes: B images, H and W of a map, C_i channels of stage i, s_i its stride.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import MaskedEncoder
from sensorium.errors import SensoriumError
from sensorium.parts.attention.window import WindowAttention
from sensorium.parts.block import Mlp, hidden_channels
from sensorium.parts.drop import DropPath
from sensorium.parts.init import fill_

# name -> (blocks per stage, channels of the first stage, which double from stage to stage, largest window). "micro" is for
# a CPU and pictures of 32 pixels: its last stage is one window, where a shifted block would be no other than the first.
SWIN_SIZES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "micro": ((2, 2, 1), 32, 4),
    "tiny": ((2, 2, 6, 2), 96, 7),
    "small": ((2, 2, 18, 2), 96, 7),
    "base": ((2, 2, 18, 2), 128, 7),
    "large": ((2, 2, 18, 2), 192, 7),
}
HEAD = 32  # channels of a head, in all sizes of the papers
MOST = 64  # tokens a side of a window: attention in it is of 64^2 x 64^2 pairs
Init = Literal["normal", "lecun"]


def sizes_for(size: str, image_size: int, sizes: dict[str, tuple[tuple[int, ...], int, int]]) -> dict[str, Any]:
    """The arguments of a named size for images of about ``image_size`` pixels: 4 pixels a patch if the last map is then
    at least 4x4, else 2; windows of the named side, or of one more if only that divides the first map, and no larger than
    the map of their stage. Raises SensoriumError for an unknown size."""
    if size not in sizes:
        near = get_close_matches(size, sizes, 1, 0.3)
        hint = f" did you mean '{near[0]}'?" if near else ""
        raise SensoriumError(f"swin: no size '{size}';{hint} choose one of {', '.join(sizes)}.")
    depths, embed_dim, window = sizes[size]
    patch = 4 if image_size // (4 * 2 ** (len(depths) - 1)) >= 4 else 2
    side = -(-image_size // patch)
    if side % window and side % (window + 1) == 0:
        window += 1
    heads = tuple(max(1, embed_dim // HEAD) * 2**i for i in range(len(depths)))
    numbers = {"depths": depths, "embed_dim": embed_dim, "heads": heads, "patch": patch}
    return numbers | {"windows": clipped(image_size, patch, window, len(depths))} | {
        "init": "lecun" if size == "micro" else "normal"
    }  # fmt: skip


def clipped(image_size: int, patch: int, window: int, stages: int) -> tuple[int, ...]:
    """The window of each stage: no larger than the map of an image of ``image_size`` pixels, as others build it."""
    return tuple(max(1, min(window, -(-image_size // (patch * 2**i)))) for i in range(stages))


def swin(size: str, image_size: int, **numbers: Any) -> Swin:
    """A Swin of a named size, see :func:`sizes_for`. "micro" has initial weights by the size of the layer: with those of
    the paper its branches are almost nothing for as long as a short training lasts.

    size: a key of ``SWIN_SIZES``. numbers: arguments of :class:`Swin` that override those of the name.
    """
    return Swin(**sizes_for(size, image_size, SWIN_SIZES) | numbers)


class ShiftedWindows(nn.Module, MaskedEncoder):
    """What Swin and Swin V2 share: all but their blocks and their merging.

    depths: blocks of each stage. embed_dim: channels of the first stage, which double from stage to stage. heads: of each
    stage. windows: their sides in tokens, of each stage. patch: side of a patch in pixels. mlp_ratio: hidden channels of
    a block as a multiple of its width. qkv_bias: of queries, keys and values. drop_path: rate at the last block, to which
    it rises linearly from 0. init: weights of standard deviation 0.02 as in the papers, or "lecun": one over the root of
    a layer's inputs, which suits narrow networks.
    Attributes: ``dim`` of the features, ``channels`` and ``strides`` of the maps (one entry per stage).
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        embed_dim: int = 96,
        heads: tuple[int, ...] = (3, 6, 12, 24),
        windows: tuple[int, ...] = (7, 7, 7, 7),
        *,
        patch: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        init: Init = "normal",
    ) -> None:
        super().__init__()
        if init not in get_args(Init):
            raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {init!r}")
        if not len(depths) == len(heads) == len(windows) or not depths or min(*depths, *windows) < 1:
            raise ValueError(f"swin: {len(heads)} heads and windows of {windows} for stages of {depths} blocks")
        if max(windows) > MOST:
            raise ValueError(f"swin: windows of {windows}: at most {MOST} tokens a side are supported")
        self.depths, self.heads, self.windows, self.patch = tuple(depths), tuple(heads), tuple(windows), patch
        self.embed_dim, self.mlp_ratio, self.qkv_bias, self.eps = embed_dim, mlp_ratio, qkv_bias, eps
        self.channels = tuple(embed_dim * 2**i for i in range(len(depths)))
        self.strides = tuple(patch * 2**i for i in range(len(depths)))
        self.dim = self.channels[-1]

        rates = iter(drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
        self.stem = nn.Sequential(nn.Conv2d(3, embed_dim, patch, stride=patch), nn.LayerNorm(embed_dim, eps=eps))
        self.stages = nn.ModuleList(
            Stage(
                self.merging(channels // 2) if i else nn.Identity(),
                [self.block(i, self.windows[i] // 2 * (b % 2), next(rates)) for b in range(depths[i])],
            )
            for i, channels in enumerate(self.channels)
        )
        self.norm = nn.LayerNorm(self.dim, eps=eps)
        self._initialize(init)

    def block(self, stage: int, shift: int, drop_path: float) -> nn.Module:
        """A block: [B, H, W, C] -> the same."""
        raise NotImplementedError

    def merging(self, width: int) -> nn.Module:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        raise NotImplementedError

    def _initialize(self, init: Init) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if init == "normal":
                    nn.init.trunc_normal_(module.weight, std=0.02)
                else:
                    fill_(module.weight, "lecun", "truncated")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _stages(self, images: Tensor, mask: Tensor | None = None, token: Tensor | None = None) -> list[Tensor]:
        """[B, 3, H, W] -> each stage's output [B, H_i, W_i, C_i]; a ``token`` takes the place of the patches that a ``mask``,
        bool [B, H_0, W_0], says."""
        images = F.pad(images, (0, -images.shape[-1] % self.patch, 0, -images.shape[-2] % self.patch))
        x = self.stem[1](self.stem[0](images).permute(0, 2, 3, 1))
        if mask is not None and token is not None:
            x = torch.where(mask[..., None], token, x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> each stage's output [B, C_i, ceil(H / s_i), ceil(W / s_i)], finest first, without the last
        norm."""
        return [x.permute(0, 3, 1, 2) for x in self._stages(images)]

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the mean of the normed last map."""
        return self.norm(self._stages(images)[-1]).mean((1, 2))

    def features_and_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] -> [B, dim] and all maps."""
        stages = self._stages(images)
        return self.norm(stages[-1]).mean((1, 2)), [x.permute(0, 3, 1, 2) for x in stages]

    def masked_map(self, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        """[B, 3, H, W], bool [B, H_0, W_0] and a token [..., embed_dim] -> [B, dim, H_i, W_i], the normed last map: the token
        takes the place of masked patches."""
        return self.norm(self._stages(images, mask, token)[-1]).permute(0, 3, 1, 2)

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer: 0 for the patches, then a layer for each block, with the merging that follows it, and
        one for the last norm, as in the authors' fine-tuning (``get_swin_layer`` of their optimizer.py)."""
        place, first = {"stem.": 0, "norm.": sum(self.depths) + 1}, 0
        for s, depth in enumerate(self.depths):
            place[f"stages.{s}.downsample."] = first
            place |= {f"stages.{s}.blocks.{i}.": first + i + 1 for i in range(depth)}
            first += depth
        return {
            name: next(at for head, at in place.items() if name.startswith(head)) for name, _ in self.named_parameters()
        }

    def forward(self, images: Tensor) -> Tensor:
        """The same as ``features``."""
        return self.features(images)


class Swin(ShiftedWindows):
    """A Swin Transformer for any image size; arguments and attributes: :class:`ShiftedWindows`."""

    def block(self, stage: int, shift: int, drop_path: float) -> nn.Module:
        """Pre-norm, with a bias by distance."""
        width, window = self.channels[stage], self.windows[stage]
        attention = WindowAttention(
            width, self.heads[stage], (window, window), (shift, shift), qkv_bias=self.qkv_bias
        )  # fmt: skip
        return Block(width, attention, Mlp(width, hidden_channels(width, self.mlp_ratio)), self.eps, drop_path)

    def merging(self, width: int) -> nn.Module:
        """Norm before the reduction."""
        return Merging(width, self.eps)


class Stage(nn.Module):
    """[B, H, W, C] -> the merged map, and the blocks on it."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample, self.blocks = downsample, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Block(nn.Module):
    """Attention and Mlp, each pre-norm with a residual connection: [B, H, W, width] -> the same."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=eps), attention
        self.norm2, self.mlp = nn.LayerNorm(width, eps=eps), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Merging(nn.Module):
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C] of 2x2 neighbors: norm, then ``reduction``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(neighbors(x)))


def neighbors(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 4 C]: in order of columns, then of rows; odd sides are padded."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
