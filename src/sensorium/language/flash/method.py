"""FLASH and FLASH-Quad, language models of gated attention units (Hua et al., "Transformer Quality in Linear Time", 2022,
arXiv:2202.10447).

A layer is one unit, attention and feed-forward in one (:mod:`sensorium.parts.attention.gau`), so ``depth`` is about
twice that of a transformer:
    x = embed(token) + c sin(position)                  c a learned scalar, initially 1 / sqrt(D) (ScaledSin, appendix)
    x = x + GAU(Norm(x))                                a layer
    logits = embed^T Norm(x),       L = mean of -log softmax(logits)[next token]
FLASH-Quad attends to all earlier tokens; FLASH (``mixed``) to those of its chunk, and by linear attention to earlier
chunks: time is linear in T, and generation needs a state of constant size.
A row may hold several documents: with ``documents`` positions restart with each, and so, if ``mixed``, do chunks. Hence
documents do not interact, and each gives the same result as alone, up to rounding, in both forms.
Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sensorium.language.prediction import NextTokenModel, before_last, next_tokens, nll
from sensorium.method import Method
from sensorium.networks.decoder import Cache, Decoder, GatedLayer
from sensorium.parts.attention.gau import GatedAttentionUnit, document_runs
from sensorium.parts.norms import norm
from sensorium.parts.positions.rotary import rotary_table
from sensorium.parts.positions.turning import Rotary


class FlashLM(Decoder, Method, NextTokenModel):
    """A language model over ``vocab`` tokens.

    width: D, even. depth: units. length: tokens by which scores are divided and for which biases are learned: those of
    a row in training (FLASH-Quad), or of a chunk if ``mixed`` (FLASH; 256 in the paper). expansion: channels of the
    values / D. shared: channels of queries and keys. kind: of norm, LayerNorm or ScaleNorm; the authors' code has both.
    Longer rows are accepted: FLASH at linear cost, FLASH-Quad by extrapolation.
    """

    embed: nn.Embedding

    def __init__(
        self,
        vocab: int,
        width: int,
        depth: int,
        length: int,
        *,
        mixed: bool = True,
        expansion: float = 2.0,
        shared: int = 128,
        kind: Literal["layer", "scale"] = "layer",
        theta: float = 10_000.0,
        eps: float = 1e-5,
    ) -> None:
        if width % 2:
            raise ValueError(f"sinusoidal positions need an even width, got {width}")
        if kind not in ("layer", "scale"):
            raise ValueError(f"kind must be layer or scale, got {kind!r}")
        embed = nn.Embedding(vocab, width)
        nn.init.normal_(embed.weight, std=0.02)

        def layer() -> GatedLayer:
            unit = GatedAttentionUnit(width, length, mixed=mixed, expansion=expansion, shared=shared, theta=theta)
            return GatedLayer(norm(kind, width, eps), unit)

        layers = [layer() for _ in range(depth)]
        super().__init__(embed, layers, norm(kind, width, eps), positions=Rotary(theta=theta))
        self.vocab, self.width, self.depth, self.theta = vocab, width, depth, theta
        self.wave = nn.Parameter(torch.tensor(width**-0.5))

    # a method's forward takes a batch, a network's takes tokens
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """``tokens`` int64 [B, T + 1] and, optional, ``documents`` [B, T + 1], the document of each token, contiguous.

        Logs ``bits_per_token``.
        """
        tokens, documents = batch["tokens"], batch.get("documents")
        return nll(self.logits(tokens[:, :-1], before_last(documents)), next_tokens(tokens, documents))

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T] -> logits of the next token at each position [B, T, V]. With a ``cache`` the tokens follow the cached
        ones.

        Raises ValueError if both ``documents`` and a ``cache`` are given.
        """
        if documents is None:
            start = 0 if cache is None else cache.seen
            at = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        else:
            at = document_runs(documents)[1]
        x = self._words(tokens)
        x = x + self.wave * self._waves(at).to(x.dtype)
        return self.predict(self.encode(x, documents=documents, cache=cache)[0])

    def new_cache(self, batch: int, length: int) -> Cache:
        return Cache(self, batch, length)

    def _waves(self, at: Tensor) -> Tensor:
        """Positions [T] or [B, T] -> sines and cosines [T, D] or [B, T, D], float32."""
        cos, sin = (table.chunk(2, dim=-1) for table in rotary_table(at.flatten(), self.width, self.theta))
        return torch.cat([sin[1], cos[0]], dim=-1).unflatten(0, at.shape)
