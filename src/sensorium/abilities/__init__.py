"""What a network offers a method, and what a trained method offers its users.

An ability is a class that a method or a network inherits from: ``class DINO(Method, Encoder, AttentionMaps)``. One that
lacks an ability's method cannot be built; code that needs an ability checks ``isinstance``. Attributes without a
default are set in ``__init__``. ``B`` images, ``N`` patches, ``D`` features. Images are float tensors [B, 3, H, W],
already normalized, unless a docstring says otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities.generators import (
    AnySize,
    ClassConditional,
    Completer,
    FromNoise,
    Generator,
    IterativeGenerator,
    Latent,
    Likelihood,
    TextConditional,
)
from sensorium.abilities.sequences import (
    FuturePredictor,
    LanguageModel,
    MaskedLanguageModel,
    OnlineDetector,
    StreamEncoder,
    TextEncoder,
)

Statistics = tuple[Sequence[float], Sequence[float]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SeesImages:
    """Takes images.

    ``image_size``: input size in pixels (one number, or height and width), None for any. ``trained_size``: where that is
    None, the size in pixels that the files of its weights tell. ``normalization``: mean and standard deviation of pixels
    in 0..1 that its weights expect, None if unknown.
    """

    image_size: int | tuple[int, int] | None = None
    trained_size: int | None = None
    normalization: Statistics | None = None


class Encoder(SeesImages, ABC):
    """Encodes an image as one feature vector: networks and methods alike."""

    dim: int

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer index, 0 for the input layer, as layer-wise learning rate decay needs.

        By default every parameter has index 0.
        """
        assert isinstance(self, nn.Module)
        return dict.fromkeys((name for name, _ in self.named_parameters()), 0)


class TokenEncoder(Encoder):
    """A network that can encode a subset of its patches, as masking needs."""

    patch_size: int
    grid: tuple[int, int]
    depth: int

    @abstractmethod
    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images; an error if the patch size does not divide the image size."""

    @abstractmethod
    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens with positional embeddings [B, N, dim], no class token.

        With ``keep`` (indices [B, n]) only these patches, in that order: [B, n, dim].
        """

    @abstractmethod
    def encode(self, patches: Tensor) -> Tensor:
        """Any subset of the patch tokens [B, n, dim] -> encoded [B, 1 + n, dim], the class token first."""


