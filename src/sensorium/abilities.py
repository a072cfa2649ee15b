"""What a network offers a method, and what a trained method offers its users.

An ability is a class that a method or a network inherits from: ``class DINO(Method, Encoder, AttentionMaps)``. One that
lacks an ability's method cannot be built; whoever needs an ability asks ``isinstance``. Attributes without a default are
set in ``__init__``. ``B`` images, ``N`` patches, ``D`` features. Images are float tensors [B, 3, H, W], already normalized,
unless a docstring says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Statistics = tuple[Sequence[float], Sequence[float]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SeesImages:
    """Takes images.

    ``image_size``: pixels (one number, or height and width) that it was made for, None for any. ``normalization``: mean and
    standard deviation of the pixels in 0..1 that its weights want, None where nobody said.
    """

    image_size: int | tuple[int, int] | None = None
    normalization: Statistics | None = None


class Encoder(SeesImages, ABC):
    """Gives one vector an image. Networks and methods alike."""

    dim: int

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer, 0 for what meets the pixels: what layer-wise decay of the learning rate scales by.
        Where a class does not say, all parameters are alike."""
        assert isinstance(self, nn.Module)
        return dict.fromkeys((name for name, _ in self.named_parameters()), 0)


class TokenEncoder(Encoder):
    """A network that can encode a subset of its patches: what masking needs."""

    patch_size: int
    grid: tuple[int, int]
    depth: int

    @abstractmethod
    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (down, across) of images; an error where the patch does not divide them."""

    @abstractmethod
    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens with their positions [B, N, dim], no class token.

        With ``keep`` (indices [B, n]) these patches only, in that order: [B, n, dim].
        """

    @abstractmethod
    def encode(self, patches: Tensor) -> Tensor:
        """Any subset of the patch tokens [B, n, dim] -> encoded [B, 1 + n, dim], the class token first."""


class MapEncoder(Encoder):
    """A network that gives feature maps, finest first: what pyramids need. ``channels`` and ``strides`` of each."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> list of [B, C_i, H_i, W_i]."""


class TextEncoder(ABC):
    """Gives one vector a text of ``vocab`` different tokens, up to ``context`` of them."""

    dim: int
    vocab: int
    context: int

    @abstractmethod
    def features(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, dim]."""


class VelocityNet(ABC):
    """What a flow or a diffusion learns. ``labels``: rows of its table of labels, 0 where it takes none."""

    labels: int

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in the network's own scale, condition int64 [B] -> [B, C, H, W]."""


class AttentionMaps(ABC):
    """Can show where its class token looks."""

    @abstractmethod
    def attention(self, images: Tensor) -> Tensor | None:
        """[B, 3, H, W] -> last layer's attention from the class token to the patches [B, heads, H', W'], rows sum to <= 1.

        None where the network that a method was built around has no attention.
        """


class HasBackbone:
    """Trains a network that is of use without it: what is exported, and what other methods can start from."""

    backbone: Any


class HasBody:
    """A pyramid around a network, its ``body``, that gives it maps."""

    body: Any


class Flow:
    """Follows the velocity that its ``net`` (a :class:`VelocityNet`) gives; the net's times are ``time_scale`` times those of
    the way, 0 to 1."""

    net: Any
    time_scale: float


