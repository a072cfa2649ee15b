"""What the autoencoders of latent diffusion share (Rombach et al., 2021, arXiv:2112.10752): images as maps of latents that are about as
large as noise, and back.

    z = s (E(x) - b),     y = G(z / s + b)
Shapes: B images, C channels, H x W pixels, Z latent channels, h x w = H / f x W / f positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class LatentNetwork(nn.Module, ABC):
    """latent: Z. factor: f. scaling, shift: s and b, kept with the weights."""

    scaling: Tensor
    shift: Tensor

    def __init__(self, latent: int, factor: int, scaling: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        if not 0 < scaling < float("inf"):
            raise ValueError(f"scaling must be a finite number above 0, got {scaling}")
        self.latent, self.factor = latent, factor
        self.register_buffer("scaling", torch.tensor(scaling))
        self.register_buffer("shift", torch.tensor(shift))

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> scaled latents z [B, Z, h, w]. ValueError unless f divides H and W."""

    @abstractmethod
    def draw(self, latents: Tensor) -> Tensor:
        """Latents as they are before they are scaled -> images, as :meth:`decode`."""

    def decode(self, z: Tensor, *, at_once: int | None = None) -> Tensor:
        """Scaled latents [B, Z, h, w] -> images [B, C, H, W], float32 at least, not clamped. at_once: how many images
        are decoded together, by default all; 1 bounds the memory for large ones."""
        parts = z.split(at_once or max(1, len(z)))
        return torch.cat([self.draw(part / self.scaling + self.shift) for part in parts])

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
