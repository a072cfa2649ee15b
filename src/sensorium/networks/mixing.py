"""Token mixing in a stack: softmax attention, latent attention, linear attention with any feature map, or a gated unit,
each as a layer's ``attn``, with or without a cache; and cross-attention to a memory.

    softmax      exp(q . k / sqrt(d)), query heads sharing key heads                  parts/attention/exact.py
    latent       the same over one short vector per token                             parts/attention/latent.py
    linear       elu + 1: cost linear in the length                                   parts/attention/linear.py, as the next three
    relu         max(x, 0)
    performer    2 d positive random features, which approximate softmax
    cosformer    relu, decaying with the distance, within a ``length``
    gau          relu^2 of scores / ``length``, gates, e = D                          parts/attention/gau.py
    flash        the same within chunks, linear across them: a quarter of ``length``, at most 256
A gated unit of e = D and s = min(D, 128) has about as many weights as attention; it rotates its queries and keys
itself, so it only works with rotary positions. In its published form, which also replaces the feed-forward layer, it is
:mod:`sensorium.language.flash.method`. Another kind is a module with ``kind``, ``forward(x, seen, cache)`` and
``new_cache(batch, length)``: see :class:`Mixing`.
Shapes: B batch, T tokens, S keys, D width, h heads, g key-value heads, d channels per head, M channels of a memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from sensorium.networks.caches import GatedPast, KeysAndValues, LayerCache, Running
from sensorium.parts.attention import linear
from sensorium.parts.attention.exact import fused
from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.attention.latent import LatentAttention, LatentCache
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary, rotary_linear_causal

AttentionKind = Literal["softmax", "linear", "relu", "performer", "cosformer", "gau", "flash"]
Features = Callable[[Tensor, int], Tensor]  # heads [B, h, T, d], index of the first token -> [B, h, T, features]
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Seen:
    """Inputs shared by all layers of a pass.

    at: positions of the queries [T]. every: of all keys [S], cached ones first. causal: a token attends to itself and
    earlier ones. turns: channels of a head -> RoPE's rotations; None with other positions. documents: the document of
    each token [B, T], None for a single one. real: mask of keys without padding, bool [B, S], None for all. memory: [B,
    ., M], or None; memory_mask: bool [B, 1, 1, .], False for padding.
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
        """The attention mask, bool [B or 1, 1, T or 1, S]; None if ``causal`` suffices, or a single token attends to
        all. Computed on demand: a kind with cost linear in T must not pay for T x S."""
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
        """Whether positions change neither the scores nor the values."""
        return not (overrides(self.positions, "bias") or overrides(self.positions, "read"))


