"""The abilities of systems of text and of streams. ``B`` sequences of ``T`` tokens or frames of ``F`` values, ``D`` features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class TextEncoder(ABC):
    """Encodes a text of at most ``context`` tokens, from a vocabulary of ``vocab``, as one vector."""

    dim: int
    vocab: int
    context: int

    @abstractmethod
    def features(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, dim]."""


class StreamEncoder(ABC):
    """Encodes a window of a stream's frames as one feature vector, from which the action of its last frame can be told."""

    dim: int

    @abstractmethod
    def features(self, frames: Tensor) -> Tensor:
        """[B, T, F] -> [B, dim]."""


class LanguageModel(ABC):
    """Predicts the next token, and generates text. ``vocab``: size of the vocabulary."""

    vocab: int

    @abstractmethod
    def log_prob(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """int64 [B, T] -> log-probability (natural) of each token after the first, given those before it [B, T - 1].

        documents: int64 [B, T], the document of each token; a token then depends only on those of its own document.
        """

    @abstractmethod
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
        """int64 [B, T] -> the tokens generated after it, one [B] at a time, ``most`` of them.

        temperature: 0 is greedy. top_k: sample from the k most likely tokens. window: maximum context in tokens.
        """


class MaskedLanguageModel(ABC):
    """Predicts tokens that are masked from those around them. ``vocab``: size of the vocabulary."""

    vocab: int

    @abstractmethod
    def masked_log_prob(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """int64 [B, T], bool [B, T] with M True in every row -> log-probability (natural) of the masked tokens given the
        others, in the order of their places [B, M]. The values at masked places are only looked up, not used."""


class FuturePredictor(ABC):
    """Tells the true future of a sequence from the futures of others, up to ``steps`` moments ahead."""

    steps: int

    @abstractmethod
    def tell(self, x: Tensor) -> Tensor:
        """B sequences as the method learns from them [B, T, ...] -> [B, steps]: of each, the fraction of its moments for which
        its own future, that many moments ahead, is held to be the likeliest of those of all B; 1 / B by chance."""


class OnlineDetector(ABC):
    """Classifies the action of each frame of a stream, one of ``classes``, from the frames so far, in bounded
    memory."""

    classes: int

    @abstractmethod
    def reset(self) -> None:
        """Begin a new stream."""

    @abstractmethod
    def step(self, frame: Tensor) -> Tensor:
        """The next frame [F] -> class probabilities [K]."""

    @abstractmethod
    def predict(self, frames: Tensor | Iterable[Tensor]) -> Tensor:
        """A whole stream [N, F] (or its parts) -> [N, K]: the same as ``step`` on each frame, faster."""
