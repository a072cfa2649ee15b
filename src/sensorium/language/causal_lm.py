"""A decoder language model: Llama (Touvron et al., 2023, arXiv:2302.13971 and 2307.09288), or with experts Mixtral (Jiang et
al., 2024, arXiv:2401.04088).

Each token predicts the next; a token sees itself and what came before:
    x = embed(token)
    x = x + Attention(RMSNorm(x)),   x = x + FFN(RMSNorm(x))        a layer; FFN is SwiGLU or a mixture of such
    logits = head(RMSNorm(x)),       L = mean of -log softmax(logits)[next token]  (+ balance * the experts' loss)
Positions turn queries and keys (RoPE); ``kv_heads`` keys and values serve ``heads`` queries (grouped-query attention).
These are the defaults; each part can be another: positions (:mod:`sensorium.parts.positions`), the feed-forward layer
(:mod:`sensorium.parts.feedforward`), norms and where they stand (:mod:`sensorium.parts.norms`), and linear attention in place
of softmax (:mod:`sensorium.parts.attention.linear`, with elu + 1).
Several documents may stand in one row: with ``documents`` a token sees its own document only, and none predicts the
first token of another (but linear attention, which has no mask, sees the documents before). RoPE knows distances alone,
so positions run on.
Shapes: B batch, T tokens, D width, V vocabulary, h heads, g key-value heads, d channels a head, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.method import Method
from sensorium.parts.attention import linear
from sensorium.parts.feedforward import FeedForward, Kind
from sensorium.parts.moe.mixtral import MixtureOfExperts, balance_loss
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary
from sensorium.parts.sampling import write_tokens

AttentionKind = Literal["softmax", "linear"]
Joint = Callable[[int], Residual]
IGNORED = -100


class Cache:
    """What every layer keeps of the ``seen`` tokens, ``length`` at most: keys and values, memory for which is taken at
    once, or with linear attention a state that does not grow."""

    def __init__(self, model: CausalLM, batch: int, length: int) -> None:
        weight, self.length, self.depth = model.embed.weight, length, len(model.layers)
        kept = 0 if model.kinds[0] == "linear" else length
        shape = (self.depth, batch, model.kv_heads, kept, model.head_dim)
        self.k = torch.empty(shape, device=weight.device, dtype=weight.dtype)
        self.v = torch.empty_like(self.k)
        self.at = torch.arange(length, device=weight.device)
        self.angles = model.angles(self.at)
        self.seen = 0
        self.states: list[Tensor | None] = [None] * self.depth

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [B, g, T, d] behind what is there -> all of them."""
        end = self.seen + k.shape[2]
        self.k[layer, :, :, self.seen : end], self.v[layer, :, :, self.seen : end] = k, v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


@dataclass(frozen=True)
class Seen:
    """What all layers share: positions of the queries ``at`` [T] and of all keys ``every`` [S], what RoPE turns them by,
    the scale of the scores, which keys a query sees, bool, or None for plain causal order, and whether positions leave
    the scores ``plain``."""

    positions: Positions
    at: Tensor
    every: Tensor
    angles: tuple[Tensor, Tensor] | None
    scale: float
    mask: Tensor | None
    plain: bool


