"""The KL autoencoder of latent diffusion: high-resolution image synthesis with latent diffusion models (Rombach et al.,
2021, arXiv:2112.10752, section 3.1), Stable Diffusion's "VAE".

An image is encoded as a small map of Gaussian variables and decoded from it; a diffusion learns these maps in the place
of images.
    mu, log sigma^2 = Q(E(x)),   z = s (mu + sigma e - b),   y = G(P(z / s + b)),     e standard normal
E and G are VQGAN's encoder and decoder (:mod:`sensorium.networks.autoencoder`); Q and P are 1 x 1 convolutions, which
later networks of this kind leave out. The scaling s makes latents about as large as noise, b is their shift
(appendix D.1).
Shapes: B images, C channels, H x W pixels, Z latent channels, h x w = H / f x W / f positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from sensorium.base.precision import precise
from sensorium.base.records import Count
from sensorium.networks.autoencoder import Decoder, Encoder, Size, coders
from sensorium.networks.latents import LatentNetwork
from sensorium.parts.estimators import gaussian

LOW, HIGH = -30.0, 20.0  # of log sigma^2, in the authors' code
SCALING = 0.18215  # of Stable Diffusion

# "base" is Stable Diffusion's; "micro" and "small" are for a CPU and images of about 28 to 64 pixels.
KL_SIZES: dict[str, Size] = {
    "micro": Size(16, (1, 2, 4), 1, 4, 4, 0),
    "small": Size(32, (1, 2, 4), 2, 4, 8, 0),
    "base": Size(128, (1, 2, 4, 4), 2, 4, 32, 0),
}


class KLAutoencoder(LatentNetwork):
    """Images [B, C, H, W], usually in -1..1, as latents [B, Z, h, w], and back; differentiable both ways.

    encoder: of 2 Z latent channels, decoder: of Z. quant, post_quant: whether there are Q and P. scaling, shift: s and
    b, kept with the weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        scaling: float = SCALING,
        shift: float = 0.0,
        quant: bool = True,
        post_quant: bool = True,
    ) -> None:
        super().__init__(decoder.latent, encoder.factor, scaling, shift)
        if encoder.factor != decoder.factor or encoder.latent != 2 * decoder.latent:
            raise ValueError(
                f"the encoder must have as many levels as the decoder and twice its {decoder.latent} latent channels, "
                f"not {encoder.latent}"
            )
        self.encoder, self.decoder = encoder, decoder
        self.quant_conv = nn.Conv2d(2 * self.latent, 2 * self.latent, 1) if quant else nn.Identity()
        self.post_quant_conv = nn.Conv2d(self.latent, self.latent, 1) if post_quant else nn.Identity()

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> mu and log sigma^2 [B, Z, h, w], float32 at least. ValueError unless f divides H and W."""
        self.grid_of((images.shape[-2], images.shape[-1]))
        mean, log_variance = precise(self.quant_conv(self.encoder(images))).chunk(2, 1)
        return mean, log_variance.clamp(LOW, HIGH)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> scaled latents z [B, Z, h, w]: a sample by standard normal ``noise`` of that shape, or
        without it the mean."""
        mean, log_variance = self.moments(images)
        return self.scaled(mean if noise is None else gaussian(mean, log_variance / 2, noise))

    def draw(self, latents: Tensor) -> Tensor:
        return precise(self.decoder(self.post_quant_conv(latents)))


@dataclass(frozen=True)
class KLSizes:
    """What a published network is built of, whose encoder and decoder are alike. channels: C. latent: Z. The others: see
    :class:`~sensorium.networks.autoencoder.Coder` and :class:`KLAutoencoder`."""

    latent: Count
    width: Count
    mults: tuple[Count, ...]
    layers: Count
    attention: tuple[bool, ...]
    channels: Count
    groups: Count
    middle_attention: bool
    quant: bool
    post_quant: bool

    @classmethod
    def of(cls, network: KLAutoencoder) -> KLSizes:
        coder = network.encoder
        quant, post, middle = (
            not isinstance(part, nn.Identity)
            for part in (network.quant_conv, network.post_quant_conv, coder.mid.attn_1)
        )
        numbers = (coder.width, coder.mults, coder.layers, coder.attention, coder.channels, coder.groups)
        return cls(network.latent, *numbers, middle, quant, post)

    def build(self) -> KLAutoencoder:
        """A network with random weights."""
        return built(**asdict(self))


def built(latent: int, quant: bool, post_quant: bool, **coder: Any) -> KLAutoencoder:
    """A network whose encoder and decoder have the same numbers, ``coder``."""
    return KLAutoencoder(
        Encoder(latent=2 * latent, **coder), Decoder(latent=latent, **coder), quant=quant, post_quant=post_quant
    )


def sized(size: str, image_size: int, *, latent: int | None = None) -> KLAutoencoder:
    """A network by name (see ``KL_SIZES``), with ``latent`` other than its own latent channels. The scaling is 1: to be
    measured.

    Raises ``SensoriumError`` if the factor does not divide the image size.
    """
    numbers = KL_SIZES[size] if latent is None else KL_SIZES[size]._replace(latent=latent)
    return KLAutoencoder(*coders(size, numbers, image_size, each=2), scaling=1.0)
