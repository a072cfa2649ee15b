"""The convolutional encoder and decoder of VQGAN: taming transformers for high-resolution image synthesis (Esser, Rombach &
Ommer, 2020, arXiv:2012.09841, table 7), which latent diffusion's autoencoders use too.

It is the U-Net of DDPM (arXiv:2006.11239) without time and without skip connections: residual blocks at each
resolution, which the encoder halves and the decoder doubles by convolutions.
    y = shortcut(x) + conv2(dropout(silu(norm2(conv1(silu(norm1(x)))))))          a residual block
    y = x + W_o softmax(q k / sqrt(C)) v,   q, k, v of norm(x)                    attention over all positions, one head
    down: conv of stride 2, zero padding below and on the right;   up: nearest-neighbor upsampling by 2, then conv
    encoder: conv_in, down_0 ... down_L, mid, norm_out, silu, conv_out;       decoder: conv_in, mid, up_L ... up_0, ...
norm is GroupNorm, and mid a block, attention, a block. Parameters are named as in the authors' code.
Shapes: B images, C channels, H x W pixels, f = 2^(levels - 1) downsampling factor, Z latent channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.parts.attention.sdpa import sdpa

EPS = 1e-6


class Size(NamedTuple):
    """width: of the first level. mults: width of each level as a multiple. layers: blocks per level. latent: Z. groups:
    of the norms. attend: sides in pixels of the levels with attention, for the paper's images of 256."""

    width: int
    mults: tuple[int, ...]
    layers: int
    latent: int
    groups: int
    attend: int


# "base" is the paper's for 256 pixels; "micro" and "small" are for a CPU and images of about 28 to 64 pixels.
AUTOENCODER_SIZES: dict[str, Size] = {
    "micro": Size(16, (1, 2, 4), 1, 64, 4, 0),
    "small": Size(32, (1, 2, 4), 2, 128, 8, 0),
    "base": Size(128, (1, 1, 2, 2, 4), 2, 256, 32, 16),
}


def autoencoder(size: str, image_size: int, *, channels: int = 3, dropout: float = 0.0) -> tuple[Encoder, Decoder]:
    """An encoder and its decoder by name (see ``AUTOENCODER_SIZES``) for images of ``image_size`` pixels.

    Raises ``SensoriumError`` for an unknown name, or if the downsampling factor does not divide the image size.
    """
    if size not in AUTOENCODER_SIZES:
        raise SensoriumError(f"no autoencoder is called {size!r}: choose {', '.join(AUTOENCODER_SIZES)}.")
    return coders(size, AUTOENCODER_SIZES[size], image_size, channels=channels, dropout=dropout)


