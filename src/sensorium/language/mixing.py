"""How tokens of a causal language model read each other: softmax attention, linear attention by any feature map, or a gated
unit, each as a layer's ``attn``, whole or behind a cache.

    softmax      exp(q . k / sqrt(d)), heads of queries sharing those of keys         parts/attention/exact.py
    linear       elu + 1: its cost grows with the length alone                        parts/attention/linear.py, as the next three
    relu         max(x, 0)
    performer    2 d positive random features, which stand for softmax
    cosformer    relu, fading with the distance, within a ``length``
    gau          relu^2 of scores / ``length``, gates, e = D                          parts/attention/gau.py
    flash        the same within chunks, linear across them: a quarter of ``length``, 256 at most
A gated unit of e = D and s = min(D, 128) is about as large as attention; it turns its queries and keys itself, so it goes
with rotary positions alone. As published, in place of the feed-forward layer too, it is :mod:`sensorium.language.flash.method`.
Shapes: B batch, T tokens, S of them seen, D width, h heads, g key-value heads, d channels a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.attention import linear
from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary

AttentionKind = Literal["softmax", "linear", "relu", "performer", "cosformer", "gau", "flash"]
Features = Callable[[Tensor, int], Tensor]  # heads [B, h, T, d] of the tokens from a number on -> [B, h, T, features]


@dataclass(frozen=True)
class Seen:
    """What all layers share: positions of the queries ``at`` [T] and of all keys ``every`` [S], what RoPE turns them by,
    the scale of the scores, which keys a query sees, bool, or None for plain causal order, whether positions leave the
    scores ``plain``, and the ``documents`` [B, T], None where there is one."""

    positions: Positions
    at: Tensor
    every: Tensor
    angles: tuple[Tensor, Tensor] | None
    scale: float
    mask: Tensor | None
    plain: bool
    documents: Tensor | None


def mixer(
    kind: AttentionKind, width: int, heads: int, kv_heads: int, head_dim: int, *, length: int, theta: float = 10_000.0
) -> nn.Module:
    """A kind by name; ``length`` of rows in training. Raises ValueError for another name."""
    if kind not in get_args(AttentionKind):
        raise ValueError(f"attention must be one of {', '.join(get_args(AttentionKind))}, got {kind!r}")
    if kind in ("gau", "flash"):
        mixed = kind == "flash"
        size = min(256, max(1, length // 4)) if mixed else length
        shared = min(width, 128) // 2 * 2
        return Gated(GatedAttentionUnit(width, size, mixed=mixed, expansion=1.0, shared=shared, theta=theta))
    features: dict[str, Callable[[], Features]] = {
        "linear": lambda: _elu,
        "relu": lambda: _relu,
        "performer": lambda: Random(head_dim),
        "cosformer": lambda: partial(_fading, length=length),
    }
    return Attention(width, heads, kv_heads, head_dim, features[kind]() if kind in features else None)


class Attention(nn.Module):
    """Causal grouped-query attention; no biases. ``qkv`` holds W_q above W_k above W_v. With ``features`` it is linear."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, features: Features | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.features = heads, kv_heads, head_dim, features
        self.kind = "softmax" if features is None else "linear"
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, seen: Seen, cache: Any, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h, g, positions = self.heads, self.kv_heads, seen.positions
        qkv = self.qkv(x).view(*x.shape[:2], h + 2 * g, self.head_dim).transpose(1, 2)
        both, v = qkv.split_with_sizes([h + g, g], dim=1)  # split is the same, by way of Python
        if seen.angles is not None:  # one rotation for both
            q, k = cast(Rotary, positions).turn(both, seen.angles).split_with_sizes([h, g], dim=1)
        else:
            q, k = both.split_with_sizes([h, g], dim=1)
            q, k = positions.rotate(q, k, seen.at, seen.at)
        if self.features is not None:
            y = self._linear(q, k, v, self.features, cache, layer)
        else:
            if cache is not None:
                k, v = cache.extend(layer, k, v)
            if seen.plain and x.shape[1] == 1:  # sees all: the heads of a group are rows of one product
                y = F.scaled_dot_product_attention(q.reshape(len(q), g, -1, self.head_dim), k, v, scale=seen.scale)
                return self.proj(y.reshape(len(q), 1, -1))
            y = self._softmax(q, k, v, seen)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        grouped = self.heads != self.kv_heads
        if seen.plain:
            return F.scaled_dot_product_attention(
                q, k, v, seen.mask, is_causal=seen.mask is None, scale=seen.scale, enable_gqa=grouped
            )
        mask = (seen.every <= seen.at[:, None]) if seen.mask is None else seen.mask
        bias = seen.positions.bias(q, k, seen.at, seen.every)
        added = torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias.to(q.dtype)
        added = added.masked_fill(~mask, -torch.inf)
        if not overrides(seen.positions, "read"):
            return F.scaled_dot_product_attention(q, k, v, added, scale=seen.scale, enable_gqa=grouped)
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        scores = q @ k.mT * seen.scale + added
        weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1).to(v.dtype)
        more = seen.positions.read(weights, seen.at, seen.every)
        return weights @ v if more is None else weights @ v + more

    def _linear(self, q: Tensor, k: Tensor, v: Tensor, features: Features, cache: Any, layer: int) -> Tensor:
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        before, start = (None, 0) if cache is None else (cache.states[layer], cache.seen)
        y, state = linear.causal_chunks(features(q, start), features(k, start), v, before)
        if cache is not None:
            cache.states[layer] = state
        return y


class Gated(nn.Module):
    """A gated attention unit in attention's place."""

    kind = "gated"

    def __init__(self, unit: GatedAttentionUnit) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor, seen: Seen, cache: Any, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        if cache is None:
            return self.unit(x, seen.documents)
        y, cache.states[layer] = self.unit.extend(x, cache.states[layer])
        return y


class Random(nn.Module):
    """Performer's features of a head of ``dim`` channels, 2 of them a channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.phi = linear.PositiveFeatures(dim, 2 * dim)

    def forward(self, x: Tensor, start: int) -> Tensor:
        return self.phi(x)


def _elu(x: Tensor, start: int) -> Tensor:
    return linear.elu_features(x)


def _relu(x: Tensor, start: int) -> Tensor:
    return linear.relu_features(x)


def _fading(x: Tensor, start: int, *, length: int) -> Tensor:
    return linear.cosine_features(x, length, start)


def overrides(positions: Positions, hook: str) -> bool:
    """Whether a scheme acts at this place."""
    return getattr(type(positions), hook) is not getattr(Positions, hook)
