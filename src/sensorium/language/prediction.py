"""Next-token prediction: loss, log-probabilities and generation of every language model.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import LanguageModel
from sensorium.base.precision import precise
from sensorium.parts.sampling import write_tokens

IGNORED = -100


def next_tokens(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """[B, T + 1] -> the target after each of the first T tokens, [B, T]; ``IGNORED`` where another document begins."""
    target = tokens[:, 1:]
    return target if documents is None else target.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)


def before_last(documents: Tensor | None) -> Tensor | None:
    """[B, T + 1] -> the documents of the input tokens, [B, T]."""
    return None if documents is None else documents[:, :-1]


def nll(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean of -log softmax(logits [B, T, V])[target [B, T]] over targets other than ``IGNORED`` as ``loss``, and in
    bits."""
    loss = F.cross_entropy(precise(logits).flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    return {"loss": loss, "bits_per_token": loss.detach() / torch.log(torch.tensor(2.0))}


def log_prob(logits: Tensor, target: Tensor) -> Tensor:
    """Natural logarithm of the probability of each target: [B, T, V] and [B, T] -> [B, T]."""
    return precise(logits).log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)


class NextTokenModel(LanguageModel):
    """A language model defined by its ``logits`` and its cache of earlier tokens."""

    @abstractmethod
    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Any = None) -> Tensor:
        """[B, T] -> logits of the next token at each position [B, T, V]. With a ``cache`` the tokens follow those in it.

        Raises ValueError if both ``documents`` and a ``cache`` are given.
        """

    @abstractmethod
    def new_cache(self, batch: int, length: int) -> Any:
        """A cache for ``batch`` texts of up to ``length`` tokens; ``seen`` counts those in it."""

    def log_prob(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Natural logarithm of the probability of each token after the first, given those before: [B, T] -> [B, T - 1]."""
        return log_prob(self.logits(tokens[:, :-1], before_last(documents)), tokens[:, 1:])

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

        temperature: 0 takes the most likely token. top_k: sample among the k most likely. The text is read once, into the
        cache. window: the maximum context, because a model fails at lengths beyond its training; when it is full, its later
        half is read again.
        """
        how = {"temperature": temperature, "top_k": top_k, "generator": generator, "most": most, "window": window}
        return write_tokens(
            lambda tokens, cache: self.logits(tokens, cache=cache),
            lambda room: self.new_cache(len(prompt), room),
            prompt,
            **how,
        )
