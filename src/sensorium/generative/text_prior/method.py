"""A prior over codes given a text: zero-shot text-to-image generation (Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen & Sutskever, 2021,
arXiv:2102.12092, section 2).

The tokens t of a text, padded, and then the codes s of its image, row by row, are one sequence of a causal Transformer:
    p(s | t) = prod_i p(s_i | t, s_<i),        L = -mean_i log p(s_i | t, s_<i)
Only the image is predicted; the paper predicts the text, too, at an eighth of the loss. A part of the texts is left empty in training, so
that guidance works (Ho & Salimans, 2022, arXiv:2207.12598), for codes with logits l as Gafni et al. (2022, arXiv:2203.13131, section 3.4):
    l = l(empty) + g (l(text) - l(empty))
What it shares with the prior given a class is in ``generative/code_prior.py``.
Shapes: B images, h x w grid of codes, K codes, T tokens of a text, V in its vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.abilities import TextConditional
from sensorium.abilities.generators import Prompted
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.generative.code_prior import CodePrior
from sensorium.generative.codes import Grid
from sensorium.networks.decoder import Decoder


class TextPrior(CodePrior, TextConditional):
    """decoder: over the codes 0 .. K - 1 and then the V tokens of texts; it may predict the codes alone. tokenizer: frozen. shape: of an
    image, 3, H, W. empty: tokens of the empty text, int64 [T]. drop: which part of the texts is left empty in training. guidance, top_k,
    temperature: of :meth:`sample`."""

    empty: Tensor

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        shape: tuple[int, int, int],
        empty: Tensor,
        *,
        drop: float = 0.1,
        guidance: float = 3.0,
        top_k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(decoder, tokenizer, shape, top_k, temperature)
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {drop}")
        vocab = cast(nn.Embedding, decoder.embed).num_embeddings
        if vocab <= self.codes:
            raise ValueError(f"{self.codes} codes and the tokens of texts need a larger decoder than of {vocab}")
        self.register_buffer("empty", empty)
        self.context, self.drop, self.guidance = len(empty), drop, guidance

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``codes`` int64 [B, h, w], ``tokens`` int64 [B, T] and ``drop`` bool [B] -> the loss, nats per code. Logs ``bits_per_code``; log2 K
        for a uniform distribution."""
        tokens = torch.where(batch["drop"][:, None], self.empty, batch["tokens"])
        return self.loss(self.codes + tokens, batch["codes"])

    def logits(self, codes: Tensor, tokens: Tensor) -> Tensor:
        """int64 [B, h, w], [B, T] -> logits of each code given the text and earlier codes [B, h w, K], float32 or better."""
        return self.predicted(self.codes + tokens, codes)

    def unconditional(self, n: int) -> Tensor:
        return (self.codes + self.empty).expand(n, -1)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Tensor | None = None,
        guidance: float | None = None,
        size: Grid | None = None,
    ) -> Tensor:
        """``n`` images [n, 3, H, W] in -1..1. condition: tokens int64 [T] for all, or [n, T], None for no text. size: H, W."""
        how: dict[str, Any] = {"seed": seed, "guidance": self.guidance if guidance is None else guidance}
        return self.decoded(self.sample_codes(n, condition, grid=None if size is None else self.grid_of(size), **how))

    def sample_codes(
        self,
        n: int,
        tokens: Tensor | None = None,
        *,
        unwanted: Tensor | None = None,
        guidance: float = 1.0,
        grid: Grid | None = None,
        seed: int = 0,
        on_code: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """``n`` grids of codes int64 [n, h, w], by default of training. tokens: int64 [T] or [n, T], None for no text; unwanted: in the place
        of the empty text. guidance: of 1 costs one pass, else two."""
        plain, unguided = self.unconditional(n), tokens is None or guidance == 1
        before = plain if tokens is None else self.codes + tokens.to(self.empty.device).expand(n, -1)
        less = plain if unwanted is None else self.codes + unwanted.to(self.empty.device).expand(n, -1)
        how: dict[str, Any] = {} if unguided else {"unwanted": less, "guidance": guidance}
        how |= {"temperature": self.temperature, "top_k": self.top_k}
        return self.drawn(before, grid=grid, seed=seed, on_code=on_code, **how)

    def prompted(self, tokens: CLIPTokens) -> PromptedPrior:
        return PromptedPrior(self, tokens).eval()


class PromptedPrior(nn.Module, Prompted):
    """A prior that draws prompts, with its run's tokenizer of texts."""

    steps = None

    def __init__(self, prior: TextPrior, tokens: CLIPTokens) -> None:
        super().__init__()
        self.prior, self.tokens, self.guidance = prior, tokens, prior.guidance

    @property
    def size(self) -> tuple[int, int]:
        return self.prior.shape[1], self.prior.shape[2]

    @property
    def factor(self) -> int:
        return self.prior.patch[0]

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        *,
        unwanted: str = "",
        seed: int = 0,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        rows = self.tokens.encode_whole([*prompts, unwanted], self.prior.context)
        grid = None if size is None else self.prior.grid_of(size)
        scale = self.guidance if guidance is None else guidance
        return self.prior.decoded(
            self.prior.sample_codes(
                len(prompts), rows[:-1], unwanted=rows[-1], guidance=scale, grid=grid, seed=seed, on_code=on_step
            )
        )
