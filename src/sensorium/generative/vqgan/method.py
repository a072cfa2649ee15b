"""VQGAN: taming transformers for high-resolution image synthesis (Esser, Rombach & Ommer, 2020, arXiv:2012.09841).

An image is encoded as a small grid of codes of a learned codebook and decoded from them; a perceptual loss and a patch
discriminator make few codes sufficient for realistic images.
    z = E(x),   z_q = q(z): the nearest codes,   y = G(z_q)                                              (eq. 1, 2)
    L_rec = mean |x - y| + w_p LPIPS(x, y)                                                             (section 3.1)
    L_VQ  = L_rec + w_c (mean (sg(z) - z_q)^2 + beta mean (z - sg(z_q))^2)                               (eq. 4)
    generator      min L_VQ + w_d lambda L_G(D(y)),     lambda = |grad L_rec| / (|grad L_G| + delta)     (eq. 5 - 7)
    discriminator  min L_D(D(x), D(y))
The gradients of lambda are with respect to G's last layer. Before ``start`` the adversarial terms are 0 (section 3.1).
Unused codes are reset to outputs of the encoder (:mod:`sensorium.parts.quantize`), which is not in the paper and off
with ``revive`` 0. E ends and G begins with 1 x 1 convolutions to and from the codebook's channels, as in the authors'
code.
Shapes: B images, H x W pixels, h x w codes, D channels of a code, K codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import HasLatents, Tokenizer
from sensorium.base.precision import precise
from sensorium.generative.adversarial import AdversarialAutoencoder, Adversary
from sensorium.method import Progress
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.vq_autoencoder import VQAutoencoder
from sensorium.parts.gather import gather, sum_over_processes
from sensorium.parts.perceptual import Perceptual
from sensorium.parts.quantize import Quantizer, counts_of, dead, perplexity, revive_


class VQGAN(AdversarialAutoencoder, Tokenizer, HasLatents):
    """An autoencoder with a codebook and a discriminator.

    size: H, W of the images, multiples of ``encoder``'s factor. discriminator: images -> logits; None if it is not to
    be trained (:meth:`forward` then raises ValueError). perceptual: two batches of images -> distances [B]; None for
    pixels only. perceptual_weight, adversarial_weight, codebook_weight: w_p, w_d, w_c. start: fraction of the budget
    before the adversarial loss is added. adversary: the kind of L_G and L_D. revive: a code is reset if its usage is
    below this fraction of uniform usage, 0 for never; memory: momentum of the moving average of usage. clip: maximum
    norm of a phase's gradients, 0 for none.
    """

    usage: Tensor

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: Quantizer,
        discriminator: nn.Module | None,
        size: tuple[int, int],
        *,
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 1.0,
        adversarial_weight: float = 0.8,
        codebook_weight: float = 1.0,
        start: float = 0.5,
        adversary: Adversary = "hinge",
        revive: float = 0.1,
        memory: float = 0.99,
        clip: float = 0.0,
    ) -> None:
        super().__init__(
            discriminator, perceptual=perceptual, perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight, start=start, adversary=adversary, clip=clip,
        )  # fmt: skip
        if not 0 <= memory < 1 or not 0 <= revive < 1:
            raise ValueError(f"memory {memory} and revive {revive} must be in [0, 1)")
        if encoder.factor != decoder.factor or encoder.latent != decoder.latent:
            raise ValueError("encoder and decoder must have equally many levels and latent channels")
        self.encoder, self.decoder, self.quantize = encoder, decoder, quantizer
        self.quant_conv = nn.Conv2d(encoder.latent, quantizer.dim, 1)
        self.post_quant_conv = nn.Conv2d(quantizer.dim, decoder.latent, 1)
        self.codebook_weight, self.revive, self.memory = codebook_weight, revive, memory
        self.codes, self.size = quantizer.codes, size
        self.grid = self.grid_of(size)
        self.register_buffer("usage", torch.zeros(quantizer.codes))
        # Of this step's forwards: counts of the codes [K] and the vectors [N, D]. Not a buffer, because wrappers
        # broadcast buffers from the first process before each forward.
        self._seen: list[tuple[Tensor, Tensor]] = []

    def trained(self) -> Iterable[nn.Module]:
        return self.encoder, self.decoder, self.quantize, self.quant_conv, self.post_quant_conv

    def generate(self, batch: Mapping[str, Any], judge: nn.Module) -> dict[str, Tensor]:
        """L_VQ and the adversarial term. Adds ``codebook`` (its loss) and ``perplexity`` of the codes in the batch to
        what is logged."""
        x = batch["image"]
        z = self._vectors(x)
        z_q, codebook, codes = self.quantize(z)
        rec, fooling, logged = self.compared(x, self._draw(z_q), judge, self.decoder.conv_out.weight)
        counts = counts_of(codes, self.codes)
        if self.training and self.revive:
            self._seen.append((counts, z.detach().movedim(1, -1).flatten(0, -2)))
        loss = rec + self.codebook_weight * codebook + fooling
        return {"loss": loss, **logged, "codebook": codebook.detach(), "perplexity": perplexity(counts)}

    def reconstructed(self, batch: Mapping[str, Any]) -> Tensor:
        return self._draw(self.quantize(self._vectors(batch["image"])).vectors)

    def before_step(self, at: Progress) -> None:
        super().before_step(at)
        self._seen = []

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Update the usage of codes over all processes; reset unused codes, identically in all processes.

        Usage starts at 0, so that after the first step most codes are set to vectors of the data.
        """
        if not self._seen:
            return
        counts = sum_over_processes(torch.stack([counts for counts, _ in self._seen]).sum(0))
        self.usage.lerp_((counts / counts.sum()).to(self.usage.dtype), 1 - self.memory)
        if bool(dead(self.usage, self.revive).any()):
            recent = gather(torch.cat([vectors for _, vectors in self._seen]))
            dice = torch.Generator().manual_seed(at.step)
            revive_(self.quantize.embedding.weight, self.usage, recent, dice, least=self.revive)
        self._seen = []

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Grid (rows, columns) of images of H, W pixels; ValueError if they are not multiples of the factor."""
        factor = self.encoder.factor
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"VQGAN: images of {size[0]}x{size[1]} pixels; both must be multiples of {factor}")
        return size[0] // factor, size[1] // factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> codes int64 [B, h, w]. Sizes other than ``size`` are supported."""
        return self.quantize(self._vectors(images)).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> images [B, 3, H, W] in -1..1."""
        return self._draw(self.quantize.look_up(codes)).clamp(-1, 1)

    def latent_network(self) -> VQAutoencoder:
        return VQAutoencoder(self.encoder, self.quant_conv, self.quantize, self.post_quant_conv, self.decoder)

    def _vectors(self, x: Tensor) -> Tensor:
        """z [B, D, h, w]."""
        self.grid_of((x.shape[-2], x.shape[-1]))
        return self.quant_conv(self.encoder(x))

    def _draw(self, z_q: Tensor) -> Tensor:
        """y [B, 3, H, W], float32 at least."""
        return precise(self.decoder(self.post_quant_conv(z_q)))