class Attention(nn.Module):
    """Causal grouped-query attention; no biases. ``qkv`` holds W_q above W_k above W_v."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, kind: AttentionKind) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.kind = heads, kv_heads, head_dim, kind
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, seen: Seen, cache: Cache | None, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h, g, positions = self.heads, self.kv_heads, seen.positions
        both, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2).split([h + g, g], dim=1)
        if seen.angles is not None:  # one rotation for both
            q, k = cast(Rotary, positions).turn(both, seen.angles).split([h, g], dim=1)
        else:
            q, k = both.split([h, g], dim=1)
            q, k = positions.rotate(q, k, seen.at, seen.at)
        if self.kind == "linear":
            y = self._linear(q, k, v, cache, layer)
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
        if not _overrides(seen.positions, "read"):
            return F.scaled_dot_product_attention(q, k, v, added, scale=seen.scale, enable_gqa=grouped)
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        weights = precise(q @ k.mT * seen.scale + added).softmax(-1).to(v.dtype)
        more = seen.positions.read(weights, seen.at, seen.every)
        return weights @ v if more is None else weights @ v + more

    def _linear(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache | None, layer: int) -> Tensor:
        k, v = (one.repeat_interleave(self.heads // self.kv_heads, dim=1) for one in (k, v))
        before = None if cache is None else cache.states[layer]
        y, state = linear.causal_chunks(linear.elu_features(q), linear.elu_features(k), v, before)
        if cache is not None:
            cache.states[layer] = state
        return y


class Layer(nn.Module):
    """Attention and a feed-forward layer, each joining the residual stream by a ``Residual`` of its own."""

    def __init__(
        self, attention: Attention, feedforward: FeedForward | MixtureOfExperts, width: int, joint: Joint
    ) -> None:
        super().__init__()
        self.norm1, self.attn = joint(width), attention
        self.norm2, self.ffn = joint(width), feedforward


class CausalLM(Method):
    """A language model over ``vocab`` tokens.

    width: D. depth: layers. heads: queries' heads; kv_heads: keys' and values' (``heads``). head_dim: d (width / heads).
    hidden: channels of the feed-forward layer, or of each of ``experts`` (0: none), of which ``active`` see a token.
    balance: weight of the experts' balancing loss. tied: the head shares the embedding's weights. positions: RoPE if left
    out. attention, ffn: kinds. joint: how a layer joins the stream, from the width; an RMS norm before it if left out.
    Raises ValueError where ``positions`` don't compose with the kind of attention.
    """

    def __init__(
        self,
        vocab: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        experts: int = 0,
        active: int = 2,
        balance: float = 0.01,
        tied: bool = True,
        positions: Positions | None = None,
        attention: AttentionKind = "softmax",
        ffn: Kind = "swiglu",
        joint: Joint = partial(Residual, kind="rms"),
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        if heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide the {heads} heads")
        if head_dim is None and width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}, or give head_dim")
        self.head_dim = head_dim or width // heads
        self.vocab, self.width, self.hidden, self.experts, self.active = vocab, width, hidden, experts, active
        if attention not in get_args(AttentionKind):
            raise ValueError(f"attention must be one of {', '.join(get_args(AttentionKind))}, got {attention!r}")
        self.balance, self.tied, self.kinds = balance, tied, (attention, ffn)
        self.positions = Rotary() if positions is None else positions
        if attention not in self.positions.attention:
            named = type(self.positions).__name__
            raise ValueError(
                f"{named} positions act on the scores of softmax attention; {attention} attention has none"
            )
        if experts and ffn != "swiglu":
            raise ValueError(f"experts are SwiGLU layers, not {ffn}")
        self.embed = nn.Embedding(vocab, width)

        def layer() -> Layer:
            wide = MixtureOfExperts(width, hidden, experts, active) if experts else FeedForward(width, hidden, ffn)
            return Layer(Attention(width, heads, self.kv_heads, self.head_dim, attention), wide, width, joint)

        self.layers = nn.ModuleList(layer() for _ in range(depth))
        self.norm = joint(width).norm
        self.head = None if tied else nn.Linear(width, vocab, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``tokens`` int64 [B, T + 1] and, optional, ``documents`` [B, T + 1], a number a document.

        Logs ``bits_per_token``, and with experts ``balance`` (``active`` when all are chosen alike).
        """
        tokens, documents = batch["tokens"], batch.get("documents")
        target = tokens[:, 1:]
        if documents is not None:
            target = target.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
            documents = documents[:, :-1]
        logits, record = self._run(tokens[:, :-1], documents, None)
        loss = F.cross_entropy(precise(logits).flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        found = {"loss": loss, "bits_per_token": loss.detach() / torch.log(torch.tensor(2.0))}
        if record is not None:
            uneven = balance_loss(record)
            found |= {"loss": loss + self.balance * uneven, "balance": uneven.detach()}
        return found

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T] -> of the token after each, [B, T, V]. With a ``cache`` the tokens follow those that it has seen."""
        return self._run(tokens, documents, cache)[0]

    def log_prob(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Natural logarithm of the probability of each token after the first, given those before: [B, T] -> [B, T - 1]."""
        logits = precise(self.logits(tokens[:, :-1], None if documents is None else documents[:, :-1]))
        return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)

    def angles(self, at: Tensor) -> tuple[Tensor, Tensor] | None:
        """What RoPE turns queries and keys by at the positions ``at`` [T], None with other positions."""
        return self.positions.angles(at, self.head_dim) if isinstance(self.positions, Rotary) else None

    def generate(
        self,
        prompt: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        most: int = 256,
        window: int | None = None,
    ) -> Iterator[Tensor]:
        """Tokens after ``prompt`` [B, T], one [B] at a time, ``most`` of them.

        temperature: 0 takes the likeliest. top_k: choose among so many. Latency a token does not grow with a new forward
        of the whole text: keys and values are cached. window: most tokens to look back on, for at lengths that it never
        learnt a model writes nonsense; when they are full, the later half of them is read anew.
        """
        how = {"temperature": temperature, "top_k": top_k, "generator": generator, "most": most, "window": window}
        return write_tokens(
            lambda tokens, cache: self.logits(tokens, cache=cache),
            lambda room: Cache(self, len(prompt), room),
            prompt,
            **how,
        )

    def _run(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, T, V] and the experts' records [depth, 2, E]."""
        start, length = (0 if cache is None else cache.seen), tokens.shape[1]
        if cache is not None and start + length > cache.length:
            raise ValueError(f"the cache holds {cache.length} tokens, not {start + length}")
        mask = visible(length, start, documents)
        mask = None if mask is None else mask.to(tokens.device)
        if cache is None:
            at = every = torch.arange(length, device=tokens.device)
            angles = self.angles(at)
        else:
            every, at = cache.at[: start + length], cache.at[start : start + length]
            angles = (
                None
                if cache.angles is None
                else (cache.angles[0][start : start + length], cache.angles[1][start : start + length])
            )
        plain = not (_overrides(self.positions, "bias") or _overrides(self.positions, "read"))
        scale = self.positions.scale * self.head_dim**-0.5
        seen = Seen(self.positions, at, every, angles, scale, mask, plain)
        x, records = self.positions.embed(self.embed(tokens), seen.at), []
        for i, layer in enumerate(cast("Iterable[Layer]", self.layers)):
            x = layer.norm1.after(x, layer.attn(layer.norm1.before(x), seen, cache, i))
            y = layer.ffn(layer.norm2.before(x))
            if isinstance(y, tuple):
                y, record = y
                records.append(record)
            x = layer.norm2.after(x, y)
        if cache is not None:
            cache.seen += length
        x = self.norm(x)
        logits = F.linear(x, self.embed.weight) if self.head is None else self.head(x)
        return logits, torch.stack(records) if records else None


def _overrides(positions: Positions, hook: str) -> bool:
    return getattr(type(positions), hook) is not getattr(Positions, hook)


def precise(x: Tensor) -> Tensor:
    """At least float32, in which softmax statistics are taken."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def visible(length: int, start: int, documents: Tensor | None) -> Tensor | None:
    """Which keys each of ``length`` queries sees after ``start`` others: bool [B or 1, 1, length, start + length].

    None where it is plain causal order from the first token on, or a single token that sees all. ``documents`` [B,
    length] asks for ``start`` 0.
    """
    if documents is not None:
        if start:
            raise ValueError("documents cannot be told apart behind a cache")
        same = documents[:, :, None] == documents[:, None, :]
        return (same & torch.ones(length, length, dtype=torch.bool, device=documents.device).tril())[:, None]
    if start == 0 or length == 1:
        return None
    return torch.ones(length, start + length, dtype=torch.bool).tril(start)[None, None]