class Reconstructor(ABC):
    """Can show how it completes images. ``panels``: what is to be seen from left to right."""

    panels: tuple[str, ...]

    @abstractmethod
    def reconstruct(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Images as the method learns from them [B, C, H, W] -> its panels side by side [B, 3, H, W * panels], in the
        same range of values. ``seed``: of what is hidden."""


class Classifier(SeesImages, ABC):
    """Gives scores of ``classes`` classes."""

    classes: int

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""


class ImageText(SeesImages, ABC):
    """Puts images and texts in one space of unit vectors. ``context``: tokens of a text at most."""

    context: int

    @abstractmethod
    def embed_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E] of unit length."""

    @abstractmethod
    def embed_text(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, E] of unit length."""


class Detector(SeesImages, ABC):
    """Finds the objects of images, of ``classes`` classes.

    ``class_names``: of the labels, () where nobody said. ``sides``: images are resized so that the shorter side has
    ``sides[0]`` pixels, unless the longer one would have more than ``sides[1]``.
    """

    classes: int
    class_names: tuple[str, ...] = ()
    sides: tuple[int, int] = (800, 1333)
    normalization: Statistics | None = IMAGENET

    @abstractmethod
    def detect(self, images: Tensor, threshold: float = 0.5, *, sizes: Tensor | None = None) -> list[dict[str, Tensor]]:
        """[B, 3, H, W] -> for each image ``boxes`` [N, 4] (x0, y0, x1, y1 in pixels), ``scores`` [N], ``labels`` int64 [N].

        threshold: least score, whose usual value is each detector's own. sizes: int [B, 2], height and width of the part
        that is image where smaller ones were padded.
        """

    def unlearnable(self, batch: Mapping[str, Any]) -> int:
        """How many boxes of a batch the detector could not find whatever it learned."""
        return 0


class Generator(ABC):
    """Draws new samples. ``shape`` of one, without the batch."""

    shape: tuple[int, ...]

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """-> [n, *shape], in the value range that the method learns. Equal seeds give equal samples."""

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> images as the method learns them [B, *shape]: -1 to 1 where a class says nothing else."""
        return pixels.float() / 127.5 - 1

    def to_pixels(self, samples: Tensor) -> Tensor:
        """The way back: samples [B, *shape] -> uint8 [B, 3, H, W]."""
        unit = samples.float() / 2 + 0.5
        return (unit.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


class ClassConditional(Generator):
    """Can be told what to draw: one of ``classes`` classes, 0 where it learned without."""

    classes: int

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0, condition: Tensor | int | None = None, guidance: float = 1.0) -> Tensor:
        """condition: a class for all, or int64 [n], None for any. guidance: how strongly to insist on it; 1 is as learned."""


class IterativeGenerator(Generator):
    """Goes from noise to a sample in steps, ``usual_steps`` where nobody says how many."""

    usual_steps: int

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0, steps: int | None = None, trace: bool = False) -> Tensor:
        """-> [n, *shape], or with ``trace`` the way there [steps + 1, n, *shape]."""


class Likelihood(ABC):
    """Knows the exact probability of a sample. ``shape`` of one, without the batch; ``members`` of its ensemble."""

    shape: tuple[int, ...]
    members: int = 1

    @abstractmethod
    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """[B, *shape] -> natural logarithm of the probability (or density) [B], averaged in probability over so many
        members."""

    @abstractmethod
    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> images as the method learns them [B, *shape]."""


class Tokenizer(SeesImages, ABC):
    """Turns images into codes and back. ``codes``: size of the codebook."""

    codes: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> int64 [B, h, w], each 0 .. codes - 1."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, 3, H, W]."""

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> images as ``encode`` takes them: -1 to 1 where a class says nothing else."""
        return pixels.float() / 127.5 - 1

    def to_pixels(self, images: Tensor) -> Tensor:
        """The way back: what ``decode`` gives -> uint8 [B, 3, H, W]."""
        return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


class LanguageModel(ABC):
    """Gives the next token's probabilities, and writes. ``vocab`` tokens."""

    vocab: int

    @abstractmethod
    def log_prob(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """int64 [B, T] -> natural logarithm of each token after the first given those before it [B, T - 1].

        documents: [B, T], a number a document; a token is then given those of its own document.
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
        """int64 [B, T] -> the tokens after it, one [B] at a time, ``most`` of them.

        temperature: 0 takes the likeliest. top_k: choose among so many. window: most tokens to look back on.
        """


class OnlineDetector(ABC):
    """Names the action of each frame of a stream, of ``classes``, from the frames so far, in bounded memory."""

    classes: int

    @abstractmethod
    def reset(self) -> None:
        """Begin a new stream."""

    @abstractmethod
    def step(self, frame: Tensor) -> Tensor:
        """The next frame [F] -> the classes' probabilities [K]."""

    @abstractmethod
    def predict(self, frames: Tensor | Iterable[Tensor]) -> Tensor:
        """A whole stream [N, F] (or its parts) -> [N, K]: what ``step`` gives of each, faster."""


ABILITIES: dict[str, type] = {
    one.__name__: one
    for one in (
        Encoder, TokenEncoder, MapEncoder, TextEncoder, VelocityNet, AttentionMaps, Reconstructor, Classifier, ImageText,
        Detector, Generator, ClassConditional, IterativeGenerator, Likelihood, Tokenizer, LanguageModel, OnlineDetector,
    )
}  # fmt: skip


def abilities_of(thing: object) -> tuple[str, ...]:
    """Names of the abilities that an object or a class has, in the order of ``ABILITIES``."""
    of = thing if isinstance(thing, type) else type(thing)
    return tuple(name for name, ability in ABILITIES.items() if issubclass(of, ability))


def require(thing: object, ability: type, *, by: str, choices: str) -> None:
    """Raise ``TypeError`` when ``thing`` lacks ``ability``; ``choices`` says what would do instead."""
    if not isinstance(thing, ability):
        raise TypeError(
            f"{by} needs a backbone with {ability.__name__}; {type(thing).__name__} is none. Choose {choices}."
        )
