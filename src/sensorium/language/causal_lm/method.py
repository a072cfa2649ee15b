"""A decoder language model: Llama (Touvron et al., 2023, arXiv:2302.13971 and 2307.09288), or with experts Mixtral (Jiang et
al., 2024, arXiv:2401.04088).

Each token predicts the next one; a token attends to itself and earlier tokens:
    x = embed(token)
    x = x + Attention(RMSNorm(x)),   x = x + FFN(RMSNorm(x))        a layer; FFN is SwiGLU or a mixture of experts
    logits = head(RMSNorm(x)),       L = mean of -log softmax(logits)[next token]  (+ balance * the experts' loss)
Positions rotate queries and keys (RoPE); ``heads`` query heads share ``kv_heads`` key and value heads (grouped-query
attention).
The network is a decoder (:mod:`sensorium.networks.decoder`). These are the defaults; each part can be replaced:
positions (:mod:`sensorium.parts.positions`), attention (:mod:`sensorium.networks.mixing`), the feed-forward layer or
experts (:mod:`sensorium.parts.feedforward`, :mod:`sensorium.parts.moe`), norms and their placement
(:mod:`sensorium.parts.norms`). A row may hold several documents: with ``documents`` a token attends only to its own
document, and none predicts the first token of another (except in linear attention, which has no mask and sees earlier
documents). RoPE depends on distances only, so positions are not reset.
Shapes: B batch, T tokens, D width, V vocabulary, h heads, g key-value heads, d channels per head, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.language.prediction import NextTokenModel, before_last, next_tokens, nll
from sensorium.method import Method, Progress
from sensorium.networks.decoder import Cache, Decoder, Joint, Layer
from sensorium.networks.mixing import AttentionKind, mixer
from sensorium.parts.feedforward import FeedForward, Kind
from sensorium.parts.moe.layer import MoE, update_biases
from sensorium.parts.moe.route import Routing, balance_loss, top_k
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.turning import Rotary

LENGTH = 512  # of rows, for kinds of attention that need one


class CausalLM(Decoder, Method, NextTokenModel):
    """A language model over ``vocab`` tokens.

    width: D. depth: layers. heads: queries' heads; kv_heads: keys' and values' (``heads``). head_dim: d (width / heads).
    hidden: channels of the feed-forward layer, or of each of ``experts`` (0: none), of which ``active`` process a
    token. balance: weight of the experts' balancing loss. tied: the head shares the embedding's weights. positions:
    RoPE by default. attention, ffn: builders of a layer's, or kinds; for experts with other routing, an ``ffn`` that
    gives an ``MoE``. joint: width -> how a layer joins the residual stream; by default after an RMS norm. gain: factor
    on embeddings. Raises ValueError if ``positions`` can't be combined with the kind of attention.
    """

    embed: nn.Embedding

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
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise ValueError(f"kv_heads {kv_heads} must divide the {heads} heads")
        if head_dim is None and width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}, or give head_dim")
        head_dim = head_dim or width // heads
        if experts and ffn != "swiglu":
            raise ValueError(f"experts are SwiGLU layers, not {ffn}")
        if experts and not 1 <= active <= experts:
            raise ValueError(f"active must be between 1 and the {experts} experts, got {active}")
        positions = Rotary() if positions is None else positions

        def layer() -> Layer:
            if callable(attention):
                attend = attention()
            else:
                theta = positions.theta if isinstance(positions, Rotary) else 10_000.0
                attend = mixer(attention, width, heads, kv_heads, head_dim, length=LENGTH, theta=theta)
            if experts:
                feed = MoE(width, hidden, experts, partial(top_k, k=active))
            else:
                feed = ffn() if callable(ffn) else FeedForward(width, hidden, ffn)
            return Layer(attend, feed, joint, width)

        super().__init__(
            nn.Embedding(vocab, width),
            [layer() for _ in range(depth)],
            joint(width).norm,
            positions=positions,
            head="tied" if tied else nn.Linear(width, vocab, bias=False),
            gain=gain,
        )
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.vocab, self.width, self.hidden = vocab, width, hidden
        self.experts, self.active, self.balance = experts, active, balance
        first = cast(Layer, self.layers[0])
        self.kinds = (first.kind, first.ffn.kind if isinstance(first.ffn, FeedForward | MoE) else "")
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    # a method's forward takes a batch, a network's takes tokens
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``tokens`` int64 [B, T + 1] and, optional, ``documents`` int64 [B, T + 1], the document of each token.

        Logs ``bits_per_token``, and with experts ``balance`` (equal to ``active`` at uniform load), ``dropped``, the
        fraction of assignments beyond capacity, and ``load_e``, assignments to expert e per token, averaged over the
        layers.
        """
        tokens, documents = batch["tokens"], batch.get("documents")
        x, records = self.encode(tokens[:, :-1], documents=before_last(documents))
        found = nll(self.predict(x), next_tokens(tokens, documents))
        return found | self._experts(found["loss"], records) if records else found

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the experts, if they have one."""
        update_biases(self)

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T] -> logits of the next token at each position [B, T, V]. With a ``cache`` the tokens follow the cached
        ones."""
        return self.predict(self.encode(tokens, documents=documents, cache=cache)[0])

    def new_cache(self, batch: int, length: int) -> Cache:
        return Cache(self, batch, length)

    def _experts(self, loss: Tensor, records: list[Routing]) -> dict[str, Tensor]:
        """The loss with the experts' balancing loss, unless biases balance them, and the logs. Load and probability are
        averaged over the layers first, as in Mixtral's published code."""
        load, share = (torch.stack(parts).mean(0) for parts in ([r.load for r in records], [r.share for r in records]))
        uneven = balance_loss(load, share)
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
