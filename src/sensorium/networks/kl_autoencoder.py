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

import torch
from torch import Tensor, nn

from sensorium.base.precision import precise
from sensorium.networks.autoencoder import Decoder, Encoder, Size, coders
from sensorium.parts.estimators import gaussian

LOW, HIGH = -30.0, 20.0  # of log sigma^2, in the authors' code
SCALING = 0.18215  # of Stable Diffusion

# "base" is Stable Diffusion's; "micro" and "small" are for a CPU and images of about 28 to 64 pixels.
KL_SIZES: dict[str, Size] = {
    "micro": Size(16, (1, 2, 4), 1, 4, 4, 0),
    "small": Size(32, (1, 2, 4), 2, 4, 8, 0),
    "base": Size(128, (1, 2, 4, 4), 2, 4, 32, 0),
}


class KLAutoencoder(nn.Module):
    """Images [B, C, H, W], usually in -1..1, as latents [B, Z, h, w], and back; differentiable both ways.

    encoder: of 2 Z latent channels, decoder: of Z. quant, post_quant: whether there are Q and P. scaling, shift: s and
    b, kept with the weights.
    """

    scaling: Tensor
    shift: Tensor

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
        super().__init__()
        if encoder.factor != decoder.factor or encoder.latent != 2 * decoder.latent:
            raise ValueError(
                f"the encoder must have as many levels as the decoder and twice its {decoder.latent} latent channels, "
                f"not {encoder.latent}"
            )
        if not 0 < scaling < float("inf"):
            raise ValueError(f"scaling must be a finite number above 0, got {scaling}")
        self.encoder, self.decoder, self.latent, self.factor = encoder, decoder, decoder.latent, encoder.factor
        self.quant_conv = nn.Conv2d(2 * self.latent, 2 * self.latent, 1) if quant else nn.Identity()
        self.post_quant_conv = nn.Conv2d(self.latent, self.latent, 1) if post_quant else nn.Identity()
        self.register_buffer("scaling", torch.tensor(scaling))
        self.register_buffer("shift", torch.tensor(shift))

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

    def decode(self, z: Tensor, *, at_once: int | None = None) -> Tensor:
        """Scaled latents [B, Z, h, w] -> images [B, C, H, W], float32 at least, not clamped. at_once: how many images
        are decoded together, by default all; 1 bounds the memory for large ones."""
        parts = z.split(at_once or max(1, len(z)))
        return torch.cat([self.draw(part / self.scaling + self.shift) for part in parts])

    def draw(self, latents: Tensor) -> Tensor:
        """Latents as they are before they are scaled -> images, as :meth:`decode`."""
        return precise(self.decoder(self.post_quant_conv(latents)))

    def scaled(self, latents: Tensor) -> Tensor:
        """(latents - b) s."""
        return (latents - self.shift) * self.scaling

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """h, w of images of H x W pixels; ValueError if f does not divide them."""
        if size[0] % self.factor or size[1] % self.factor:
            near = [max(1, round(side / self.factor)) * self.factor for side in size]
            raise ValueError(
                f"images of {size[0]}x{size[1]} pixels: both sides must be multiples of {self.factor}; the nearest are "
                f"{near[0]}x{near[1]}"
            )
        return size[0] // self.factor, size[1] // self.factor


def sized(size: str, image_size: int, *, latent: int | None = None) -> KLAutoencoder:
    """A network by name (see ``KL_SIZES``), with ``latent`` other than its own latent channels. The scaling is 1: to be
    measured.

    Raises ``SensoriumError`` if the factor does not divide the image size.
    """
    numbers = KL_SIZES[size] if latent is None else KL_SIZES[size]._replace(latent=latent)
    return KLAutoencoder(*coders(size, numbers, image_size, each=2), scaling=1.0)
