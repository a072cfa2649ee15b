"""SimMIM: a simple framework for masked image modeling (Xie et al., 2022, arXiv:2111.09886).

Large squares of an image are masked, a token takes the place of their patches, and the whole grid goes through the encoder;
one linear layer predicts the pixels of the masked squares:
    M = ceil(U mask_ratio) of the U mask units                                             (section 3.2, "masking strategy")
    z = encoder(where(M, mask token, embed(image)) + positions)
    y = head(z), a 1x1 convolution, of stride * stride * 3 channels, which are laid out as pixels      (3.3, "prediction head")
    L = mean over masked pixels of |y - x|,   x: the normalized pixels                     (3.4, "prediction targets")
The mean is taken over each image, then over images: what the authors' code computes, for in it all images have equally many
masked pixels. The unit is a multiple of the patch; units at the border may reach beyond the image.
Shapes: B images, U mask units, H' x W' patches, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, MaskedEncoder, Reconstructor, require
from sensorium.base.draw import Draw
from sensorium.method import Method, Progress, Sign
from sensorium.parts.masking import Masking, highest, known, ranks
from sensorium.parts.moe.layer import update_biases


def usual_unit(side: int, patch: int) -> int:
    """A mask unit in pixels as the paper's 32 of 192: the multiple of the patch that is nearest to a sixth of the side,
    among those that divide it if there are any."""
    every = range(patch, max(side, patch) + 1, patch)
    return min([unit for unit in every if side % unit == 0] or every, key=lambda unit: abs(unit - side / 6))


class SimMIM(Method, HasBackbone, Encoder, Reconstructor):
    """Masked image modeling around a backbone.

    ``mask_unit``: side of the squares that are masked, in pixels, a multiple of the patch; ``mask_ratio``: fraction of them
    that is masked; ``masking``: how they are chosen. ``backbone`` is kept after training.
    """

    # Features of a reconstruction have a large common part: they are near to each other, and need not differ in angle.
    signs = (Sign("spread", "features", "nearly equal for all images", least=0.005),)
    panels = ("original", "visible patches", "reconstruction")

    def __init__(
        self, backbone: MaskedEncoder, *, mask_unit: int, mask_ratio: float = 0.6, masking: Masking = "random"
    ) -> None:
        super().__init__()
        require(
            backbone, MaskedEncoder, by="SimMIM", choices="a ViT or a Swin (vit-micro ... vit-huge, swin-micro ...)"
        )
        self.backbone = backbone
        self.dim, self.image_size = backbone.dim, backbone.image_size
        self.patch_size, self.stride = backbone.strides[0], backbone.strides[-1]
        if mask_unit < 1 or mask_unit % self.patch_size:
            raise ValueError(f"mask_unit {mask_unit} is no multiple of the patch, {self.patch_size} pixels")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio {mask_ratio} is not between 0 and 1")
        self.mask_unit, self.mask_ratio = mask_unit, mask_ratio
        self.masking: Masking = known(masking)
        self.mask_token = nn.Parameter(torch.empty(1, 1, backbone.channels[0]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Conv2d(backbone.dim, self.stride**2 * 3, 1)

    def units(self, height: int, width: int) -> tuple[int, int]:
        """Mask units (rows, columns) that cover an image."""
        return -(-height // self.mask_unit), -(-width // self.mask_unit)

    def masked(self, units: int) -> int:
        """How many of ``units`` are masked; ``ValueError`` if all would be."""
        masked = math.ceil(units * self.mask_ratio)
        if masked >= units:
            raise ValueError(f"mask_ratio {self.mask_ratio} and mask_unit {self.mask_unit} mask all of an image")
        return masked

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W] and, optional, ``noise`` [B, U] (largest masked) -> the loss.

        Logs ``explained``, the fraction of the masked pixels' absolute values that the prediction explains: 0 for
        predicting zeros, the mean color.
        """
        images = batch["image"]
        mask = self.mask(images, batch.get("noise"))
        hidden = self.pixels(mask, images)
        error = (self.predict(images, mask).float() - images.float()).abs()
        loss, most = (_mean_of(values, hidden) for values in (error, images.float().abs()))
        return {"loss": loss, "explained": 1 - loss.detach() / most.clamp_min(1e-12)}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self)

    def mask(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Whether each patch is masked, bool [B, H', W']: those of the units with the largest noise."""
        rows, columns = self.units(images.shape[-2], images.shape[-1])
        if noise is None:
            noise = torch.rand(len(images), rows * columns, device=images.device)
        if noise.shape != (len(images), rows * columns):
            raise ValueError(
                f"noise must be [{len(images)}, {rows * columns}] (one per mask unit), got {list(noise.shape)}"
            )
        units = highest(noise, self.masked(rows * columns)).unflatten(1, (rows, columns))
        height, width = (-(-side // self.patch_size) for side in images.shape[-2:])
        return _enlarged(units, self.mask_unit // self.patch_size)[:, :height, :width]

    def pixels(self, mask: Tensor, images: Tensor) -> Tensor:
        """A mask of patches [B, H', W'] as one of pixels [B, 1, H, W]."""
        return _enlarged(mask, self.patch_size)[:, None, : images.shape[-2], : images.shape[-1]]

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """[B, 3, H, W] with the patches masked that ``mask``, bool [B, H', W'], says -> all pixels [B, 3, H, W]."""
        found = self.head(self.backbone.masked_map(images, mask, self.mask_token))
        return F.pixel_shuffle(found, self.stride)[..., : images.shape[-2], : images.shape[-1]]

    def loss_scale(self, scalars: Mapping[str, float]) -> tuple[float, float] | None:
        """Of predictions of zero it is the mean absolute value of normalized pixels, near that of normal ones."""
        return 0.0, math.sqrt(2 / math.pi)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the backbone's features of the whole image."""
        return self.backbone.features(images)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, seed: int = 0, noise: Tensor | None = None) -> Tensor:
        """Side by side: image | visible patches (masked ones are 0) | reconstruction, [B, 3, H, 3 W].

        noise: [B, U] (largest masked), by default drawn from the seed.
        """
        if noise is None:
            grid = self.units(images.shape[-2], images.shape[-1])
            draw = Draw.seeded(seed, 0, len(images), device=images.device)
            noise = ranks(self.masking, draw, grid, self.masked(grid[0] * grid[1]))
        mask = self.mask(images, noise)
        hidden = self.pixels(mask, images)
        filled = torch.where(hidden, self.predict(images, mask).to(images.dtype), images)
        return torch.cat([images, images.masked_fill(hidden, 0.0), filled], dim=-1)


def _enlarged(mask: Tensor, times: int) -> Tensor:
    """[B, H, W] -> [B, times * H, times * W]."""
    return mask.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def _mean_of(values: Tensor, hidden: Tensor) -> Tensor:
    """The mean over images of the mean over their hidden pixels: [B, 3, H, W], bool [B, 1, H, W] -> scalar."""
    sums = (values * hidden).flatten(1).sum(1)
    return (sums / (3 * hidden.flatten(1).sum(1))).mean()
