"""Latent diffusion: high-resolution image synthesis with latent diffusion models (Rombach, Blattmann, Lorenz, Esser & Ommer, 2021,
arXiv:2112.10752).

A frozen autoencoder encodes images as small maps of latents z; a diffusion learns them, given what a text says:
    L = E |F(a z + s n, t, text) - target|^2,        text = tower(tokens) [T, D], by cross-attention                            (eq. 3)
The text tower (CLIP's architecture, as in Stable Diffusion) is trained with the U-Net, as in the paper (section 4.3.1), or it is a trained
one that is frozen, as in Stable Diffusion. The autoencoder has Gaussian latents or a codebook (section 3.1). A part of the texts is left
empty in training, so that guidance works (Ho & Salimans, 2022, arXiv:2207.12598):
    D = D(empty) + g (D(text) - D(empty))
Noise has 1,000 steps, so that a run is exported as a folder that diffusers opens.
Shapes: B images, H x W pixels, Z latent channels, h x w places, T tokens, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import FromNoise, IterativeGenerator, TextConditional
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.generative.pipeline import Schedule, TextToPicture, guided
from sensorium.method import Method
from sensorium.networks.latents import LatentNetwork
from sensorium.networks.mmdit import MMDiT
from sensorium.networks.text import TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.parts.denoising.denoiser import broad, denoising_loss
from sensorium.parts.denoising.frames import Weight
from sensorium.parts.denoising.samplers import STEPPED, STOCHASTIC, Denoiser, Sampler, evaluations, sampled

CHUNK = 64  # samples at a time


class LatentDiffusion(Method, TextConditional, IterativeGenerator, FromNoise):
    """unet: or an MM-DiT, of the autoencoder's latents and the tower's width. autoencoder: frozen. text: trained, or with ``frozen_text``
    frozen, too. empty: tokens of the empty text, int64 [T]. size: H, W of the images. drop: which part of the texts is left empty in
    training. guidance, sampler, usual_steps: of :meth:`sample`."""

    empty: Tensor
    samplers = STEPPED

    def __init__(
        self,
        unet: TextUNet | MMDiT,
        autoencoder: LatentNetwork,
        text: TextTower,
        empty: Tensor,
        size: tuple[int, int],
        schedule: Schedule,
        *,
        frozen_text: bool = False,
        weight: Weight = "simple",
        drop: float = 0.1,
        guidance: float = 3.0,
        sampler: Sampler = "dpm",
        usual_steps: int = 25,
    ) -> None:
        super().__init__()
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {drop}")
        self.unet, self.autoencoder, self.text, self.frozen_text = unet, autoencoder, text, frozen_text
        autoencoder.requires_grad_(False).eval()
        if frozen_text:
            text.requires_grad_(False).eval()
        self.register_buffer("empty", empty)
        self.shape, self.grid, self.context = (3, *size), autoencoder.grid_of(size), len(empty)
        self.start_shape = (unet.channels, *self.grid)
        self.schedule, self.drop, self.guidance = schedule, drop, guidance
        self.sampler: str = sampler
        self.usual_steps = usual_steps
        self.frame = schedule.frame(weight)

    def prompted(self, tokens: CLIPTokens) -> TextToPicture:
        """Its networks as those of a pipeline."""
        return TextToPicture(
            self.unet, self.autoencoder, self.text, tokens, self.schedule, self.guidance, self.usual_steps
        ).eval()

    def train(self, mode: bool = True) -> LatentDiffusion:
        super().train(mode)
        self.autoencoder.eval()
        if self.frozen_text:
            self.text.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``latent`` and normal ``noise`` [B, Z, h, w], ``tokens`` int64 [B, T], ``drop`` bool [B] and ``level`` [B] in (0, 1) -> the loss.
        Logs ``explained``, which part of what the U-Net should say it says: 0 for zeros."""
        text = self.text.encode(torch.where(batch["drop"][:, None], self.empty, batch["tokens"]))
        net = lambda x, time: self.unet(x, time, text)  # noqa: E731
        return denoising_loss(self.frame, net, batch["latent"], batch["noise"], batch["level"])

    def denoiser(self, tokens: Tensor | None, guidance: float) -> Denoiser:
        """D of latents, given tokens int64 [B, T], or None for no text; guidance of 1 costs one evaluation of the U-Net, else two."""
        empty = self.text.encode(self.empty[None])
        text = empty if tokens is None else self.text.encode(tokens)
        scale = 1.0 if tokens is None else guidance

        def denoise(z: Tensor, sigma: Tensor) -> Tensor:
            shape = (len(z), *empty.shape[1:])
            return guided(self.frame, self.unet, text.expand(shape), empty.expand(shape), scale)(z, sigma)

        return denoise

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        trace: bool = False,
        condition: Tensor | None = None,
        guidance: float | None = None,
        start: Tensor | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """``n`` images [n, 3, H, W], or with ``trace`` their trajectories [S + 1, n, 3, H, W].

        condition: tokens int64 [T] for all, or [n, T]. start: noise [n, Z, h, w], else of ``seed``. sampler: by default that of this
        diffusion; of a start, where that one draws more noise, Euler's. Noise is drawn on the CPU for all at once, so that a device changes
        nothing.
        """
        sigmas, generator = self.schedule.sigmas(steps or self.usual_steps), torch.Generator().manual_seed(seed)
        noise = self.noise_of(n, generator, start)
        if sampler is None:
            sampler = "euler" if start is not None and self.sampler in STOCHASTIC else self.sampler
        like, scale, done = self.autoencoder.scaling, self.guidance if guidance is None else guidance, []
        tokens = None if condition is None else condition.expand(n, -1).to(like.device)
        for k in range(0, n, CHUNK):
            denoise = self.denoiser(None if tokens is None else tokens[k : k + CHUNK], scale)
            z = noise[k : k + CHUNK].to(like) * float((1 + sigmas[0].square()).sqrt())
            path = sampled(denoise, z, sigmas, sampler, generator=generator, trace=trace)
            path = path * broad((1 + sigmas.square()).rsqrt(), path) if trace else path
            done.append(
                self._decoded(path.flatten(0, 1)).unflatten(0, path.shape[:2]) if trace else self._decoded(path)
            )
        return torch.cat(done, 1 if trace else 0)

    def evaluations(self, sampler: str, steps: int) -> int:
        return evaluations(sampler, steps, self.schedule.to_data)

    def _decoded(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(z, at_once=CHUNK).clamp(-1, 1)
