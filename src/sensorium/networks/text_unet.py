"""The U-Net that draws what a text says: high-resolution image synthesis with latent diffusion models (Rombach, Blattmann,
Lorenz, Esser & Ommer, 2022, arXiv:2112.10752, section 3.3), as in Stable Diffusion 1 and 2.

It is the U-Net of DDPM (:mod:`sensorium.networks.unet`); in place of its attention stands a transformer over all places:
    h = W_in norm(x)                                 GroupNorm; the places of the map are tokens
    h = h + attention(LN(h), LN(h))                  among the places
    h = h + attention(LN(h), text)                   queries of the places, keys and values of the text
    h = h + W_2 (gelu(W_g z) * W_1 z),  z = LN(h)    GEGLU with 4 C hidden channels
    y = x + W_out h
    attention(a, b) = W_o softmax(q k / sqrt(C / heads)) v + b_o,   q = W_q a,  k = W_k b,  v = W_v b
Queries, keys and values have no biases. The last convolution of each residual block, W_out and the network's last
convolution are initialized to zero, so that every block starts as the identity.
Shapes: B images, C channels, H x W places of a latent, T tokens of a text, D its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.networks.unet import Level, ResidualBlock, sinusoids
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.feedforward import FeedForward


class Size(NamedTuple):
    """widths: channels of each resolution, the finest first. layers: residual blocks of each. attention: resolutions with
    a transformer. heads: of each. groups: of the norms. matrices: how W_in and W_out are kept in files."""

    widths: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]
    heads: tuple[int, ...]
    groups: int
    matrices: bool


# "sd1" and "sd2" are those of Stable Diffusion, for texts of 768 and 1024 channels and latents of 64 to 96 places a side;
# "micro" is for a CPU and latents of 8 to 16 places a side.
TEXT_UNET_SIZES: dict[str, Size] = {
    "micro": Size((32, 64), 1, (True, True), (2, 4), 8, True),
    "small": Size((64, 128, 256), 2, (True, True, True), (2, 4, 8), 32, True),
    "sd1": Size((320, 640, 1280, 1280), 2, (True, True, True, False), (8, 8, 8, 8), 32, False),
    "sd2": Size((320, 640, 1280, 1280), 2, (True, True, True, False), (5, 10, 20, 20), 32, True),
}


def text_unet(size: str, *, text_width: int, channels: int = 4, **numbers) -> TextUNet:
    """A U-Net by name (see ``TEXT_UNET_SIZES``) for latents of ``channels`` and texts of ``text_width`` channels.

    ``numbers`` are :class:`TextUNet`'s own keyword arguments. Raises ``SensoriumError`` for an unknown name.
    """
    if size not in TEXT_UNET_SIZES:
        raise SensoriumError(f"no text-to-image U-Net is called {size!r}: choose {', '.join(TEXT_UNET_SIZES)}.")
    return TextUNet(**{**TEXT_UNET_SIZES[size]._asdict(), "text_width": text_width, "channels": channels, **numbers})


class TextUNet(nn.Module):
    """``net(x, t, text)``: what a diffusion learns, given a text. Maps of any size.

    text_width: D. channels, out_channels: of the input and the output (the same). widths, layers, attention, groups: see
    :class:`Size`; the decoder has one residual block more at each resolution, and the middle a transformer in any case.
    heads: at each resolution, or one number for all. depth: layers of each transformer. eps: of the residual blocks'
    norms. cos_first: order of the sinusoids, see :func:`sinusoids`. matrices: files have W_in and W_out as matrices, not as
    1 x 1 convolutions, which compute the same.

    attend_at_once: as many queries at a time, where a map has more places: the same output (up to rounding) in less memory
    where torch computes attention by whole matrices of H W x H W scores. It may be set at any time. ``sample_size``: side,
    or height and width, of the latents that published weights were trained on.
    """

    sample_size: int | tuple[int, int] | None = None

    def __init__(
        self,
        widths: Sequence[int],
        text_width: int,
        *,
        channels: int = 4,
        out_channels: int | None = None,
        layers: int = 2,
        attention: Sequence[bool] = (),
        heads: int | Sequence[int] = 8,
        depth: int = 1,
        groups: int = 32,
        eps: float = 1e-5,
        dropout: float = 0.0,
        cos_first: bool = True,
        matrices: bool = True,
        attend_at_once: int | None = None,
    ) -> None:
        super().__init__()
        attention = tuple(attention) or (True,) * len(widths)
        heads = (heads,) * len(widths) if isinstance(heads, int) else tuple(heads)
        if not len(widths) == len(attention) == len(heads) or not widths or layers < 1 or depth < 1:
            raise ValueError(
                f"{len(widths)} widths, {len(attention)} attentions, {len(heads)} numbers of heads, {layers} layers of "
                f"depth {depth}"
            )
        self.widths, self.text_width, self.layers, self.attention = tuple(widths), text_width, layers, attention
        self.channels, self.out_channels = channels, out_channels or channels
        self.heads, self.depth, self.groups, self.eps, self.dropout = heads, depth, groups, eps, dropout
        self.cos_first, self.matrices, self.attend_at_once = cos_first, matrices, attend_at_once
        self._build()

    def _build(self) -> None:
        widths, last, time_width = self.widths, len(self.widths) - 1, 4 * self.widths[0]
        self.conv_in = nn.Conv2d(self.channels, widths[0], 3, padding=1)
        self.time_embed = nn.Sequential(nn.Linear(widths[0], time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        skips = [widths[0]]

        self.down, width = nn.ModuleList(), widths[0]
        for i, outputs in enumerate(widths):
            inputs = [width] + [outputs] * (self.layers - 1)
            shrink = nn.Conv2d(outputs, outputs, 3, 2, padding=1) if i < last else None
            self.down.append(self._level(i, inputs, len(inputs) * self.attention[i], shrink))
            skips += [outputs] * (self.layers + (i < last))
            width = outputs

        self.middle = self._level(last, [width, width], 1, None)

        self.up = nn.ModuleList()
        for i, outputs in reversed(list(enumerate(widths))):
            inputs = [n + skips.pop() for n in [width] + [outputs] * self.layers]
            grow = nn.Conv2d(outputs, outputs, 3, padding=1) if i > 0 else None
            self.up.append(self._level(i, inputs, len(inputs) * self.attention[i], grow))
            width = outputs

        self.norm_out = nn.GroupNorm(self.groups, width, eps=self.eps)
        self.conv_out = nn.Conv2d(width, self.out_channels, 3, padding=1)
        for module in (self.conv_out, *(m.conv2 for m in self.modules() if isinstance(m, ResidualBlock)),
                       *(m.proj_out for m in self.modules() if isinstance(m, Transformer))):  # fmt: skip
            nn.init.zeros_(module.weight)
            nn.init.zeros_(cast(Tensor, module.bias))

    def _level(self, i: int, inputs: Sequence[int], transformers: int, resample: nn.Conv2d | None) -> Level:
        """The i-th resolution, in the encoder or the decoder; ``inputs``: channels of each block's input."""
        width = self.widths[i]
        blocks = [ResidualBlock(n, width, 4 * self.widths[0], self.groups, self.eps, self.dropout) for n in inputs]
        of_text = [
            Transformer(width, self.text_width, self.heads[i], self.depth, self.groups) for _ in range(transformers)
        ]
        return Level(blocks, of_text, resample)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """x [B, C, H, W], t [B] (0 to about 1000, fractions too), text [B, T, D] -> [B, out_channels, H, W]."""
        if text.ndim != 3 or (len(text), text.shape[-1]) != (len(x), self.text_width):
            raise ValueError(f"text has shape {list(text.shape)}, expected [{len(x)}, tokens, {self.text_width}]")
        given = text, self.attend_at_once
        e = self.time_embed(sinusoids(t, self.widths[0], cos_first=self.cos_first).to(x.dtype))
        h = self.conv_in(x)
        skips = [h]
        for level in cast("list[Level]", self.down):
            for i in range(len(level.blocks)):
                h = level.step(i, h, e, *given)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)

        h = self.middle.step(0, h, e, *given)
        h = self.middle.blocks[1](h, e)

        for level in cast("list[Level]", self.up):
            for i in range(len(level.blocks)):
                h = level.step(i, torch.cat([h, skips.pop()], dim=1), e, *given)
            if level.resample is not None:
                h = level.resample(F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


class Transformer(nn.Module):
    """A transformer over the places of a map, which attend to each other and to a text. [B, C, H, W] -> the same."""

    def __init__(self, width: int, text_width: int, heads: int, depth: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(width, text_width, heads) for _ in range(depth))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, at_once: int | None = None) -> Tensor:
        """text [B, T, D]; at_once: queries at a time."""
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [B, H W, C]
        for layer in self.layers:
            h = layer(h, text, at_once)
        return x + self.proj_out(h).transpose(1, 2).unflatten(-1, x.shape[-2:])


class Layer(nn.Module):
    """[B, N, C] -> the same: self-attention, cross-attention to a text, GEGLU, each with its LayerNorm and residual."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, width, heads), Attention(width, text_width, heads)
        self.ff = FeedForward(width, 4 * width, "geglu", bias=True)

    def forward(self, h: Tensor, text: Tensor, at_once: int | None) -> Tensor:
        places = self.norm1(h)
        h = h + self.attn1(places, places, at_once)
        h = h + self.attn2(self.norm2(h), text, at_once)
        return h + self.ff(self.norm3(h))


class Attention(nn.Module):
    """Attention of x [B, N, C] to a memory [B, M, D]. -> [B, N, C]."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads must divide the width {width}")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(memory_width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, at_once: int | None = None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(x), *self.kv(memory).chunk(2, dim=-1))
        )  # [B, heads, N or M, C / heads]
        if at_once and at_once < q.shape[-2]:
            some = q.split(at_once, dim=-2)
            y = torch.cat([sdpa(one, k, v) for one in some], dim=-2)
        else:
            y = sdpa(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))
