"""The U-Net of DDPM: denoising diffusion probabilistic models (Ho, Jain & Abbeel, 2020, arXiv:2006.11239, appendix B).

An encoder of decreasing and a decoder of increasing resolution with skip connections. Time conditions each block:
    e = W2 silu(W1 sinusoids(t)) + embedding(label)
    h = conv1(silu(norm1(x))) + W silu(e),    y = shortcut(x) + conv2(dropout(silu(norm2(h))))          a residual block
    y = x + W_o attention(norm(x))            over all positions, at the chosen resolutions
norm is GroupNorm. Downsampling is a convolution of stride 2; upsampling is nearest-neighbor and a convolution.
conv2, W_o and the last convolution are initialized to zero, so that every block starts as the identity.

The defaults of :class:`UNet` are those of google/ddpm-cifar10-32; the options cover the differences between published
networks of this kind.
Shapes: B images, C channels, T time channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import VelocityNet
from sensorium.errors import SensoriumError
from sensorium.parts.attention.sdpa import sdpa

# name: (widths, blocks per resolution, groups of the norms, side in pixels of maps with attention). "base" and
# "large" are the paper's for CIFAR-10 and for 256 pixels; "micro" is for a CPU and images of about 28 to 32 pixels.
UNET_SIZES: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "micro": ((16, 32, 64), 1, 8, 8),
    "small": ((64, 128, 128), 2, 32, 16),
    "base": ((128, 256, 256, 256), 2, 32, 16),
    "large": ((128, 128, 256, 256, 512, 512), 2, 32, 16),
}


def unet(size: str, image_size: int, *, attend: int | None = None, **numbers) -> UNet:
    """A U-Net by name (see ``UNET_SIZES``) for images of ``image_size`` pixels.

    attend: attention at maps whose side is at most this and more than half of it; 0: in the middle only.
    ``numbers`` are :class:`UNet`'s own keyword arguments. Raises ``SensoriumError`` for an unknown name.
    """
    if size not in UNET_SIZES:
        raise SensoriumError(f"no U-Net is called {size!r}: choose {', '.join(UNET_SIZES)}.")
    widths, layers, groups, usual = UNET_SIZES[size]
    attend = usual if attend is None else attend
    sides = [math.ceil(image_size / 2**i) for i in range(len(widths))]
    attention = tuple(attend / 2 < side <= attend for side in sides)
    return UNet(**{"widths": widths, "layers": layers, "groups": groups, "attention": attention, **numbers})


class UNet(nn.Module, VelocityNet):
    """``net(x, t, condition)``: what a diffusion or a flow learns. Images of any size that is at least 1 pixel at the
    lowest resolution.

    channels: of the images; out_channels: of the output (the same). widths: channels of each resolution, the finest
    first. layers: residual blocks of each in the encoder (one more in the decoder). attention: resolutions with
    attention, besides the middle. labels: rows of the label embedding, 0 for none. head_dim: channels per attention
    head (by default one head). groups, eps: of GroupNorm. pad_after: downsampling pads right and below only, as
    TensorFlow does, instead of all sides. cos_first, freq_shift: order and spacing of the sinusoids, see
    :func:`sinusoids`.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        channels: int = 3,
        out_channels: int | None = None,
        layers: int = 2,
        attention: tuple[bool, ...] = (),
        middle_attention: bool = True,
        labels: int = 0,
        head_dim: int | None = None,
        groups: int = 32,
        eps: float = 1e-6,
        dropout: float = 0.0,
        pad_after: bool = True,
        cos_first: bool = False,
        freq_shift: float = 1.0,
    ) -> None:
        super().__init__()
        attention = attention or (False,) * len(widths)
        if len(attention) != len(widths) or layers < 1:
            raise ValueError(f"{len(attention)} attentions for {len(widths)} widths, {layers} layers")
        self.channels, self.widths, self.layers, self.attention = channels, tuple(widths), layers, tuple(attention)
        self.out_channels, self.middle_attention = out_channels or channels, middle_attention
        self.labels, self.head_dim, self.groups, self.eps = labels, head_dim, groups, eps
        self.dropout, self.pad_after, self.cos_first, self.freq_shift = dropout, pad_after, cos_first, freq_shift
        time_width = 4 * widths[0]

        def level(inputs: list[int], outputs: int, attentions: int, resample: nn.Conv2d | None) -> Level:
            blocks = [ResidualBlock(n, outputs, time_width, groups, eps, dropout) for n in inputs]
            attns = [Attention(outputs, head_dim or outputs, groups, eps) for _ in range(attentions)]
            return Level(blocks, attns, resample)

        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embed = nn.Sequential(nn.Linear(widths[0], time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.class_embed = nn.Embedding(labels, time_width) if labels else None
        last, skips = len(widths) - 1, [widths[0]]

        self.down, width = nn.ModuleList(), widths[0]
        for i, outputs in enumerate(widths):
            inputs = [width] + [outputs] * (layers - 1)
            shrink = nn.Conv2d(outputs, outputs, 3, 2, 0 if pad_after else 1) if i < last else None
            self.down.append(level(inputs, outputs, layers * attention[i], shrink))
            skips += [outputs] * (layers + (i < last))
            width = outputs

        self.middle = level([width, width], width, int(middle_attention), None)

        self.up = nn.ModuleList()
        for i, outputs in reversed(list(enumerate(widths))):
            inputs = [n + skips.pop() for n in [width] + [outputs] * layers]
            grow = nn.Conv2d(outputs, outputs, 3, padding=1) if i > 0 else None
            self.up.append(level(inputs, outputs, (layers + 1) * attention[i], grow))
            width = outputs

        self.norm_out = nn.GroupNorm(groups, width, eps=eps)
        self.conv_out = nn.Conv2d(width, self.out_channels, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        zero = {id(self.conv_out)}
        zero |= {id(m.conv2) for m in self.modules() if isinstance(m, ResidualBlock)}
        zero |= {id(m.proj) for m in self.modules() if isinstance(m, Attention)}
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                (nn.init.zeros_ if id(module) in zero else nn.init.xavier_uniform_)(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The output at x, t, in the network's own scale of time: as ``forward``, for solvers of a published
        network."""
        return self(x, t, condition)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] (0 to about 1000, fractions too), condition int64 [B] -> [B, out_channels, H, W]."""
        e = self._embed(t, condition, x.dtype)
        h = self.conv_in(x)
        skips = [h]
        for level in cast("list[Level]", self.down):
            for i in range(len(level.blocks)):
                h = level.step(i, h, e)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(F.pad(h, (0, 1, 0, 1)) if self.pad_after else h)
                skips.append(h)

        first, second = self.middle.blocks
        h = first(h, e)
        for attention in self.middle.attns:
            h = attention(h)
        h = second(h, e)

        for level in cast("list[Level]", self.up):
            for i in range(len(level.blocks)):
                h = level.step(i, torch.cat([h, skips.pop()], dim=1), e)
            if level.resample is not None:
                h = level.resample(F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))

    def _embed(self, t: Tensor, condition: Tensor | None, dtype: torch.dtype) -> Tensor:
        """e [B, T]."""
        waves = sinusoids(t, self.widths[0], cos_first=self.cos_first, freq_shift=self.freq_shift)
        e = self.time_embed(waves.to(dtype))
        if (self.class_embed is None) != (condition is None):
            raise ValueError(f"this U-Net has {self.labels} labels: condition {'needed' if self.labels else 'unknown'}")
        return e if self.class_embed is None else e + self.class_embed(condition)


class Level(nn.Module):
    """One resolution: blocks, with or without attention after each, and the down- or upsampling."""

    def __init__(self, blocks: Sequence[ResidualBlock], attns: Sequence[nn.Module], resample: nn.Conv2d | None) -> None:
        super().__init__()
        self.blocks, self.attns, self.resample = nn.ModuleList(blocks), nn.ModuleList(attns), resample

    def step(self, i: int, h: Tensor, e: Tensor, *given: Any) -> Tensor:
        """The i-th block and the attention after it, to which more than the map may be ``given``. [B, C, H, W] -> [B, C',
        H, W]."""
        h = self.blocks[i](h, e)
        return self.attns[i](h, *given) if len(self.attns) else h


class ResidualBlock(nn.Module):
    """A residual block of two normalized convolutions with the time added in between. [B, inputs, H, W] -> [B, outputs,
    H, W]."""

    def __init__(self, inputs: int, outputs: int, time_width: int, groups: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_width, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut: Callable[[Tensor], Tensor] | None = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(e))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nn.Module):
    """Residual self-attention over all positions. [B, C, H, W] -> the same."""

    def __init__(self, width: int, head_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        if width % head_dim:
            raise ValueError(f"head_dim {head_dim} must divide the width {width}")
        self.heads = width // head_dim
        self.norm = nn.GroupNorm(groups, width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        places = self.norm(x).flatten(2).transpose(1, 2)  # [B, H W, C]
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(places).split(places.shape[-1], dim=-1)
        )
        y = self.proj(sdpa(q, k, v).transpose(1, 2).flatten(2))
        return x + y.transpose(1, 2).unflatten(-1, x.shape[-2:])


def sinusoids(t: Tensor, width: int, *, cos_first: bool = False, freq_shift: float = 0.0) -> Tensor:
    """Times [B] -> [B, width]: sin(t w_i), then cos(t w_i), w_i = 10000^(-i / (n - freq_shift)), i < n = width // 2.

    In float32 or better. freq_shift: 1 makes the lowest frequency exactly 1 / 10000, as in DDPM and the transformer's
    original code; 0 is the transformer's formula. An odd width ends in a zero. Raises ValueError if no frequency is
    left.
    """
    n = width // 2
    if n <= freq_shift:
        raise ValueError(f"{width} channels are too few for sinusoids with freq_shift {freq_shift}")
    dtype = torch.promote_types(t.dtype if t.is_floating_point() else torch.float32, torch.float32)
    rate = torch.exp(-math.log(10_000) * torch.arange(n, device=t.device, dtype=dtype) / (n - freq_shift))
    angle = t.to(dtype)[:, None] * rate
    waves = [angle.cos(), angle.sin()] if cos_first else [angle.sin(), angle.cos()]
    return F.pad(torch.cat(waves, dim=-1), (0, width % 2))
