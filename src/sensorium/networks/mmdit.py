"""MM-DiT: scaling rectified flow transformers for high-resolution image synthesis (Esser et al., 2024, arXiv:2403.03206,
section 4), the network of Stable Diffusion 3.

A DiT (:mod:`sensorium.networks.dit`) of two sequences, the patches x of a latent and the tokens s of a text. Each has
weights of its own; attention is over both:
    x = W_x patches + positions,   s = W_s text,   c = mlp(sinusoids(t)) + mlp(pooled)             ("figure 2")
    (b1, g1, a1, b2, g2, a2) = W silu(c)            shifts, scales and gates of a block, of each sequence
    q = [q_x | q_s],  q_x = W_q (norm(x) (1 + g1) + b1),  q_s likewise;   k, v as q
    [y_x | y_s] = softmax(q k / sqrt(d)) v
    x = x + a1 W_o y_x;   x = x + a2 mlp(norm(x) (1 + g2) + b2);           s likewise
The last block changes x alone: of s it has keys and values. Stable Diffusion 3.5 normalizes q and k, a head at a time (RMS
norm); its medium one has a second attention in the first blocks, of x alone, with three more parts of W silu(c):
    x = x + a1 W_o y_x + a3 attention(norm(x) (1 + g3) + b3)
norm has no weights. Gates and the output layer are initialized to zero, so that every block starts as the identity. Modules
have the names of the authors' code.
Shapes: B images, C channels, H x W places of a latent, N patches, T tokens of a text, D width, h heads, d = D / h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.networks.dit import WAVES, FinalLayer
from sensorium.networks.unet import sinusoids
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.init import init_transformer_
from sensorium.parts.norms import RMSNorm
from sensorium.parts.patches import PatchEmbed, grid_of, unpatchify
from sensorium.parts.positions.grid import sincos_2d

EPS = 1e-6  # of every norm


class Size(NamedTuple):
    """Arguments of :class:`MMDiT`."""

    width: int
    depth: int
    heads: int
    positions: int
    sample_size: int | None = None
    qk_norm: bool = False
    dual: tuple[int, ...] = ()


# "micro" is for a CPU and latents of 8 to 16 places a side; the others are Stable Diffusion's, for 16 channels, texts of
# 4096, pooled ones of 2048, and latents of 128 places a side.
MMDIT_SIZES: dict[str, Size] = {
    "micro": Size(128, 6, 4, 16, qk_norm=True),
    "small": Size(384, 12, 6, 32, qk_norm=True),
    "sd3": Size(1536, 24, 24, 192, 128),
    "sd3.5-medium": Size(1536, 24, 24, 384, 128, True, tuple(range(13))),
    "sd3.5-large": Size(2432, 38, 38, 192, 128, True),
}


def mmdit(size: str, *, text_width: int, pooled_width: int = 0, channels: int = 16, **numbers) -> MMDiT:
    """An MM-DiT by name (see ``MMDIT_SIZES``) for latents of ``channels`` and texts of ``text_width`` channels.

    ``numbers`` are :class:`MMDiT`'s own keyword arguments. Raises ``SensoriumError`` for an unknown name.
    """
    if size not in MMDIT_SIZES:
        raise SensoriumError(f"no MM-DiT is called {size!r}: choose {', '.join(MMDIT_SIZES)}.")
    given = {"text_width": text_width, "pooled_width": pooled_width, "channels": channels}
    return MMDiT(**{**MMDIT_SIZES[size]._asdict(), **given, **numbers})


class MMDiT(nn.Module):
    """``net(x, t, text, pooled)``: the velocity of a flow, given a text. Latents of any size up to that of the table.

    text_width, pooled_width: channels of a text's tokens, and of the vector of the whole text, 0 for none. channels,
    out_channels: of the input and the output (the same). positions: side of the table of positions, in patches; smaller
    latents take its middle. sample_size: side of the usual latents, which with ``positions`` says how far apart positions
    are, sample_size / patch_size / positions (1 by default). qk_norm: normalize queries and keys. dual: numbers of the
    blocks with a second attention.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        text_width: int,
        *,
        pooled_width: int = 0,
        channels: int = 16,
        out_channels: int | None = None,
        patch_size: int = 2,
        positions: int = 192,
        sample_size: int | None = None,
        qk_norm: bool = False,
        dual: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if min(width, depth, heads) < 1 or width % heads or not set(dual) <= set(range(depth)):
            raise ValueError(f"{depth} blocks of {width} channels, {heads} heads, a second attention in {list(dual)}")
        self.width, self.depth, self.heads, self.patch_size = width, depth, heads, patch_size
        self.text_width, self.pooled_width = text_width, pooled_width
        self.channels, self.out_channels = channels, out_channels or channels
        self.positions, self.sample_size = positions, sample_size or positions * patch_size
        self.qk_norm, self.dual = qk_norm, tuple(sorted(set(dual)))

        self.x_embedder = PatchEmbed(patch_size, width, channels)
        step = self.sample_size // patch_size / positions
        self.register_buffer("pos_embed", sincos_2d((positions, positions), width, step)[:, 1:])
        self.t_embedder = nn.ModuleDict({"mlp": _mlp(WAVES, width)})
        self.y_embedder = nn.ModuleDict({"mlp": _mlp(pooled_width, width)} if pooled_width else {})
        self.context_embedder = nn.Linear(text_width, width)
        self.joint_blocks = nn.ModuleList(
            JointBlock(width, heads, qk_norm, dual=i in self.dual, last=i == depth - 1) for i in range(depth)
        )
        self.final_layer = FinalLayer(width, patch_size**2 * self.out_channels, EPS)
        self._initialize()

    def _initialize(self) -> None:
        init_transformer_(self, "xavier")
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.x_embedder.proj.bias))
        for embedder in (self.t_embedder, self.y_embedder):
            for layer in embedder.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, (Stream, FinalLayer)):
                nn.init.zeros_(cast(Any, module.adaLN_modulation[1]).weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] (0 to about 1000, fractions too), text [B, T, text_width], pooled [B, pooled_width] or
        None -> [B, out_channels, H, W].

        Raises ``SensoriumError`` if the patches don't divide the latents, or the table of positions is smaller.
        """
        self._check(x, text, pooled)
        grid = grid_of(x.shape[-2], x.shape[-1], self.patch_size)
        c = self.t_embedder["mlp"](sinusoids(t, WAVES, cos_first=True).to(x.dtype))
        if pooled is not None:
            c = c + self.y_embedder["mlp"](pooled)
        h, text = self.x_embedder(x) + self._places(*grid), self.context_embedder(text)
        for block in self.joint_blocks:
            h, text = block(h, text, c)
        return unpatchify(self.final_layer(h, c), grid, self.patch_size)

    def _check(self, x: Tensor, text: Tensor, pooled: Tensor | None) -> None:
        if text.ndim != 3 or (len(text), text.shape[-1]) != (len(x), self.text_width):
            raise ValueError(f"text has shape {list(text.shape)}, expected [{len(x)}, tokens, {self.text_width}]")
        shape, expected = None if pooled is None else list(pooled.shape), [len(x), self.pooled_width]
        if shape != (expected if self.pooled_width else None):
            raise ValueError(f"pooled has shape {shape}, expected {expected if self.pooled_width else None}")

    def _places(self, height: int, width: int) -> Tensor:
        """The middle of the table, [1, N, D]."""
        side = self.positions
        if max(height, width) > side:
            most = side * self.patch_size
            raise SensoriumError(
                f"this MM-DiT has positions for latents of at most {most} places a side, not "
                f"{height * self.patch_size}x{width * self.patch_size}: take smaller ones, or build it with more positions."
            )
        top, left = (side - height) // 2, (side - width) // 2
        table = cast(Tensor, self.pos_embed).unflatten(1, (side, side))
        return table[:, top : top + height, left : left + width].flatten(1, 2)


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class JointBlock(nn.Module):
    """x [B, N, D], text [B, T, D], c [B, D] -> the next x and text; the last block's text is of no use."""

    def __init__(self, width: int, heads: int, qk_norm: bool, *, dual: bool, last: bool) -> None:
        super().__init__()
        self.x_block = Stream(width, heads, qk_norm, dual=dual)
        self.context_block = Stream(width, heads, qk_norm, last=last)

    def forward(self, x: Tensor, text: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_text = self.x_block.modulation(c), self.context_block.modulation(c)
        of_both = zip(self.x_block.before(x, of_x), self.context_block.before(text, of_text), strict=True)
        y = attended(*(torch.cat(one, dim=-2) for one in of_both))
        y_x, y_text = y.split([x.shape[1], text.shape[1]], dim=1)
        return self.x_block.after(x, y_x, of_x), self.context_block.after(text, y_text, of_text)


class Stream(nn.Module):
    """A block's weights of one sequence. dual: with a second attention; last: keys and values alone, of the last block's text."""

    def __init__(self, width: int, heads: int, qk_norm: bool, *, dual: bool = False, last: bool = False) -> None:
        super().__init__()
        self.count = 2 if last else 9 if dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.count * width))
        self.attn = Attention(width, heads, qk_norm, projected=not last)
        self.attn2 = Attention(width, heads, qk_norm) if dual else None
        self.mlp = None if last else FeedForward(width, 4 * width, "gelu_tanh", bias=True)

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """[B, D] -> shift, scale, gate, shift, scale, gate, ... [B, 1, D]."""
        return self.adaLN_modulation(c)[:, None].chunk(self.count, dim=-1)

    def before(self, x: Tensor, modulation: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.attn.split(modulated(x, *modulation[:2]))

    def after(self, x: Tensor, y: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """x and the result y of joint attention, both [B, N, D] -> the next x."""
        if self.mlp is None:
            return x
        _, _, a1, b2, g2, a2, *second = modulation
        h = x + a1 * cast(nn.Linear, self.attn.proj)(y)
        if self.attn2 is not None:
            b3, g3, a3 = second
            h = h + a3 * self.attn2(modulated(x, b3, g3))
        return h + a2 * self.mlp(modulated(h, b2, g2))


class Attention(nn.Module):
    """Projections of one sequence; of itself, self-attention. [B, N, D] -> the same."""

    def __init__(self, width: int, heads: int, qk_norm: bool, *, projected: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q, self.ln_k = (RMSNorm(width // heads, eps=EPS) if qk_norm else nn.Identity() for _ in range(2))
        self.proj = nn.Linear(width, width) if projected else None

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, h, N, d]."""
        q, k, v = (one.unflatten(-1, (self.heads, -1)) for one in self.qkv(x).chunk(3, dim=-1))
        return self.ln_q(q).transpose(1, 2), self.ln_k(k).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(nn.Linear, self.proj)(attended(*self.split(x)))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all heads, [B, h, N, d] each -> [B, N, D]."""
    return sdpa(q, k, v).transpose(1, 2).flatten(2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
