"""DETR's transformer (Carion et al., 2020, arXiv:2005.12872, section 3.2 and appendix A.3, A.4).

Post-norm layers with ReLU. Positions are added to queries and keys of every attention, never to values:
    encoder   x = norm1(x + A(x + p, x + p, x))       x = norm2(x + FFN(x))
    decoder   y = norm1(y + A(y + o, y + o, y))       y = norm2(y + A(y + o, x + p, x))       y = norm3(y + FFN(y))
x is the image's map, y starts at zero, p are sine positions of the map, o the learned object queries. The output of
each decoder layer passes one shared norm; the next layer gets it before that norm.
Shapes: B images, h x w cells of the map, S = h w, Q object queries, D width, L decoder layers, T queries and S keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.attention.sdpa import sdpa


def sine_positions(
    valid: Tensor, width: int, *, temperature: float = 10_000.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Fixed position encodings of a map, [B, S, width]: [y | x], sine and cosine of each frequency interleaved.

    valid: bool [B, h, w], False for padding. Cells are numbered 1, 2 ... over the valid ones and scaled so that the
    last is 2 pi, so that positions are relative to the image's size (appendix A.4).
    """
    if width % 4:
        raise ValueError(f"sine positions need a width divisible by 4, got {width}")
    rate = temperature ** (2 * torch.arange(width // 4, device=valid.device, dtype=dtype) / (width // 2))
    waves = []
    for axis in (1, 2):
        place = valid.cumsum(axis, dtype=dtype)
        last = place.select(axis, -1).unsqueeze(axis)
        angle = (place / (last + 1e-6) * (2 * math.pi))[..., None] / rate
        waves.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(3))
    return torch.cat(waves, dim=-1).flatten(1, 2)


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values come from different tokens; one fused projection ``qkv``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys, values, one per input, [B, heads, ., D / heads] each."""
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        parts = [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=False)]
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q [B, T, D], k and v [B, S, D], mask bool [B, 1, 1, S] (True: visible) -> [B, T, D]."""
        q, k, v = self._projected(q, k, v)
        y = sdpa(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))

    def weights(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention weights of q [B, T, D] over k [B, S, D]: float32 or better [B, heads, T, S]; rows sum to 1."""
        q, k = self._projected(q, k)
        scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward layer, a norm after each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        placed = x + positions
        x = self.norm1(x + self.dropout(self.attn(placed, placed, x, mask)))
        return self.norm2(x + self.dropout(self.fc2(self.dropout(F.relu(self.fc1(x))))))


class DecoderLayer(nn.Module):
    """Self-attention of the object queries, cross-attention to the image and a feed-forward layer, a norm after
    each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def among(self, y: Tensor, queries: Tensor) -> Tensor:
        """Self-attention of the object queries. [B, Q, D] -> [B, Q, D]."""
        placed = y + queries
        return self.norm1(y + self.dropout(self.attn(placed, placed, y)))

    def forward(self, y: Tensor, queries: Tensor, memory: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """y [B, Q, D], queries [Q, D], memory (encoded map) and keys (it with positions) [B, S, D] -> [B, Q, D]."""
        y = self.among(y, queries)
        y = self.norm2(y + self.dropout(self.cross(y + queries, keys, memory, mask)))
        return self.norm3(y + self.dropout(self.fc2(self.dropout(F.relu(self.fc1(y))))))


class Transformer(nn.Module):
    """Encoder and decoder: a map and object queries -> one output per query.

    width: D. depths: layers of encoder and decoder. hidden: channels of the feed-forward layers.
    """

    def __init__(self, width: int, heads: int, depths: tuple[int, int], hidden: int, dropout: float) -> None:
        super().__init__()
        if depths[0] < 0 or depths[1] < 1:
            raise ValueError(f"DETR needs at least one decoder layer, got encoder and decoder depths {depths}")
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(depths[0]))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(depths[1]))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith(("qkv.bias", "proj.bias")):
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor, valid: Tensor | None, queries: Tensor) -> Tensor:
        """Map [B, D, h, w], valid bool [B, h, w] (False: padding; None: there is none), queries [Q, D] -> after each
        decoder layer [L, B, Q, D]."""
        memory, keys, mask = self._encode(features, valid)
        return torch.stack([self.norm(y) for y in self._decode(memory, keys, mask, queries, self.decoder)])

    def attention(self, features: Tensor, valid: Tensor | None, queries: Tensor) -> Tensor:
        """Cross-attention of the queries in the last layer, mean over heads: [B, Q, h, w], float32 or better; maps sum
        to 1."""
        memory, keys, mask = self._encode(features, valid)
        last = cast(DecoderLayer, self.decoder[-1])
        before = self._decode(memory, keys, mask, queries, self.decoder[:-1])
        y = before[-1] if before else queries.new_zeros(len(memory), *queries.shape)
        looks = last.cross.weights(last.among(y, queries) + queries, keys, mask)
        return looks.mean(1).unflatten(-1, features.shape[-2:])

    def _encode(self, features: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The encoded map, the same plus positions, and which cells are visible (None: all)."""
        x = features.flatten(2).transpose(1, 2)
        mask = None if valid is None else valid.flatten(1)[:, None, None]
        if valid is None:
            valid = torch.ones(1, *features.shape[-2:], dtype=torch.bool, device=x.device)
        own = self.norm.weight.dtype  # under autocast the map may be in half precision, the positions are not
        positions = sine_positions(valid, x.shape[-1], dtype=torch.promote_types(own, torch.float32)).to(own)
        for layer in cast("Iterable[EncoderLayer]", self.encoder):
            x = layer(x, positions, mask)
        return x, x + positions, mask

    @staticmethod
    def _decode(
        memory: Tensor, keys: Tensor, mask: Tensor | None, queries: Tensor, layers: nn.ModuleList
    ) -> list[Tensor]:
        """The output of each of ``layers`` before the shared norm, [B, Q, D] each; the first layer's input is zero."""
        y, found = queries.new_zeros(memory.shape[0], *queries.shape), []
        for layer in cast("Iterable[DecoderLayer]", layers):
            y = layer(y, queries, memory, keys, mask)
            found.append(y)
        return found
