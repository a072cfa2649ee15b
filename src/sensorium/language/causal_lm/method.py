"""A decoder language model: Llama (Touvron et al., 2023, arXiv:2302.13971 and 2307.09288), or with experts Mixtral (Jiang et
al., 2024, arXiv:2401.04088).

Each token predicts the next; a token sees itself and what came before:
    x = embed(token)
    x = x + Attention(RMSNorm(x)),   x = x + FFN(RMSNorm(x))        a layer; FFN is SwiGLU or a mixture of such
    logits = head(RMSNorm(x)),       L = mean of -log softmax(logits)[next token]  (+ balance * the experts' loss)
Positions turn queries and keys (RoPE); ``kv_heads`` keys and values serve ``heads`` queries (grouped-query attention).
These are the defaults; each part can be another: positions (:mod:`sensorium.parts.positions`), attention
(:mod:`sensorium.language.mixing`), the feed-forward layer or experts (:mod:`sensorium.parts.feedforward`,
:mod:`sensorium.parts.moe`), norms and where they stand (:mod:`sensorium.parts.norms`).
Several documents may stand in one row: with ``documents`` a token sees its own document only, and none predicts the
first token of another (but linear attention, which has no mask, sees the documents before). RoPE knows distances alone,
so positions run on.
Shapes: B batch, T tokens, D width, V vocabulary, h heads, g key-value heads, d channels a head, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import LanguageModel
from sensorium.language.common import IGNORED, Joint, precise
from sensorium.language.mixing import AttentionKind, Seen, mixer, overrides
from sensorium.method import Method, Progress
from sensorium.parts.feedforward import FeedForward, Kind
from sensorium.parts.gather import sum_over_processes
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import Routing, balance_loss, top_k, update_bias_
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary
from sensorium.parts.sampling import write_tokens

LENGTH = 512  # of rows, for kinds of attention that ask for one


class Cache:
    """What every layer keeps of the ``seen`` tokens, ``length`` at most: keys and values, memory for which is taken at
    once, or what other kinds of attention keep: of linear attention a state that does not grow."""

    def __init__(self, model: CausalLM, batch: int, length: int) -> None:
        weight, self.length, self.depth = model.embed.weight, length, len(model.layers)
        kept = length if model.kinds[0] == "softmax" else 0
        shape = (self.depth, batch, model.kv_heads, kept, model.head_dim)
        self.k = torch.empty(shape, device=weight.device, dtype=weight.dtype)
        self.v = torch.empty_like(self.k)
        self.at = torch.arange(length, device=weight.device)
        self.angles = model.angles(self.at)
        self.seen = 0
        self.states: list[Any] = [None] * self.depth

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [B, g, T, d] behind what is there -> all of them."""
        new = k.shape[2]
        kept_k, kept_v = self.k[layer], self.v[layer]
        kept_k.narrow(2, self.seen, new).copy_(k)
        kept_v.narrow(2, self.seen, new).copy_(v)
        return kept_k.narrow(2, 0, self.seen + new), kept_v.narrow(2, 0, self.seen + new)


class Layer(nn.Module):
    """Attention and a feed-forward layer, each joining the residual stream by a ``Residual`` of its own."""

    def __init__(self, attention: nn.Module, feedforward: nn.Module, width: int, joint: Joint) -> None:
        super().__init__()
        self.norm1, self.attn = joint(width), attention
        self.norm2, self.ffn = joint(width), feedforward


