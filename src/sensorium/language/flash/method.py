"""FLASH and FLASH-Quad, language models of gated attention units (Hua et al., "Transformer Quality in Linear Time", 2022,
arXiv:2202.10447).

A layer is one unit, attention and feed-forward in one (:mod:`sensorium.parts.attention.gau`), so ``depth`` counts about
two for each layer of a transformer:
    x = embed(token) + c sin(position)                  c a learnt scalar, 1 / sqrt(D) at first (ScaledSin, appendix)
    x = x + GAU(Norm(x))                                a layer
    logits = embed^T Norm(x),       L = mean of -log softmax(logits)[next token]
FLASH-Quad attends to all tokens before; FLASH (``mixed``) to those of its chunk, and to the mean of the chunks before
through a linear form: time is linear in T, and a text is continued from a state that does not grow.
Several documents may stand in one row: with ``documents`` positions begin anew with each, and so, if ``mixed``, do chunks.
Hence they do not meet, and each comes out as if it stood alone, up to rounding, in both forms.
Shapes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import LanguageModel
from sensorium.language.common import IGNORED, precise
from sensorium.method import Method
from sensorium.parts.attention.gau import GatedAttentionUnit, Past, document_runs
from sensorium.parts.norms import norm
from sensorium.parts.positions.rotary import rotary_table
from sensorium.parts.sampling import write_tokens


class Cache:
    """What each layer keeps of the tokens seen so far; of FLASH it does not grow beyond a chunk."""

    def __init__(self, depth: int) -> None:
        self.layers: list[Past | None] = [None] * depth
        self.seen = 0


class Layer(nn.Module):
    """A unit behind its norm, added to the residual stream."""

    def __init__(self, norm: nn.Module, unit: GatedAttentionUnit) -> None:
        super().__init__()
        self.norm, self.unit = norm, unit


class FlashLM(Method, LanguageModel):
    """A language model over ``vocab`` tokens.

    width: D, even. depth: units. length: tokens that products are divided by and biases learnt for: those of a row at
    training (FLASH-Quad), or of a chunk if ``mixed`` (FLASH; the paper takes 256). expansion: channels of the values / D.
    shared: channels of queries and keys. kind: of norm, LayerNorm or ScaleNorm; the authors' code has both.
    Longer rows are taken too: FLASH at its own cost, FLASH-Quad beyond what it learnt.
    """

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
        super().__init__()
        if width % 2:
            raise ValueError(f"sines and cosines fill the channels in pairs: width {width} is odd")
        if kind not in ("layer", "scale"):
            raise ValueError(f"kind must be layer or scale, got {kind!r}")
        self.vocab, self.width, self.depth, self.theta = vocab, width, depth, theta
        self.embed = nn.Embedding(vocab, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.wave = nn.Parameter(torch.tensor(width**-0.5))
        self.layers = nn.ModuleList(
            Layer(
                norm(kind, width, eps),
                GatedAttentionUnit(width, length, mixed=mixed, expansion=expansion, shared=shared, theta=theta),
            )
            for _ in range(depth)
        )
        self.norm = norm(kind, width, eps)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``tokens`` int64 [B, T + 1] and, optional, ``documents`` [B, T + 1], a number a document, equal ones adjoining.

        Logs ``bits_per_token``.
        """
        tokens, documents = batch["tokens"], batch.get("documents")
        target = tokens[:, 1:]
        if documents is not None:
            target = target.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)
            documents = documents[:, :-1]
        logits = precise(self.logits(tokens[:, :-1], documents))
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        return {"loss": loss, "bits_per_token": loss.detach() / torch.log(torch.tensor(2.0))}

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T] -> of the token after each, [B, T, V]. With a ``cache`` the tokens follow those that it has seen.

        Raises ValueError where both ``documents`` and a ``cache`` are given.
        """
        if documents is not None and cache is not None:
            raise ValueError("documents cannot be told apart behind a cache")
        if documents is None:
            start = 0 if cache is None else cache.seen
            at = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        else:
            at = document_runs(documents)[1]
        x = self.embed(tokens)
        x = x + self.wave * self._waves(at).to(x.dtype)
        for i, layer in enumerate(cast("Iterable[Layer]", self.layers)):
            if cache is None:
                y = layer.unit(layer.norm(x), documents)
            else:
                y, cache.layers[i] = layer.unit.extend(layer.norm(x), cache.layers[i])
            x = x + y
        if cache is not None:
            cache.seen += tokens.shape[1]
        return F.linear(self.norm(x), self.embed.weight)

    def log_prob(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Natural logarithm of the probability of each token after the first, given those before: [B, T] -> [B, T - 1]."""
        logits = precise(self.logits(tokens[:, :-1], None if documents is None else documents[:, :-1]))
        return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)

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

        temperature: 0 takes the likeliest. top_k: choose among so many. The text is read once: what layers keep is
        cached. window: most tokens to look back on; when they are full, the later half of them is read anew.
        """
        how = {"temperature": temperature, "top_k": top_k, "generator": generator, "most": most, "window": window}
        return write_tokens(
            lambda tokens, cache: self.logits(tokens, cache=cache), lambda _: Cache(self.depth), prompt, **how
        )

    def _waves(self, at: Tensor) -> Tensor:
        """Positions [T] or [B, T] -> sines and cosines [T, D] or [B, T, D], float32."""
        cos, sin = (table.chunk(2, dim=-1) for table in rotary_table(at.flatten(), self.width, self.theta))
        return torch.cat([sin[1], cos[0]], dim=-1).unflatten(0, at.shape)
