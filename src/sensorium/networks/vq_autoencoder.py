"""The autoencoder with a codebook as latent diffusion sees it: high-resolution image synthesis with latent diffusion models (Rombach et al.,
2021, arXiv:2112.10752, section 3.1 and appendix G).

Its latents are the encoder's vectors before they are quantized; quantization is the first layer of the decoder.
    z = Q(E(x)),     y = G(P(q(z))),     q(z): the nearest codes
A space with codes has a variance close to 1, and is not scaled (appendix D.1).
Shapes: B images, C channels, H x W pixels, Z channels of a code, h x w positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.base.precision import precise
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.latents import LatentNetwork
from sensorium.parts.quantize import Quantizer, nearest


class VQAutoencoder(LatentNetwork):
    """quant_conv, post_quant_conv: Q and P, to and from the channels of ``quantizer``'s codes."""

    def __init__(
        self,
        encoder: Encoder,
        quant_conv: nn.Module,
        quantizer: Quantizer,
        post_quant_conv: nn.Module,
        decoder: Decoder,
    ) -> None:
        super().__init__(quantizer.dim, encoder.factor)
        self.encoder, self.quant_conv, self.quantize = encoder, quant_conv, quantizer
        self.post_quant_conv, self.decoder = post_quant_conv, decoder

    def encode(self, images: Tensor) -> Tensor:
        self.grid_of((images.shape[-2], images.shape[-1]))
        return self.scaled(precise(self.quant_conv(self.encoder(images))))

    def draw(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            codes = nearest(precise(latents).movedim(1, -1), self.quantize.embedding.weight)
        return precise(self.decoder(self.post_quant_conv(self.quantize.look_up(codes))))
