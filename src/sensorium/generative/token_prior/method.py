"""The prior of VQGAN's second stage: taming transformers for high-resolution image synthesis (Esser, Rombach & Ommer, 2020,
arXiv:2012.09841, section 3.2).

The codes s of an image form a sequence, row by row from the top left, which a causal Transformer models:
    p(s) = prod_i p(s_i | s_<i, c),        L = -mean_i log p(s_i | s_<i, c)                              (eq. 8 - 10)
The class c is the token before the first; one more token means "no class". Codes are sampled one after another; a
tokenizer, such as VQGAN, decodes them to an image. All but the class is in ``generative/code_prior.py``.
Shapes: B images, h x w grid of codes, T = h w, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sensorium.abilities import ClassConditional
from sensorium.generative.code_prior import CodePrior
from sensorium.generative.codes import Grid
from sensorium.networks.decoder import Decoder


class TokenPrior(CodePrior, ClassConditional):
    """A distribution over grids of codes, which a tokenizer decodes to images.

    decoder: a causal Transformer over ``vocab`` tokens (:func:`~sensorium.generative.token_decoder.token_decoder`):
    the codes 0 .. K - 1, one token per class, one for no class. tokenizer: frozen. shape: of an image, 3, H, W.
    classes: 0 for none. top_k, temperature: of :meth:`sample`.
    """

    guided = False

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        top_k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(decoder, tokenizer, shape, top_k, temperature)
        wanted, vocab = vocab_of(tokenizer.codes, classes), cast(nn.Embedding, decoder.embed).num_embeddings
        if vocab != wanted:
            raise ValueError(f"{tokenizer.codes} codes and {classes} classes need a decoder of {wanted}, not {vocab}")
        self.classes = classes

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``codes`` int64 [B, h, w] and, with classes, ``label`` int64 [B] (-1: unknown) -> the loss, nats per code.

        Logs ``bits_per_code``; log2 K for a uniform distribution.
        """
        codes = batch["codes"]
        return self.loss(self._start(len(codes), batch["label"] if self.classes else None), codes)

    def logits(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """int64 [B, h, w], classes [B] -> logits of each code given the class and earlier codes [B, T, K], float32 or
        better."""
        return self.predicted(self._start(len(codes), classes), codes)

    def log_prob(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """int64 [B, h, w] -> log-probability (natural) of each image's codes [B]."""
        each = self.logits(codes, classes).log_softmax(-1)
        return each.gather(-1, codes.flatten(1)[..., None]).squeeze(-1).sum(1)

    def unconditional(self, n: int) -> Tensor:
        return self._start(n, None)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Tensor | int | None = None,
        guidance: float = 1.0,
        size: Grid | None = None,
    ) -> Tensor:
        """``n`` images [n, 3, H, W] in -1..1, each of the class ``condition``; by default all classes in turn. size: H, W.

        Raises ValueError for a ``guidance`` other than 1, which is not supported.
        """
        if guidance != 1:
            raise ValueError("a prior over codes does not support guidance: leave it at 1")
        grid = None if size is None else self.grid_of(size)
        how = {"temperature": self.temperature, "top_k": self.top_k, "seed": seed}
        return self.decoded(self.sample_codes(n, condition, grid=grid, **how))

    def sample_codes(
        self,
        n: int,
        classes: Tensor | int | None = None,
        *,
        grid: Grid | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """``n`` grids of codes int64 [n, h, w], by default of training.

        classes: one for all, or [n], -1 for none; by default all in turn. temperature: 0 is greedy. top_k: sample from
        the k most likely codes. Raises ValueError for an unknown class.
        """
        if classes is None and self.classes:
            classes = torch.arange(n) % self.classes
        before = self._start(n, None if classes is None else torch.as_tensor(classes).expand(n))
        return self.drawn(before, grid=grid, temperature=temperature, top_k=top_k, seed=seed)

    def _start(self, n: int, classes: Tensor | None) -> Tensor:
        """The token before the first code: [n, 1]."""
        if classes is None:
            return torch.full((n, 1), self.codes + self.classes)
        if bool((classes >= self.classes).any()):
            raise ValueError(f"class {int(classes.max())} must be less than {self.classes}")
        return (self.codes + torch.where(classes < 0, self.classes, classes))[:, None]


def vocab_of(codes: int, classes: int = 0) -> int:
    """Vocabulary size of a decoder for these numbers of codes and classes."""
    return codes + classes + 1