class MapEncoder(Encoder):
    """A network that gives feature maps, finest first, as pyramids need. ``channels`` and ``strides`` of each."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> list of [B, C_i, H_i, W_i]."""

    def rows(self, side: int) -> tuple[int, ...]:
        """Rows of each map of an image of ``side`` pixels."""
        return tuple(-(-side // stride) for stride in self.strides)

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> features [B, dim] and the last map, by networks that can in one pass."""
        return self.features(images), self.maps(images)[-1]

    def features_and_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, 3, H, W] -> features [B, dim] and all maps, by networks that can in one pass."""
        if len(self.channels) == 1:
            features, last = self.features_and_map(images)
            return features, [last]
        return self.features(images), self.maps(images)


class MaskedEncoder(MapEncoder):
    """A network that can encode an image some of whose patches are masked: a token takes the place of their embeddings,
    of ``channels[0]`` values, and of ``strides[0]`` pixels a side."""

    @abstractmethod
    def masked_map(self, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        """[B, 3, H, W], bool [B, H', W'] (True: masked) and the token [..., channels[0]] -> the last map, after the final
        norm: [B, dim, ceil(H / strides[-1]), ceil(W / strides[-1])]."""


class VelocityNet(ABC):
    """What a flow or a diffusion learns. ``labels``: rows of its label embedding, 0 if unconditional."""

    labels: int

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in the network's own scale, condition int64 [B] -> [B, C, H, W]."""


class AttentionMaps(ABC):
    """Gives the attention maps of its class token."""

    @abstractmethod
    def attention(self, images: Tensor) -> Tensor | None:
        """[B, 3, H, W] -> attention from the class token to the patches in the last layer [B, heads, H', W'].

        Each head's weights sum to 1 at most, the rest being on other tokens.

        None if the method's backbone has no attention.
        """


class HasBackbone:
    """Trains a network that is useful on its own: it is exported, and other methods can start from it."""

    backbone: Any


class BoundsInformation:
    """Learns by a lower bound of a mutual information, as contrastive losses are. Its ``forward`` (of its first phase)
    logs ``information``, the bound in nats, and ``ceiling``, the largest value that it could have: log K for the choice
    of one among K candidates."""


class PreparesImages:
    """Prepares images for its ``network``, which expects other ones than it gets: of the statistics ``own``, and of
    ``side`` pixels (None: as they come)."""

    network: Any
    own: Statistics
    side: int | None


class HasTextTower:
    """Has a text encoder that is useful on its own."""

    text: Any


class HasBody:
    """A pyramid on the feature maps of a network, its ``body``."""

    body: Any


class Flow:
    """Integrates the velocity that its ``net`` (a :class:`VelocityNet`) predicts; the net's times are ``time_scale``
    times those of the trajectory, 0 to 1."""

    net: Any
    time_scale: float


class Reconstructor(ABC):
    """Reconstructs images. ``panels``: names of what is shown, from left to right."""

    panels: tuple[str, ...]

    @abstractmethod
    def reconstruct(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Images as the method learns from them [B, C, H, W] -> its panels side by side [B, 3, H, W * panels], in the
        same range of values. ``seed``: of the mask."""


class Classifier(SeesImages, ABC):
    """Classifies images into ``classes`` classes. ``class_names``: of the labels, () if unknown."""

    classes: int
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes]."""


class ImageText(SeesImages, ABC):
    """Embeds images and texts in one space of unit vectors. ``context``: maximum tokens of a text."""

    context: int

    @abstractmethod
    def embed_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E] of unit length."""

    @abstractmethod
    def embed_text(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, E] of unit length."""

    @abstractmethod
    def similarity_scale(self) -> float:
        """What similarities are multiplied by, in training, before the softmax over the texts."""


class Detector(SeesImages, ABC):
    """Detects objects of ``classes`` classes.

    ``class_names``: of the labels, () if unknown. ``sides``: images are resized so that the shorter side has
    ``sides[0]`` pixels, unless the longer one would exceed ``sides[1]``. ``divisor``: they are padded, right and below,
    to multiples of it; a detector trained here sees squares of this side. ``overlap``: maximum IoU of two boxes of a
    class, None if its detections need no suppression.
    """

    classes: int
    class_names: tuple[str, ...] = ()
    sides: tuple[int, int] = (800, 1333)
    divisor: int = 32
    overlap: float | None = None
    normalization: Statistics | None = IMAGENET

    @abstractmethod
    def detect(self, images: Tensor, threshold: float = 0.5, *, sizes: Tensor | None = None) -> list[dict[str, Tensor]]:
        """[B, 3, H, W] -> per image ``boxes`` [N, 4] (x0, y0, x1, y1 in pixels), ``scores`` [N], ``labels`` int64 [N].

        threshold: minimum score; its default is each detector's own. sizes: int [B, 2], height and width of each image
        without padding.
        """

    def candidates(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W], int [B, 2] -> a fixed number of likely objects, before suppression, as exports need them:
        boxes [B, C, 4], scores [B, C], labels int64 [B, C]."""
        raise NotImplementedError

    def unlearnable(self, batch: Mapping[str, Any]) -> int:
        """How many boxes of a batch no location or query can be assigned to, so that they can't be learned."""
        return 0


class Autoencoder(SeesImages, ABC):
    """Encodes images as fewer numbers, codes or latents, and decodes them, not exactly."""

    @abstractmethod
    def encode(self, images: Tensor, /) -> Tensor:
        """[B, 3, H, W] -> [B, ...]."""

    @abstractmethod
    def decode(self, encoded: Tensor, /) -> Tensor:
        """What ``encode`` gives -> [B, 3, H, W]."""

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> images as ``encode`` takes them, in -1..1 by default."""
        return pixels.float() / 127.5 - 1

    def to_pixels(self, images: Tensor) -> Tensor:
        """The inverse: output of ``decode`` -> uint8 [B, 3, H, W]."""
        return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


class HasLatents(ABC):
    """Encodes images as maps of latents that are about as large as noise, which a diffusion learns. ``grid``: their h, w."""

    grid: tuple[int, int]

    @abstractmethod
    def latent_network(self) -> Any:
        """The network that does it, a :class:`~sensorium.networks.latents.LatentNetwork`, with the method's weights."""


class LatentAutoencoder(Autoencoder, HasLatents):
    """Encodes images as such maps, by the network ``autoencoder``."""

    autoencoder: Any
    grid: tuple[int, int]

    def latent_network(self) -> Any:
        return self.autoencoder


class Tokenizer(Autoencoder):
    """Encodes images as codes and decodes them. ``codes``: size of the codebook."""

    codes: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> int64 [B, h, w], each 0 .. codes - 1."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, 3, H, W]."""


ABILITIES: dict[str, type] = {
    one.__name__: one
    for one in (
        Encoder, TokenEncoder, MapEncoder, MaskedEncoder, TextEncoder, StreamEncoder, VelocityNet, AttentionMaps,
        Reconstructor, Classifier, ImageText, Detector, Generator, Completer, AnySize, ClassConditional, TextConditional, IterativeGenerator,
        FromNoise, Likelihood, Latent, Autoencoder, LatentAutoencoder, Tokenizer, LanguageModel, MaskedLanguageModel, FuturePredictor, OnlineDetector,
    )
}  # fmt: skip


def abilities_of(thing: object) -> tuple[str, ...]:
    """Names of the abilities that an object or a class has, in the order of ``ABILITIES``."""
    of = thing if isinstance(thing, type) else type(thing)
    return tuple(name for name, ability in ABILITIES.items() if issubclass(of, ability))


def require(thing: object, ability: type, *, by: str, choices: str) -> None:
    """Raise ``TypeError`` if ``thing`` lacks ``ability``; ``choices`` names what has it."""
    if not isinstance(thing, ability):
        raise TypeError(
            f"{by} needs a backbone with {ability.__name__}; {type(thing).__name__} is none. Choose {choices}."
        )
