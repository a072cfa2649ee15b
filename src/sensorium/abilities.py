"""What a backbone offers a method, and what a trained method offers its users.

Protocols are structural: a class satisfies one by having its members. ``B`` images, ``N`` patches, ``D`` features.
Images are float tensors [B, 3, H, W], already normalised, unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """Gives one vector an image. Backbones and self-supervised methods alike."""

    dim: int

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""
        ...


@runtime_checkable
class TokenEncoder(Encoder, Protocol):
    """A backbone that can encode a subset of its patches: what masking needs."""

    patch_size: int
    grid: tuple[int, int]

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (down, across) of images; an error where the patch does not divide them."""
        ...

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens with their positions [B, N, dim], no class token.

        With ``keep`` (indices [B, n]) these patches only, in that order: [B, n, dim].
        """
        ...

    def encode(self, patches: Tensor) -> Tensor:
        """Any subset of the patch tokens [B, n, dim] -> encoded [B, 1 + n, dim], the class token first."""
        ...


@runtime_checkable
class MapEncoder(Encoder, Protocol):
    """A backbone that gives feature maps, finest first: what pyramids need."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> list of [B, C_i, H_i, W_i]."""
        ...


@runtime_checkable
class AttentionMaps(Protocol):
    """Can show where its class token looks."""

    def attention(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> last layer's attention from the class token to the patches [B, heads, H', W'], rows sum to <= 1."""
        ...


@runtime_checkable
class Pictures(Protocol):
    """Has something for a person to look at."""

    def pictures(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch -> images [B, 3, H, W'], in the value range of the batch's own images."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """Gives scores of ``classes`` classes."""

    classes: int

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """Gives the next token's probabilities, and writes. ``vocab`` tokens."""

    vocab: int

    def log_prob(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """int64 [B, T] -> natural logarithm of each token after the first given those before it [B, T - 1]."""
        ...

    def generate(self, prompt: Tensor, **how: Any) -> Iterator[Tensor]:
        """int64 [B, T] -> the tokens after it, one [B] at a time."""
        ...


@runtime_checkable
class Generator(Protocol):
    """Draws new samples. ``shape`` of one, without the batch."""

    shape: tuple[int, ...]

    def sample(self, n: int, **how: Any) -> Tensor:
        """-> [n, *shape], in the value range that the method learns."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """Knows the exact probability of a sample. ``shape`` of one, without the batch."""

    shape: tuple[int, ...]

    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """[B, *shape] -> natural logarithm of the probability (or density) [B]."""
        ...


@runtime_checkable
class ImageText(Protocol):
    """Puts images and texts in one space of unit vectors."""

    def embed_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E] of unit length."""
        ...

    def embed_text(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, E] of unit length."""
        ...


@runtime_checkable
class Detector(Protocol):
    """Finds the objects of images."""

    def detect(self, images: Tensor, threshold: float = ...) -> list[dict[str, Tensor]]:
        """[B, 3, H, W] -> for each image ``boxes`` [N, 4] (x0, y0, x1, y1 in pixels), ``scores`` [N], ``labels`` int64 [N]."""
        ...


@runtime_checkable
class OnlineDetector(Protocol):
    """Names the action of each frame of a stream from the frames so far, in bounded memory."""

    def reset(self) -> None:
        """Begin a new stream."""
        ...

    def step(self, frame: Tensor) -> Tensor:
        """The next frame [F] -> the classes' probabilities [K]."""
        ...

    def predict(self, frames: Tensor | Iterable[Tensor]) -> Tensor:
        """A whole stream [N, F] (or its parts) -> [N, K]: what ``step`` gives of each, faster."""
        ...


PROTOCOLS: dict[str, type] = {
    "Encoder": Encoder,
    "TokenEncoder": TokenEncoder,
    "MapEncoder": MapEncoder,
    "AttentionMaps": AttentionMaps,
    "Pictures": Pictures,
    "Classifier": Classifier,
    "LanguageModel": LanguageModel,
    "Generator": Generator,
    "Likelihood": Likelihood,
    "ImageText": ImageText,
    "Detector": Detector,
    "OnlineDetector": OnlineDetector,
}


def protocols_of(thing: object) -> tuple[str, ...]:
    """Names of the protocols that an object satisfies, in the order of ``PROTOCOLS``."""
    return tuple(name for name, protocol in PROTOCOLS.items() if isinstance(thing, protocol))


def require(thing: object, protocol: type, *, by: str, choices: str) -> None:
    """Raise ``TypeError`` when ``thing`` lacks ``protocol``; ``choices`` says what would do instead."""
    if not isinstance(thing, protocol):
        raise TypeError(
            f"{by} needs a backbone with {protocol.__name__}; {type(thing).__name__} is none. Choose {choices}."
        )
