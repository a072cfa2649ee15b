"""MAE: masked autoencoders are scalable vision learners (He et al., 2022, arXiv:2111.06377).

Three quarters of an image's patches are removed; the encoder gets the rest, and a small decoder predicts the removed
pixels. Masking, decoder, targets and loss are in :mod:`sensorium.selfsup.masked`; here is what is a picture's:
    patch      p x p pixels, t = (pixels - mean) / sqrt(var + 1e-6)      (section 3, "reconstruction target")
    positions  the authors' fixed two-dimensional sine-cosine table, of encoder and decoder
Which patches are removed: parts/masking.py.
Shapes: B images, N patches (n kept), P = p * p * 3 pixel values per patch in the order (row, column, channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, HasBackbone, Reconstructor, TokenEncoder, require
from sensorium.base.draw import Draw
from sensorium.method import Sign
from sensorium.parts.masking import Masking, known, ranks
from sensorium.parts.patches import patchify, rows_at, unpatchify
from sensorium.parts.positions.grid import resample, sincos_2d
from sensorium.selfsup.masked import MaskedAutoencoder


class MAE(MaskedAutoencoder, HasBackbone, Encoder, Reconstructor):
    """A masked autoencoder of images around a backbone.

    ``masking``: how the removed patches are chosen; ``numbers``: those of :class:`MaskedAutoencoder`. ``backbone`` is
    kept after training.
    """

    field = "image"
    # Features of a reconstruction have a large common part: they are near to each other, and need not differ in angle.
    signs = (Sign("spread", "features", "nearly equal for all images", least=0.005),)
    panels = ("original", "visible patches", "reconstruction")

    def __init__(
        self, backbone: TokenEncoder, *, decoder_width: int, masking: Masking = "random", **numbers: Any
    ) -> None:
        require(backbone, TokenEncoder, by="MAE", choices="a ViT (vit-micro ... vit-huge)")
        super().__init__(backbone, backbone.patch_size**2 * 3, decoder_width=decoder_width, **numbers)
        self.patch_size, self.grid = backbone.patch_size, backbone.grid
        self.image_size = backbone.image_size
        self.masking: Masking = known(masking)
        self.kept(math.prod(self.grid))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(self.grid, decoder_width), requires_grad=False)

    def patches(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, P]."""
        return patchify(x, self.patch_size)

    def count(self, x: Tensor) -> int:
        """N of images [B, 3, H, W]."""
        return math.prod(self.backbone.grid_of(x))

    def positions(self, x: Tensor) -> Tensor:
        """The table for the grid of images [B, 3, H, W]: [1 + N, W]."""
        return resample(self.decoder_pos_embed, self.grid, self.backbone.grid_of(x))[0]

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of predictions of zero it is 1, the variance of the targets."""
        return 0.0, 1.0

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the backbone's features of the whole image."""
        return self.backbone.features(images)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, seed: int = 0, noise: Tensor | None = None) -> Tensor:
        """Side by side: image | visible patches (removed ones are 0) | reconstruction, [B, 3, H, 3 W].

        With normalized targets, a predicted patch gets the mean and standard deviation of the true one, as in the
        paper's figures. noise: [B, N] (smallest kept), by default drawn from the seed.
        """
        grid = self.backbone.grid_of(images)
        if noise is None:
            draw, count = Draw.seeded(seed, 0, len(images), device=images.device), grid[0] * grid[1]
            noise = ranks(self.masking, draw, grid, count - self.kept(count))
        keep, removed = self.mask(images, noise)
        places = self.predicted(keep, removed)
        pixels = patchify(images, self.patch_size)
        predicted = self.predict(images, keep, removed).float()
        if self.normalize_targets:
            var, mean = torch.var_mean(rows_at(pixels, places).float(), dim=-1, keepdim=True)
            predicted = predicted * (var + 1e-6).sqrt() + mean
        where, gone = (index.unsqueeze(-1).expand(-1, -1, pixels.shape[-1]) for index in (places, removed))
        masked = pixels.scatter(1, gone, 0.0)
        filled = pixels.scatter(1, where, predicted.to(pixels.dtype))
        return torch.cat([images, *(unpatchify(x, grid, self.patch_size) for x in (masked, filled))], dim=-1)
