"""Patches: an image as a sequence of flattened squares, and back.

Patches are in row-major order, as in every ViT. There are two orders of the pixels inside a patch: a
convolution's (channel, row, column), which ``PatchEmbed`` needs, and MAE's (row, column, channel), which ``patchify`` gives.
Shapes: B images, C channels, p pixels per side of a patch, N = H' * W' patches, P = p * p * C.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def grid_of(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Patches (rows, columns); ``SensoriumError`` with the legal choices if the patch does not divide the image."""
    if patch_size < 1 or height % patch_size or width % patch_size or not height or not width:
        legal = [d for d in divisors(height) if width % d == 0 and d <= 64]
        sizes = " or ".join(
            f"{max(1, -(-height // patch_size) + less) * patch_size}x{max(1, -(-width // patch_size) + less) * patch_size}"
            for less in (-1, 0)
            if patch_size > 0
        )
        raise SensoriumError(
            f"patch_size {patch_size} does not divide a {height}x{width} image: "
            f"choose patch_size from {', '.join(map(str, legal)) or 'nothing (the image is empty)'}"
            + (f", or resize the images to {sizes}." if sizes else ".")
        )
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, N, P], the pixels of a patch in the order (row, column, channel)."""
    B, C, H, W = images.shape
    h, w = grid_of(H, W, patch_size)
    squares = images.reshape(B, C, h, patch_size, w, patch_size)
    return squares.permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, patch_size * patch_size * C)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """The inverse of ``patchify``: [B, N, P] and the grid (H', W') -> [B, C, H, W]."""
    (h, w), p = grid, patch_size
    squares = patches.reshape(len(patches), h, w, p, p, -1)
    return squares.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, h * p, w * p)


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows per sample: [B, N, D] and [B, n] -> [B, n, D]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class PatchEmbed(nn.Module):
    """A linear map of every patch. The weight is kept as a convolution's [D, C, p, p], as published checkpoints have it.

    Computed as a matrix product, which equals the strided convolution, is faster on a CPU, and can skip patches.
    """

    def __init__(self, patch_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, N, D]; with ``keep`` [B, n] only those patches, in that order, [B, n, D]."""
        B, C, H, W = images.shape
        (h, w), p = grid_of(H, W, self.patch_size), self.patch_size
        pixels = images.reshape(B, C, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * p * p)
        if keep is not None:
            pixels = rows_at(pixels, keep)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