def coders(
    name: str, size: Size, image_size: int, *, channels: int = 3, dropout: float = 0.0, each: int = 1
) -> tuple[Encoder, Decoder]:
    """An encoder and its decoder of a ``size``. each: numbers that the encoder gives of a latent channel.

    Raises ``SensoriumError`` if the downsampling factor does not divide the image size.
    """
    width, mults, layers, latent, groups, attend = size
    factor = 2 ** (len(mults) - 1)
    if image_size % factor:
        near = max(1, round(image_size / factor)) * factor
        raise SensoriumError(
            f"autoencoder {name!r} needs images whose side is a multiple of {factor} pixels, not {image_size}: take {near}."
        )
    attention = tuple(image_size // 2**level == attend for level in range(len(mults)))
    numbers = {"layers": layers, "attention": attention, "groups": groups, "dropout": dropout}
    encoder = Encoder(width, mults, latent=each * latent, channels=channels, **numbers)
    return encoder, Decoder(width, mults, latent=latent, channels=channels, **numbers)


class Coder(nn.Module, ABC):
    """The arguments that an encoder and its decoder share.

    width: channels of the first level. mults: channels of each level, in widths, the finest first. latent: Z. layers:
    blocks per level, of which a decoder has one more. attention: levels with attention after each block; none by default.
    groups: of the norms, fewer if they don't divide the channels. middle_attention: between the two blocks in the middle.
    """

    def __init__(
        self,
        width: int,
        mults: Sequence[int],
        *,
        latent: int,
        layers: int = 2,
        attention: Sequence[bool] = (),
        channels: int = 3,
        groups: int = 32,
        dropout: float = 0.0,
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        attention = tuple(attention) or (False,) * len(mults)
        if not mults or len(attention) != len(mults) or layers < 1:
            raise ValueError(f"{len(attention)} attentions for {len(mults)} levels, {layers} blocks a level")
        self.width, self.mults, self.layers, self.attention = width, tuple(mults), layers, attention
        self.channels, self.latent, self.groups, self.factor = channels, latent, groups, 2 ** (len(mults) - 1)
        self._build(dropout, middle_attention)

    @abstractmethod
    def _build(self, dropout: float, middle_attention: bool) -> None:
        """Build the modules, in the order of the forward pass."""


class Encoder(Coder):
    """Images [B, channels, H, W] -> [B, latent, H / f, W / f]."""

    def _build(self, dropout: float, middle_attention: bool) -> None:
        self.conv_in = nn.Conv2d(self.channels, self.width, 3, padding=1)
        self.down, inputs = nn.ModuleList(), self.width
        for i, mult in enumerate(self.mults):
            outputs = self.width * mult
            level = Level(inputs, outputs, self.layers, self.attention[i], self.groups, dropout)
            if i < len(self.mults) - 1:
                level.downsample = Downsample(outputs)
            self.down.append(level)
            inputs = outputs
        self.mid = Middle(inputs, self.groups, dropout, middle_attention)
        self.norm_out = group_norm(inputs, self.groups)
        self.conv_out = nn.Conv2d(inputs, self.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in cast("list[Level]", self.down):
            x = level(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(Coder):
    """[B, latent, h, w] -> images [B, channels, h f, w f]."""

    def _build(self, dropout: float, middle_attention: bool) -> None:
        inputs = self.width * self.mults[-1]
        self.conv_in = nn.Conv2d(self.latent, inputs, 3, padding=1)
        self.mid = Middle(inputs, self.groups, dropout, middle_attention)
        levels: list[Level] = []
        for i in reversed(range(len(self.mults))):
            outputs = self.width * self.mults[i]
            level = Level(inputs, outputs, self.layers + 1, self.attention[i], self.groups, dropout)
            if i > 0:
                level.upsample = Upsample(outputs)
            levels.append(level)
            inputs = outputs
        self.up = nn.ModuleList(reversed(levels))  # the finest first, as on the way down
        self.norm_out = group_norm(inputs, self.groups)
        self.conv_out = nn.Conv2d(inputs, self.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(cast("list[Level]", list(self.up))):
            x = level(x)
            if level.upsample is not None:
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """The blocks of one resolution, with or without attention after each. [B, inputs, H, W] -> [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, layers: int, attend: bool, groups: int, dropout: float) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * (layers - 1)
        self.block = nn.ModuleList(ResnetBlock(n, outputs, groups, dropout) for n in widths)
        self.attn = nn.ModuleList(PlaceAttention(outputs, groups) for _ in widths if attend)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    """A block, attention over all positions, a block. [B, C, H, W] -> the same."""

    def __init__(self, width: int, groups: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups, dropout)
        self.attn_1 = PlaceAttention(width, groups) if attend else nn.Identity()
        self.block_2 = ResnetBlock(width, width, groups, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResnetBlock(nn.Module):
    """A residual block of two normalized convolutions. [B, inputs, H, W] -> [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class PlaceAttention(nn.Module):
    """Residual self-attention of one head over all positions. [B, C, H, W] -> the same."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))  # [B, H W, C]
        y = sdpa(q, k, v).transpose(1, 2)
        return x + self.proj_out(y.unflatten(-1, x.shape[-2:]))


class Downsample(nn.Module):
    """[B, C, H, W] -> [B, C, H / 2, W / 2]. Zero padding below and on the right only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """[B, C, H, W] -> [B, C, 2 H, 2 W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(width: int, groups: int) -> nn.GroupNorm:
    """GroupNorm with the largest divisor of ``groups`` that also divides ``width``."""
    return nn.GroupNorm(math.gcd(width, groups), width, eps=EPS)
