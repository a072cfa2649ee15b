"""How tokens of a stack read each other: softmax attention, attention to latents, linear attention by any feature map, or a
gated unit, each as a layer's ``attn``, whole or behind a cache; and how they read a memory.

    softmax      exp(q . k / sqrt(d)), heads of queries sharing those of keys         parts/attention/exact.py
    latent       the same over one short vector a token                               parts/attention/latent.py
    linear       elu + 1: its cost grows with the length alone                        parts/attention/linear.py, as the next three
    relu         max(x, 0)
    performer    2 d positive random features, which stand for softmax
    cosformer    relu, fading with the distance, within a ``length``
    gau          relu^2 of scores / ``length``, gates, e = D                          parts/attention/gau.py
    flash        the same within chunks, linear across them: a quarter of ``length``, 256 at most
A gated unit of e = D and s = min(D, 128) is about as large as attention; it turns its queries and keys itself, so it goes
with rotary positions alone. As published, in place of the feed-forward layer too, it is :mod:`sensorium.language.flash.method`.
Another kind is a module with ``kind``, ``forward(x, seen, cache)`` and ``new_cache(batch, length)``: see :class:`Mixing`.
Shapes: B batch, T tokens, S of them seen, D width, h heads, g key-value heads, d channels a head, M channels of a memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.networks.caches import GatedPast, KeysAndValues, LayerCache, Running
from sensorium.parts.attention import linear
from sensorium.parts.attention.exact import fused
from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.attention.latent import LatentAttention, LatentCache
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary, rotary_linear_causal

AttentionKind = Literal["softmax", "linear", "relu", "performer", "cosformer", "gau", "flash"]
Features = Callable[[Tensor, int], Tensor]  # heads [B, h, T, d] of the tokens from a number on -> [B, h, T, features]
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Seen:
    """What all layers of a pass share.

    at: positions of the queries [T]. every: of all keys [S], those behind a cache first. causal: a token sees itself and
    what came before. turns: channels of a head -> what RoPE turns these by; None with other positions. documents: a number
    a document [B, T], None where there is one. real: which of all keys are no padding, bool [B, S], None for all. memory: [B,
    ., M], or None; memory_mask: which of it is there, bool [B, 1, 1, .].
    """

    positions: Positions
    at: Tensor
    every: Tensor
    causal: bool
    turns: Callable[[int], Angles] | None
    documents: Tensor | None = None
    real: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None

    @cached_property
    def mask(self) -> Tensor | None:
        """Which keys each query sees, bool [B or 1, 1, T or 1, S]; None where ``causal`` says all there is to say, and where
        a single token sees all. Laid out when asked for: a kind whose cost is linear in T must not pay for T x S."""
        length, keys, seen = len(self.at), len(self.every), None
        if self.documents is not None:
            seen = (self.documents[:, :, None] == self.documents[:, None, :])[:, None]
        if self.real is not None:
            seen = self.real[:, None, None] if seen is None else seen & self.real[:, None, None]
        if self.causal and length > 1 and (seen is not None or keys > length):
            before = torch.ones(length, keys, dtype=torch.bool, device=self.at.device).tril(keys - length)[None, None]
            seen = before if seen is None else seen & before
        return seen

    @cached_property
    def plain(self) -> bool:
        """Whether positions leave the scores, and what is read with them, as they are."""
        return not (overrides(self.positions, "bias") or overrides(self.positions, "read"))


class Mixing(Protocol):
    """A layer's attention. ``kind`` is what positions call it."""

    kind: str

    def __call__(self, x: Tensor, seen: Seen, cache: Any = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; with a cache of its own the tokens follow those that it has seen."""
        ...

    def new_cache(self, batch: int, length: int) -> LayerCache:
        """For ``length`` tokens at most of ``batch`` rows."""
        ...


def mixer(
    kind: AttentionKind, width: int, heads: int, kv_heads: int, head_dim: int, *, length: int, theta: float = 10_000.0
) -> SoftmaxAttention | LinearAttention | Gated:
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
    if kind in features:
        return LinearAttention(width, heads, kv_heads, head_dim, features[kind]())
    return SoftmaxAttention(width, heads, kv_heads, head_dim)


class GroupedHeads(nn.Module):
    """Queries of h heads, keys and values of g, and the way back to the width. ``qkv`` holds W_q above W_k above W_v."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"kv_heads {kv_heads} must divide the {heads} heads")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.proj = nn.Linear(heads * head_dim, width, bias=bias)

    def project(self, x: Tensor, seen: Seen, turn: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, h, T, d] and k [B, g, T, d], by default turned to their positions, and v [B, g, T, d]."""
        h, g = self.heads, self.kv_heads
        qkv = self.qkv(x).view(*x.shape[:2], h + 2 * g, self.head_dim).transpose(1, 2)
        both, v = qkv.split_with_sizes([h + g, g], dim=1)  # split is the same, by way of Python
        if turn and seen.turns is not None:  # one rotation for both
            q, k = cast(Rotary, seen.positions).turn(both, seen.turns(self.head_dim)).split_with_sizes([h, g], dim=1)
            return q, k, v
        q, k = both.split_with_sizes([h, g], dim=1)
        return (*seen.positions.rotate(q, k, seen.at, seen.at), v) if turn else (q, k, v)


class SoftmaxAttention(GroupedHeads):
    """Grouped-query attention with positions of any kind; a token that sees nothing reads zeros."""

    kind = "softmax"

    def new_cache(self, batch: int, length: int) -> KeysAndValues:
        like = self.qkv.weight
        return KeysAndValues(batch, self.kv_heads, length, self.head_dim, device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor, seen: Seen, cache: KeysAndValues | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q, k, v = self.project(x, seen)
        if cache is not None:
            k, v = cache.extend(k, v)
        mask, scale = seen.mask, seen.positions.scale * self.head_dim**-0.5
        if seen.plain and x.shape[1] == 1 and mask is None:  # sees all: the heads of a group are rows of one product
            rows = x.shape[0]
            y = F.scaled_dot_product_attention(q.reshape(rows, self.kv_heads, -1, self.head_dim), k, v, scale=scale)
            return self.proj(y.reshape(rows, 1, -1))
        if seen.plain:
            grouped, causal = self.heads != self.kv_heads, seen.causal and mask is None
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
        else:
            y = self._placed(q, k, v, seen, scale)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _placed(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float) -> Tensor:
        """Where positions act on the scores, or on what is read with them: [B, h, T, d]."""
        mask = (seen.every <= seen.at[:, None]) if seen.mask is None and seen.causal else seen.mask
        bias = seen.positions.bias(q, k, seen.at, seen.every)
        added = None if bias is None else bias.to(q.dtype)
        if not overrides(seen.positions, "read"):
            if mask is not None:
                added = mask if added is None else added.masked_fill(~mask, -torch.inf)
            grouped = self.heads != self.kv_heads
            return F.scaled_dot_product_attention(q, k, v, added, scale=scale, enable_gqa=grouped)
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        scores = q @ k.mT * scale if added is None else q @ k.mT * scale + added
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if mask is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
        weights = weights.to(v.dtype)
        more = seen.positions.read(weights, seen.at, seen.every)
        return weights @ v if more is None else weights @ v + more


class LinearAttention(GroupedHeads):
    """Causal attention by products of ``features``, in time that grows with the length alone. Documents in one row are not
    told apart.

    RoPE turns what the features are, in the numerator alone (Su et al., 2021, eq. 19): turned before them, scores would not
    depend on distances alone. Performer's stand for softmax, exp(q . k), of turned queries and keys: these come first.
    """

    kind = "linear"

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, features: Features) -> None:
        super().__init__(width, heads, kv_heads, head_dim)
        self.features = features

    def new_cache(self, batch: int, length: int) -> Running:
        return Running()

    def forward(self, x: Tensor, seen: Seen, cache: Running | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]. Raises ValueError in a stack that is not causal."""
        if not seen.causal:
            raise ValueError("linear attention of a stack is causal; parts/attention/linear.py has the other form")
        turned = isinstance(self.features, Random) or seen.turns is None
        q, k, v = self.project(x, seen, turn=turned)
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        state, start = ((), 0) if cache is None else (cache.state, cache.seen)
        q, k = self.features(q, start), self.features(k, start)
        if seen.real is not None:  # a key whose features are zero is not seen
            k = k.masked_fill(~seen.real[:, None, -x.shape[1] :, None], 0)
        if turned or seen.turns is None:
            y, *state = linear.causal_chunks(q, k, v, *state)
        else:
            turn, angles = cast(Rotary, seen.positions).turn, seen.turns(q.shape[-1])
            y, *state = rotary_linear_causal(q, k, v, turn(q, angles), turn(k, angles), *state)
        if cache is not None:
            cache.state, cache.seen = tuple(state), start + x.shape[1]
        return self.proj(y.transpose(1, 2).flatten(2))


class Latent(nn.Module):
    """Latent attention in attention's place."""

    kind = "latent"

    def __init__(self, unit: LatentAttention) -> None:
        super().__init__()
        self.unit = unit

    def new_cache(self, batch: int, length: int) -> LatentCache:
        like, channels = self.unit.kv_down.weight, self.unit.latent + self.unit.rotary
        return LatentCache(batch, length, channels, device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor, seen: Seen, cache: LatentCache | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        assert seen.turns is not None, "positions that are not rotary are refused when a decoder is built"
        mask = seen.mask
        return self.unit(x, seen.turns(self.unit.rotary), cache, mask=mask, causal=seen.causal and mask is None)


class Gated(nn.Module):
    """A gated attention unit in attention's place."""

    kind = "gated"

    def __init__(self, unit: GatedAttentionUnit) -> None:
        super().__init__()
        self.unit = unit

    def new_cache(self, batch: int, length: int) -> GatedPast:
        return GatedPast()

    def forward(self, x: Tensor, seen: Seen, cache: GatedPast | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return gated(self.unit, x, seen, cache)


def gated(unit: GatedAttentionUnit, x: Tensor, seen: Seen, cache: GatedPast | None) -> Tensor:
    """A unit in a stack: [B, T, D] -> [B, T, D]. Raises ValueError where there is padding, or another order than the unit's."""
    if seen.real is not None:
        raise ValueError("gated units take no padding: leave the mask out, or cut the rows")
    if unit.causal != seen.causal:
        raise ValueError(f"the stack is {'' if seen.causal else 'not '}causal, its gated unit is the other")
    return unit(x, seen.documents) if cache is None else cache.extend(unit, x)


class CrossAttention(nn.Module):
    """Tokens read a memory of ``memory`` channels M (the width): the patches of an image, a source text. ``kv`` holds W_k
    above W_v. Several rows of tokens may read one row of memory."""

    def __init__(self, width: int, heads: int, *, memory: int | None = None, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width if memory is None else memory, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, M] -> keys and values [B, h, S, d], which are the same for every token that reads."""
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B K, T, D], the K rows that read a memory one after another, and mask bool [B, 1, 1, S] -> [B K, T, D]; a token
        that sees nothing reads zeros."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        each = (len(q) // len(k), q.shape[2])
        q = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)  # all of them are queries of their memory
        y = fused(q, k, v, mask=mask).unflatten(2, each).transpose(1, 2).flatten(0, 1)
        return self.proj(y.transpose(1, 2).flatten(2))


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
