"""The abilities of generators. ``B`` or ``n`` samples, of any shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Generator(ABC):
    """Generates new samples. ``shape`` of one, without the batch."""

    shape: tuple[int, ...]

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """-> [n, *shape], in the value range that the method is trained on. Equal seeds give equal samples."""

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> training images [B, *shape], in -1..1 by default."""
        return pixels.float() / 127.5 - 1

    def to_pixels(self, samples: Tensor) -> Tensor:
        """The inverse: samples [B, *shape] -> uint8 [B, 3, H, W]."""
        unit = samples.float() / 2 + 0.5
        return (unit.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


class Completer(Generator):
    """Generates the rest of a sample of which a part is known."""

    @abstractmethod
    def complete(self, given: Tensor, known: Tensor, *, seed: int = 0) -> Tensor:
        """``given`` [n, *shape] in the value range that the method is trained on, and where it is ``known``, bool of the same shape
        -> samples [n, *shape] that are equal to it there. Equal seeds give equal samples."""


class AnySize(Generator):
    """Generates samples of larger sizes than that of its training, too."""

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0, size: tuple[int, int] | None = None) -> Tensor:
        """size: height and width in pixels, by default those of training. Raises SensoriumError for a size that it can't draw."""


class ClassConditional(Generator):
    """Generates samples of a given class, one of ``classes``; 0 if it was trained without labels. ``guided``: whether it takes a
    guidance scale other than 1."""

    classes: int
    guided: bool = True

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0, condition: Tensor | int | None = None, guidance: float = 1.0) -> Tensor:
        """condition: a class for all, or int64 [n], None for any. guidance: guidance scale; 1 is none."""


class TextConditional(Generator):
    """Generates samples of what texts say, of ``context`` tokens each."""

    context: int

    @abstractmethod
    def sample(
        self, n: int, *, seed: int = 0, condition: Tensor | None = None, guidance: float | None = None
    ) -> Tensor:
        """condition: tokens int64 [n, context], None for no text. guidance: guidance scale; by default the method's own."""

    @abstractmethod
    def prompted(self, tokens: Any) -> Prompted:
        """What draws prompts, given its run's tokenizer: a :class:`Prompted` module."""


class Prompted(ABC):
    """Draws what prompts say. ``guidance``: guidance scale, by default. ``steps``: from noise to picture, by default; None where it does not
    draw in steps."""

    guidance: float
    steps: int | None

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures of its training, in pixels."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """What sides of pictures are multiples of."""

    @abstractmethod
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
        """A picture of each prompt [B, 3, H, W] in -1..1. unwanted: what they are not to show. on_step: is told how much is done, and of how
        much. Raises SensoriumError for a prompt that is too long."""


class IterativeGenerator(Generator):
    """Generates a sample from noise in steps, ``usual_steps`` by default, by one of ``samplers``, ``sampler`` by default."""

    usual_steps: int
    sampler: str = ""
    samplers: tuple[str, ...] = ()

    @abstractmethod
    def sample(
        self, n: int, *, seed: int = 0, steps: int | None = None, trace: bool = False, sampler: str | None = None
    ) -> Tensor:
        """-> [n, *shape], or with ``trace`` the whole trajectory [steps + 1, n, *shape]. Of a seed all samplers begin with the same
        noise."""

    def evaluations(self, sampler: str, steps: int) -> int:
        """How often the network is evaluated for a sample of so many steps without guidance."""
        return steps


class FromNoise(Generator):
    """Generates a sample as a function of normal noise of ``start_shape``: the noise between that of two samples gives samples
    between them."""

    start_shape: tuple[int, ...]

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0, start: Tensor | None = None) -> Tensor:
        """start: the noise [n, *start_shape], by default that of ``seed``. A sample of a given start depends on it alone."""

    def noise_of(self, n: int, seed: int | torch.Generator, start: Tensor | None = None) -> Tensor:
        """The noise [n, *start_shape] of ``seed``, drawn on the CPU for all at once, or ``start``. Raises ValueError if that has another
        shape."""
        shape = (n, *self.start_shape)
        if start is None:
            dice = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
            return torch.randn(shape, generator=dice)
        if start.shape != shape:
            raise ValueError(f"start must be {list(shape)}, got {list(start.shape)}")
        return start


class Likelihood(ABC):
    """Gives the exact probability of a sample, or its density. ``shape`` of one, without the batch; ``members`` of its ensemble;
    ``width`` of a value, in whose units the density is: 1 of a probability, 1 / 256 of values in 0..1. ``bound``: what makes it a lower bound, "" if
    nothing does."""

    shape: tuple[int, ...]
    members: int = 1
    width: float = 1.0
    bound: str = ""

    @abstractmethod
    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """[B, *shape] -> natural logarithm of the probability (or density) [B], the probability averaged over
        ``members``."""

    @abstractmethod
    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> training images [B, *shape]."""


class Latent(ABC):
    """Encodes images as latent variables and decodes them."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Training images [B, *shape] -> latents [B, ...]."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images."""
