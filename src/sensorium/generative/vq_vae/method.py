"""VQ-VAE: neural discrete representation learning (van den Oord, Vinyals & Kavukcuoglu, 2017, arXiv:1711.00937).

An image is encoded as a grid of codes of a learned codebook and decoded from them:
    z = E(x),   z_q = q(z): the nearest codes,   y = G(z_q)
    L = mean (x - y)^2 / v + mean (sg(z) - z_q)^2 + beta mean (z - sg(z_q))^2                                (eq. 3)
v is the variance of the data (the authors' code). Or codes are moving averages of the vectors that chose them, in the place of the
second term (appendix A.1):
    N_k <- g N_k + (1 - g) n_k,     m_k <- g m_k + (1 - g) sum z,     e_k = m_k / N_k
with N smoothed, so that a code that nobody chooses stays (the authors' code). Unused codes are reset to outputs of the encoder
(``parts/quantize.py``), which is not in the paper and off with ``revive`` 0.
Shapes: B images, H x W pixels, h x w codes, D channels of a code, K codes, N vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sensorium.abilities import HasLatents, Tokenizer
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.vq_autoencoder import VQAutoencoder
from sensorium.parts.gather import gather, sum_over_processes
from sensorium.parts.quantize import Quantizer, counts_of, dead, perplexity, revive_

Codebook = Literal["gradient", "average"]
SMOOTHING = 1e-5


class VQVAE(Method, Tokenizer, HasLatents):
    """size: H, W of the images, multiples of ``encoder``'s factor. codebook: how codes follow the vectors. variance: of the data.
    memory: momentum of the averages. revive: a code is reset if its usage is below this fraction of uniform usage, 0 for never."""

    usage: Tensor
    sums: Tensor
    sizes: Tensor

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        quantizer: Quantizer,
        size: tuple[int, int],
        *,
        codebook: Codebook = "average",
        variance: float = 1.0,
        memory: float = 0.99,
        revive: float = 0.1,
    ) -> None:
        super().__init__()
        if codebook not in get_args(Codebook):
            raise ValueError(f"codebook must be one of {', '.join(get_args(Codebook))}, got {codebook!r}")
        if not 0 <= memory < 1 or not 0 <= revive < 1 or variance <= 0:
            raise ValueError(f"memory {memory} and revive {revive} must be in [0, 1), the variance {variance} above 0")
        factor = encoder.factor
        if size[0] % factor or size[1] % factor:
            raise ValueError(f"images of {size[0]}x{size[1]} pixels; both must be multiples of {factor}")
        self.encoder, self.decoder, self.quantize = encoder, decoder, quantizer
        self.before, self.after = (
            nn.Conv2d(encoder.latent, quantizer.dim, 1),
            nn.Conv2d(quantizer.dim, decoder.latent, 1),
        )
        self.codes, self.size, self.grid = quantizer.codes, size, (size[0] // factor, size[1] // factor)
        self.averaged, self.variance, self.memory, self.revive = codebook == "average", variance, memory, revive
        if self.averaged:
            quantizer.requires_grad_(False)
        self.register_buffer("usage", torch.zeros(quantizer.codes))
        self.register_buffer("sums", quantizer.embedding.weight.detach().clone())
        self.register_buffer("sizes", torch.ones(quantizer.codes))
        # Of this step's forwards: codes and vectors. Not a buffer, because wrappers broadcast buffers before each forward.
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` float32 [B, 3, H, W] in -1..1 -> the loss. Logs ``reconstruction``, the first term, and ``perplexity`` of the codes in
        the batch."""
        x = batch["image"]
        z = self.before(self.encoder(x))
        z_q, loss, codes = self.quantize(z)
        if self.averaged:
            loss = self.quantize.beta * (precise(z) - self.quantize.look_up(codes).detach()).square().mean()
        reconstruction = (x - self._draw(z_q)).square().mean() / self.variance
        if self.training:
            self._seen.append((codes.flatten(), precise(z.detach()).movedim(1, -1).flatten(0, -2)))
        return {
            "loss": reconstruction + loss,
            "reconstruction": reconstruction.detach(),
            "perplexity": perplexity(counts_of(codes, self.codes)),
        }

    def before_step(self, at: Progress) -> None:
        self._seen = []

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """Move the averages and the usage of codes over all processes; reset unused codes, identically in all processes."""
        if not self._seen:
            return
        codes, vectors = (torch.cat(each) for each in zip(*self._seen, strict=True))
        counts = sum_over_processes(counts_of(codes, self.codes)).to(self.sizes)
        weight = self.quantize.embedding.weight
        if self.averaged:
            added = sum_over_processes(torch.zeros_like(self.sums).index_add_(0, codes, vectors))
            self.sizes.lerp_(counts, 1 - self.memory)
            self.sums.lerp_(added, 1 - self.memory)
            total = self.sizes.sum()
            smoothed = (self.sizes + SMOOTHING) / (total + self.codes * SMOOTHING) * total
            weight.copy_(self.sums / smoothed[:, None])
        self.usage.lerp_(counts / counts.sum(), 1 - self.memory)
        if self.revive and bool((unused := dead(self.usage, self.revive)).any()):
            dice = torch.Generator().manual_seed(at.step)
            revive_(weight, self.usage, gather(vectors), dice, least=self.revive)
            self.sums[unused], self.sizes[unused] = weight[unused], 1.0
        self._seen = []

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in -1..1 -> codes int64 [B, h, w]."""
        return self.quantize(self.before(self.encoder(images))).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> images [B, 3, H, W] in -1..1."""
        return self._draw(self.quantize.look_up(codes)).clamp(-1, 1)

    def latent_network(self) -> VQAutoencoder:
        return VQAutoencoder(self.encoder, self.before, self.quantize, self.after, self.decoder)

    def _draw(self, z_q: Tensor) -> Tensor:
        return precise(self.decoder(self.after(z_q)))