class CausalLM(Method, LanguageModel):
    """A language model over ``vocab`` tokens.

    width: D. depth: layers. heads: queries' heads; kv_heads: keys' and values' (``heads``). head_dim: d (width / heads).
    hidden: channels of the feed-forward layer, or of each of ``experts`` (0: none), of which ``active`` see a token.
    balance: weight of the experts' balancing loss. tied: the head shares the embedding's weights. positions: RoPE if left
    out. attention, ffn: what builds a layer's, or kinds; experts that route otherwise are an ``ffn`` that gives an ``MoE``.
    joint: how a layer joins the stream, from the width; an RMS norm before it if left out. gain: words are multiplied by it.
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
        attention: AttentionKind | Callable[[], nn.Module] = "softmax",
        ffn: Kind | Callable[[], nn.Module] = "swiglu",
        joint: Joint = partial(Residual, kind="rms"),
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.gain = gain
        self.heads, self.kv_heads = heads, kv_heads or heads
        if heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide the {heads} heads")
        if head_dim is None and width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}, or give head_dim")
        self.head_dim = head_dim or width // heads
        self.vocab, self.width, self.hidden, self.experts, self.active = vocab, width, hidden, experts, active
        if experts and ffn != "swiglu":
            raise ValueError(f"experts are SwiGLU layers, not {ffn}")
        if experts and not 1 <= active <= experts:
            raise ValueError(f"active must be between 1 and the {experts} experts, got {active}")
        self.balance, self.tied = balance, tied
        self.positions = Rotary() if positions is None else positions
        self.embed = nn.Embedding(vocab, width)

        def attend() -> nn.Module:
            if callable(attention):
                return attention()
            return mixer(
                attention,
                width,
                heads,
                self.kv_heads,
                self.head_dim,
                length=LENGTH,
                theta=self.positions.theta if isinstance(self.positions, Rotary) else 10_000.0,
            )

        def feed() -> nn.Module:
            if experts:
                return MoE(width, hidden, experts, partial(top_k, k=active))
            return ffn() if callable(ffn) else FeedForward(width, hidden, ffn)

        self.layers = nn.ModuleList(Layer(attend(), feed(), width, joint) for _ in range(depth))
        first = cast(Layer, self.layers[0])
        self.kinds = (cast(str, first.attn.kind), first.ffn.kind if isinstance(first.ffn, FeedForward | MoE) else "")
        if self.kinds[0] not in self.positions.attention:
            named, legal = type(self.positions).__name__, " and ".join(sorted(self.positions.attention))
            raise ValueError(f"{named} positions compose with {legal} attention, not with {self.kinds[0]} attention")
        self.norm = joint(width).norm
        self.head = None if tied else nn.Linear(width, vocab, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.chosen: list[Tensor] = []  # of each layer of experts, tokens that chose each since the last step

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``tokens`` int64 [B, T + 1] and, optional, ``documents`` [B, T + 1], a number a document.

        Logs ``bits_per_token``, and with experts ``balance`` (``active`` when all are chosen alike), ``dropped``, the share
        of choices that found no room, and ``load_e``, choices of expert e a token, averaged over the layers.
        """
        tokens, documents = batch["tokens"], batch.get("documents")
        target = tokens[:, 1:]
        if documents is not None:
            target = target.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
            documents = documents[:, :-1]
        logits, records = self._run(tokens[:, :-1], documents, None)
        loss = F.cross_entropy(precise(logits).flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        found = {"loss": loss, "bits_per_token": loss.detach() / torch.log(torch.tensor(2.0))}
        return found | self._experts(loss, records) if records else found

    def after_step(self, at: Progress) -> None:
        """Experts that are balanced by a bias: move it."""
        for layer, chosen in zip(self._layers(), self.chosen, strict=False):
            if isinstance(layer.ffn, MoE) and layer.ffn.bias is not None:
                update_bias_(layer.ffn.bias, sum_over_processes(chosen))
        self.chosen = []

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

    def _experts(self, loss: Tensor, records: list[Routing]) -> dict[str, Tensor]:
        """The loss with what keeps experts equally busy, unless biases do, and the logs. Load and share are averaged over
        the layers first, as Mixtral's published code has it."""
        load, share = (torch.stack(parts).mean(0) for parts in ([r.load for r in records], [r.share for r in records]))
        uneven = balance_loss(load, share)
        if self.training:
            chosen = [record.chosen.detach() for record in records]
            self.chosen = [a + b for a, b in zip(self.chosen, chosen, strict=True)] if self.chosen else chosen
        biased = any(isinstance(layer.ffn, MoE) and layer.ffn.bias is not None for layer in self._layers())
        asked = torch.stack([record.chosen.sum() for record in records]).sum()
        return {
            "loss": loss if biased else loss + self.balance * uneven,
            "balance": uneven.detach(),
            "dropped": sum(record.dropped for record in records) / asked,
            **{f"load_{e}": each for e, each in enumerate(load.detach())},
        }

    def _layers(self) -> Iterable[Layer]:
        return cast("Iterable[Layer]", self.layers)

    def _run(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> tuple[Tensor, list[Routing]]:
        """Logits [B, T, V] and each layer's record of its experts."""
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
        plain = not (overrides(self.positions, "bias") or overrides(self.positions, "read"))
        scale = self.positions.scale * self.head_dim**-0.5
        seen = Seen(self.positions, at, every, angles, scale, mask, plain, documents)
        words, records = self.embed(tokens), []
        x = self.positions.embed(words if self.gain == 1.0 else self.gain * words, seen.at)
        for i, layer in enumerate(self._layers()):
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
        return logits, records


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
