"""The causal Transformer that the prior stands on: the only place that knows which one it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sensorium.language.causal_lm.method import Cache, CausalLM


def token_decoder(vocab: int, width: int, depth: int, heads: int, hidden: int | None = None) -> nn.Module:
    """A decoder over ``vocab`` tokens. hidden: channels of its feed-forward layers, 8/3 of the width where left out."""
    return CausalLM(vocab, width, depth, heads, hidden=hidden or 8 * -(-width // 3), tied=False)


def logits_of(decoder: Any, tokens: Tensor, cache: Any = None) -> Tensor:
    """int64 [B, T] -> of the token after each [B, T, V]; with a ``cache`` of the tokens before these."""
    return decoder.logits(tokens, cache=cache)


def cache_of(decoder: Any, batch: int, length: int) -> Any:
    """Room for ``length`` tokens of ``batch`` rows."""
    return Cache(decoder, batch, length)
