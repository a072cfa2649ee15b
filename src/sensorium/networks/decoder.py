"""A Transformer's stack of layers, shared by language models, captioners and token priors.

Tokens (or given embeddings, of an image's patches for example) pass layers on a residual stream, and a head reads it:
    x = gain embed(token) + position                            or the embeddings given, with their positions
    x = after(x, Attention(before(x)))                          a layer of any kind; ``causal`` or not
    x = after(x, Cross(before(x), memory))                      if it has cross-attention and there is a memory
    x = after(x, FFN(before(x)))                                a feed-forward layer or experts
    logits = head(norm(x))                                      the embedding's weights, other ones, or none
Layers may differ: each is built by the caller (networks/mixing.py has the kinds of attention, parts/moe the experts,
parts/norms.py defines before and after), e.g. a first layer without experts:
    Decoder(embed, [Layer(attention(), FeedForward(D, H) if i == 0 else experts(), joint, D) for i in range(depth)], norm)
Shapes: B batch, T tokens, S tokens including cached ones, D width, V vocabulary, M channels of a memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.networks.caches import GatedPast, LayerCache
from sensorium.networks.mixing import Angles, CrossAttention, Mixing, Seen, gated
from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.moe.route import Routing
from sensorium.parts.norms import Residual, TokenBatchNorm
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary

Joint = Callable[[int], Residual]  # width -> how a layer joins the residual stream


class StackLayer(Protocol):
    """The interface of a layer. ``kind``: of its attention, for positions. ``reads``: it has cross-attention."""

    kind: str
    reads: bool

    def __call__(self, x: Tensor, seen: Seen, cache: Any = None) -> tuple[Tensor, Routing | None]:
        """[B, T, D] -> [B, T, D], and the record of its experts, if it has any."""
        ...

    def new_cache(self, batch: int, length: int, memory: Tensor | None = None) -> LayerCache: ...


class Layer(nn.Module):
    """Attention, optional cross-attention, and a feed-forward layer (or experts, which also give a record), each with
    its own ``Residual``. dropout: dropout rate of their outputs."""

    def __init__(
        self,
        attention: nn.Module,
        feedforward: nn.Module,
        joint: Joint,
        width: int,
        *,
        cross: CrossAttention | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.attn = joint(width), attention
        if cross is not None:
            self.norm_cross, self.cross = joint(width), cross
        self.norm2, self.ffn = joint(width), feedforward
        self.dropout = dropout
        self.reads = cross is not None

    @property
    def kind(self) -> str:
        return cast(Mixing, self.attn).kind

    def new_cache(self, batch: int, length: int, memory: Tensor | None = None) -> LayerOfCache:
        read = self.cross.read(memory) if memory is not None and self.reads else None
        return LayerOfCache(cast(Mixing, self.attn).new_cache(batch, length), read)

    def forward(self, x: Tensor, seen: Seen, cache: LayerOfCache | None = None) -> tuple[Tensor, Routing | None]:
        """[B, T, D] -> [B, T, D], and the record of its experts, if it has any."""
        # a module's attributes are looked up slowly, which shows where a step is one token
        first, last = self.norm1, self.norm2
        x = first.after(x, self._drop(self.attn(first.before(x), seen, None if cache is None else cache.own)))
        if self.reads:
            x = self._read(x, seen, cache)
        y, record = self.ffn(last.before(x)), None
        if isinstance(y, tuple):
            y, record = y
        return last.after(x, self._drop(y)), record

    def _read(self, x: Tensor, seen: Seen, cache: LayerOfCache | None) -> Tensor:
        """The stream after cross-attention; unchanged without a memory."""
        if cache is not None:
            read = cache.read
        else:
            read = None if seen.memory is None else self.cross.read(seen.memory)
        if read is None:
            return x
        return self.norm_cross.after(x, self._drop(self.cross(self.norm_cross.before(x), *read, seen.memory_mask)))

    def _drop(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class LayerOfCache:
    """The cache of a :class:`Layer`: its attention's ``own``, and keys and values ``read`` from a memory, computed
    once."""

    def __init__(self, own: LayerCache, read: tuple[Tensor, Tensor] | None) -> None:
        self.own, self.read = own, read

    def reorder(self, rows: Tensor) -> None:
        self.own.reorder(rows)


class GatedLayer(nn.Module):
    """A gated attention unit, attention and feed-forward in one, pre-norm with a residual connection."""

    kind, reads = "gated", False

    def __init__(self, norm: nn.Module, unit: GatedAttentionUnit) -> None:
        super().__init__()
        self.norm, self.unit = norm, unit

    def new_cache(self, batch: int, length: int, memory: Tensor | None = None) -> GatedPast:
        return GatedPast()

    def forward(self, x: Tensor, seen: Seen, cache: GatedPast | None = None) -> tuple[Tensor, None]:
        """[B, T, D] -> [B, T, D]."""
        return x + gated(self.unit, self.norm(x), seen, cache), None


class Cache:
    """The caches of a decoder's layers for at most ``length`` tokens of ``batch`` rows, ``seen`` so far; and their keys
    and values of a ``memory`` [B', ., M], which consecutive rows may share (``batch`` is a multiple of B')."""

    def __init__(
        self,
        decoder: Decoder,
        batch: int,
        length: int,
        *,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> None:
        if not decoder.causal:
            raise ValueError("only a causal decoder has a cache: here each token attends to later ones")
        decoder.check_memory(memory)
        device = next(decoder.parameters()).device
        self.batch, self.length, self.seen = batch, length, 0
        self.layers = [layer.new_cache(batch, length, memory) for layer in decoder.stack]
        self.memory_mask = None if memory_mask is None else memory_mask[:, None, None]
        self.at = torch.arange(length, device=device)
        self.real: Tensor | None = None  # bool [batch, length], once there is padding
        self.turns = decoder.turns(self.at)

    def reorder(self, rows: Tensor) -> None:
        """Row i continues from row ``rows[i]``, with the same memory. int64 [batch]."""
        for layer in self.layers:
            layer.reorder(rows)
        self.real = None if self.real is None else self.real[rows]

    def extend(self, length: int, mask: Tensor | None) -> Tensor | None:
        """Count ``length`` more tokens; returns the mask without padding of all tokens so far, [batch, S], None for
        all."""
        end = self.seen + length
        if end > self.length:
            raise ValueError(f"the cache holds {self.length} tokens, not {end}")
        if mask is not None and self.real is None:
            self.real = torch.ones(self.batch, self.length, dtype=torch.bool, device=self.at.device)
        if self.real is not None and mask is not None:
            self.real[:, self.seen : end] = mask
        self.seen = end
        return None if self.real is None else self.real[:, :end]


class Decoder(nn.Module):
    """A stack of ``layers`` (:class:`Layer`, :class:`GatedLayer`, or with the same interface) and the final ``norm``.

    embed: of tokens; None if embeddings are always given. head: "tied" to the embedding's weights, a linear layer, or
    None for the stream itself. positions: none by default. causal: a token attends to itself and earlier ones, else to
    all. gain: factor on embedded tokens. dropout: dropout rate of the first layer's input. Raises ValueError if
    ``positions`` can't be combined with a layer's attention, for batch norms in a causal stack, and for "tied" without
    an embedding.
    """

    def __init__(
        self,
        embed: nn.Embedding | None,
        layers: Iterable[nn.Module],
        norm: nn.Module,
        *,
        positions: Positions | None = None,
        head: nn.Linear | Literal["tied"] | None = "tied",
        causal: bool = True,
        gain: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head == "tied" and embed is None:
            raise ValueError("a tied head shares the embedding's weights: give an embedding, or another head")
        self.positions = Positions() if positions is None else positions
        self.embed, self.layers, self.norm = embed, nn.ModuleList(layers), norm
        self.head = head if isinstance(head, nn.Linear) else None
        self.tied, self.causal, self.gain, self.dropout = head == "tied", causal, gain, dropout
        for kind in {layer.kind for layer in self.stack} - self.positions.attention:
            named, legal = type(self.positions).__name__, " and ".join(sorted(self.positions.attention))
            raise ValueError(f"{named} positions work with {legal} attention, not with {kind} attention")
        if causal and any(isinstance(module, TokenBatchNorm) for module in self.modules()):
            raise ValueError(
                "a batch norm's statistics include later tokens, which a causal stack must not use: "
                "choose norm layer, rms, scale or none"
            )

    @property
    def stack(self) -> Iterable[StackLayer]:
        """The layers, typed."""
        return cast("Iterable[StackLayer]", self.layers)

    def forward(self, inputs: Tensor, **how: Any) -> Tensor:
        """The head's output for :meth:`encode`, which has the same arguments: [B, T, V], or [B, T, D] without a
        head."""
        return self.predict(self.encode(inputs, **how)[0])

    def encode(
        self,
        inputs: Tensor,
        *,
        mask: Tensor | None = None,
        documents: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Tokens int64 [B, T] or embeddings [B, T, D] -> the normed stream [B, T, D], and the records of layers of experts.

        mask: bool [B, T], False for padding. documents: int [B, T], the document of each token; tokens attend only to
        their own. memory: [B, ., M] for layers with cross-attention, which is skipped without it; memory_mask: bool [B,
        .], False for padding. With a ``cache`` the tokens follow the cached ones, and read its memory. Raises
        ValueError for ``documents`` or a ``memory`` with a cache, and if the cache is full.
        """
        if cache is not None and (documents is not None or memory is not None):
            what = "documents can't be separated" if documents is not None else "the memory is the cache's own"
            raise ValueError(f"{what} behind a cache")
        self.check_memory(memory)
        x = inputs if inputs.is_floating_point() else self._words(inputs)
        if cache is None:
            at = torch.arange(x.shape[1], device=x.device)
            masked = None if memory_mask is None else memory_mask[:, None, None]
            seen = Seen(self.positions, at, at, self.causal, self.turns(at), documents, mask, memory, masked)
        else:
            seen = self._behind(cache, x.shape[1], mask)
        x = self.positions.embed(x, seen.at)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        records = []
        for layer, kept in zip(self.stack, [None] * len(self.layers) if cache is None else cache.layers, strict=True):
            x, record = layer(x, seen, kept)
            if record is not None:
                records.append(record)
        return self.norm(x), records

    def predict(self, x: Tensor) -> Tensor:
        """The normed stream [B, T, D] -> logits [B, T, V]; unchanged without a head."""
        if self.tied:
            return F.linear(x, cast(nn.Embedding, self.embed).weight)
        return x if self.head is None else self.head(x)

    def turns(self, at: Tensor) -> Callable[[int], Angles] | None:
        """Channels of a head -> RoPE's rotations at positions ``at`` [T], computed once; None with other positions."""
        if not isinstance(self.positions, Rotary):
            return None
        return functools.cache(functools.partial(self.positions.angles, at))

    def check_memory(self, memory: Tensor | None) -> None:
        """Raises ValueError if no layer has cross-attention."""
        if memory is not None and not any(layer.reads for layer in self.stack):
            raise ValueError("there is a memory, but no layer has cross-attention: build some with cross=")

    def _words(self, tokens: Tensor) -> Tensor:
        if self.embed is None:
            raise ValueError("this decoder has no embedding: give embeddings [B, T, D], not tokens")
        words = self.embed(tokens)
        return words if self.gain == 1.0 else self.gain * words

    def _behind(self, cache: Cache, length: int, mask: Tensor | None) -> Seen:
        """The layers' shared inputs for ``length`` tokens that follow the cached ones."""
        places = slice(cache.seen, cache.seen + length)
        real, turns = cache.extend(length, mask), cache.turns
        if turns is not None:
            turns = functools.cache(functools.partial(_part, turns, places))
        every, kept = cache.at[: places.stop], {"real": real, "memory_mask": cache.memory_mask}
        return Seen(self.positions, every[places], every, self.causal, turns, **kept)


def _part(turns: Callable[[int], Angles], places: slice, dim: int) -> Angles:
    cos, sin = turns(dim)
    return cos[places], sin[places]