class Mixing(Protocol):
    """A layer's attention. ``kind``: its name for positions."""

    kind: str

    def __call__(self, x: Tensor, seen: Seen, cache: Any = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; with its own cache the tokens follow the cached ones."""
        ...

    def new_cache(self, batch: int, length: int) -> LayerCache:
        """A cache for at most ``length`` tokens of ``batch`` rows."""
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
    """Projections to queries of h heads and keys and values of g, and back. ``qkv`` holds W_q above W_k above W_v."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"kv_heads {kv_heads} must divide the {heads} heads")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=bias)
        self.proj = nn.Linear(heads * head_dim, width, bias=bias)

    def project(self, x: Tensor, seen: Seen, turn: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> q [B, h, T, d] and k [B, g, T, d], by default rotated by their positions, and v [B, g, T, d]."""
        h, g = self.heads, self.kv_heads
        qkv = self.qkv(x).view(*x.shape[:2], h + 2 * g, self.head_dim).transpose(1, 2)
        both, v = qkv.split_with_sizes([h + g, g], dim=1)  # faster than split, which is Python
        if turn and seen.turns is not None:  # one rotation for both
            q, k = cast(Rotary, seen.positions).turn(both, seen.turns(self.head_dim)).split_with_sizes([h, g], dim=1)
            return q, k, v
        q, k = both.split_with_sizes([h, g], dim=1)
        return (*seen.positions.rotate(q, k, seen.at, seen.at), v) if turn else (q, k, v)


class SoftmaxAttention(GroupedHeads):
    """Grouped-query attention with positions of any kind; a token with no visible key gives zeros."""

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
        if seen.plain and x.shape[1] == 1 and mask is None:  # no mask: the heads of a group are rows of one product
            rows = x.shape[0]
            y = sdpa(q.reshape(rows, self.kv_heads, -1, self.head_dim), k, v, scale=scale)
            return self.proj(y.reshape(rows, 1, -1))
        if seen.plain:
            grouped, causal = self.heads != self.kv_heads, seen.causal and mask is None
            y = sdpa(q, k, v, mask, causal=causal, scale=scale, grouped=grouped)
        else:
            y = self._placed(q, k, v, seen, scale)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _placed(self, q: Tensor, k: Tensor, v: Tensor, seen: Seen, scale: float) -> Tensor:
        """Attention with positions that act on the scores or the values: [B, h, T, d]."""
        mask = (seen.every <= seen.at[:, None]) if seen.mask is None and seen.causal else seen.mask
        bias = seen.positions.bias(q, k, seen.at, seen.every)
        added = None if bias is None else bias.to(q.dtype)
        if not overrides(seen.positions, "read"):
            if mask is not None:
                added = mask if added is None else added.masked_fill(~mask, -torch.inf)
            grouped = self.heads != self.kv_heads
            return sdpa(q, k, v, added, scale=scale, grouped=grouped)
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
    """Causal attention by products of ``features``, in time linear in the length. Documents in one row are not
    separated.

    RoPE rotates the features, in the numerator only (Su et al., 2021, eq. 19): rotated before the feature map, scores
    would not depend only on distances. Performer's features approximate the softmax kernel exp(q . k) of rotated
    queries and keys, so there rotation comes first.
    """

    kind = "linear"

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, features: Features) -> None:
        super().__init__(width, heads, kv_heads, head_dim)
        self.features = features

    def new_cache(self, batch: int, length: int) -> Running:
        return Running()

    def forward(self, x: Tensor, seen: Seen, cache: Running | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]. Raises ValueError in a non-causal stack."""
        if not seen.causal:
            raise ValueError("linear attention of a stack is causal; parts/attention/linear.py has the other form")
        turned = isinstance(self.features, Random) or seen.turns is None
        q, k, v = self.project(x, seen, turn=turned)
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        state, start = ((), 0) if cache is None else (cache.state, cache.seen)
        q, k = self.features(q, start), self.features(k, start)
        if seen.real is not None:  # zero features mask a key
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
    """Latent attention as a layer's attention."""

    kind = "latent"

    def __init__(self, unit: LatentAttention) -> None:
        super().__init__()
        self.unit = unit

    def new_cache(self, batch: int, length: int) -> LatentCache:
        like, channels = self.unit.kv_down.weight, self.unit.latent + self.unit.rotary
        return LatentCache(batch, length, channels, device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor, seen: Seen, cache: LatentCache | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        assert seen.turns is not None, "non-rotary positions are an error when a decoder is built"
        mask = seen.mask
        return self.unit(x, seen.turns(self.unit.rotary), cache, mask=mask, causal=seen.causal and mask is None)


class Gated(nn.Module):
    """A gated attention unit as a layer's attention."""

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
    """A unit in a stack: [B, T, D] -> [B, T, D]. Raises ValueError if there is padding, or if only one of them is
    causal."""
    if seen.real is not None:
        raise ValueError("gated units don't support padding: leave the mask out, or cut the rows")
    if unit.causal != seen.causal:
        raise ValueError(f"the stack is {'' if seen.causal else 'not '}causal, but its gated unit is the opposite")
    return unit(x, seen.documents) if cache is None else cache.extend(unit, x)


class CrossAttention(nn.Module):
    """Cross-attention to a memory of ``memory`` channels M (by default the width): the patches of an image, a source
    text. ``kv`` holds W_k above W_v. Several rows of tokens may share one row of memory."""

    def __init__(self, width: int, heads: int, *, memory: int | None = None, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width if memory is None else memory, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, M] -> keys and values [B, h, S, d], the same for every token."""
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B K, T, D], K consecutive rows per memory, and mask bool [B, 1, 1, S] -> [B K, T, D]; a token with no
        visible key gives zeros."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        each = (len(q) // len(k), q.shape[2])
        q = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)  # the K rows are queries of one memory
        y = fused(q, k, v, mask=mask).unflatten(2, each).transpose(1, 2).flatten(0, 1)
        return self.proj(y.transpose(1, 2).flatten(2))


class Random(nn.Module):
    """Performer's features of a head of ``dim`` channels, 2 per channel."""

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
    """Whether a scheme overrides this hook."""
    return getattr(type(positions), hook) is not getattr(Positions, hook)
