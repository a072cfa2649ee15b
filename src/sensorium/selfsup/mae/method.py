"""MAE: masked autoencoders are scalable vision learners (He et al., 2022, arXiv:2111.06377).

Three quarters of an image's patches are removed; the encoder gets the rest, and a small decoder predicts the removed
pixels from the encoder's output and a learned mask token for each removed patch:
    shuffle = argsort(noise),   keep the first N (1 - mask_ratio) of it                    (section 3, "masking")
    z = encode(embed(image)[keep])                                                         ("encoder")
    y = decoder([z, mask tokens] + positions)                                              ("decoder")
    L = mean over removed patches of |y - t|^2,   t = (pixels - mean) / sqrt(var + 1e-6)   ("reconstruction target")
A transformer without causal mask is equivariant to the order of its tokens, so the decoder runs in shuffled order: kept
patches first, removed ones last. Nothing has to be unshuffled, and what only the loss needs (the last block's queries
and MLP, the norm, the prediction) is computed for the removed rows only. The results equal the paper's. Decoder
parameters carry the names of the authors' code. Which patches are removed: parts/masking.py. With mask_ratio 0 none are,
and all are predicted: an autoencoder of the same network, to compare with.
Shapes: B images, N patches (n kept), P = p * p * 3 pixel values per patch in the order (row, column, channel).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone, Reconstructor, TokenEncoder, require
from sensorium.base.draw import Draw
from sensorium.method import Method, Progress, Sign
from sensorium.parts.block import Block
from sensorium.parts.init import init_transformer_
from sensorium.parts.masking import Masking, known, ranks
from sensorium.parts.moe.layer import update_biases
from sensorium.parts.patches import patchify, rows_at, unpatchify
from sensorium.parts.positions.grid import resample, sincos_2d


class MAE(Method, HasBackbone, Encoder, Reconstructor):
    """A masked autoencoder around a backbone.

    ``mask_ratio``: fraction of the patches that is removed; ``masking``: how they are chosen; ``normalize_targets``
    standardizes each target patch by its own mean and (unbiased) variance; ``eps`` and ``qkv_bias`` are the decoder's.
    ``backbone`` is kept after training.
    """

    # Features of a reconstruction have a large common part: they are near to each other, and need not differ in angle.
    signs = (Sign("spread", "features", "nearly equal for all images", least=0.005),)
    panels = ("original", "visible patches", "reconstruction")

    def __init__(
        self,
        backbone: TokenEncoder,
        *,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        decoder_mlp_ratio: float = 4.0,
        mask_ratio: float = 0.75,
        masking: Masking = "random",
        normalize_targets: bool = True,
        eps: float = 1e-6,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        require(backbone, TokenEncoder, by="MAE", choices="a ViT (vit-micro ... vit-huge)")
        if decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {decoder_depth}")
        self.backbone = backbone
        self.dim, self.patch_size, self.grid = backbone.dim, backbone.patch_size, backbone.grid
        self.image_size = backbone.image_size
        self.mask_ratio, self.normalize_targets = mask_ratio, normalize_targets
        self.masking: Masking = known(masking)
        self.kept(self.grid[0] * self.grid[1])

        self.decoder_embed = nn.Linear(backbone.dim, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(sincos_2d(self.grid, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, mlp_ratio=decoder_mlp_ratio, eps=eps, qkv_bias=qkv_bias)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=eps)
        self.decoder_pred = nn.Linear(decoder_width, self.patch_size**2 * 3)
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            init_transformer_(part, "xavier")

    def kept(self, patches: int) -> int:
        """How many of ``patches`` the encoder gets; ``ValueError`` if none would be kept."""
        kept = int(patches * (1 - self.mask_ratio))
        if not 0 < kept <= patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} keeps {kept} of {patches} patches: keep at least 1, at most all"
            )
        return kept

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W] and, optional, ``noise`` [B, N] (smallest kept) -> the loss.

        Logs ``explained``, the fraction of the targets' energy that the prediction explains: 0 for predicting zeros.
        """
        images = batch["image"]
        keep, removed = self.mask(images, batch.get("noise"))
        targets = self.targets(rows_at(patchify(images, self.patch_size), self.predicted(keep, removed)))
        loss = F.mse_loss(self.predict(images, keep, removed).float(), targets)
        return {"loss": loss, "explained": 1 - loss.detach() / targets.square().mean().clamp_min(1e-12)}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self)

    def mask(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices of the kept [B, n] and the removed patches [B, N - n], in the order of the noise."""
        h, w = self.backbone.grid_of(images)
        if noise is None:
            noise = torch.rand(len(images), h * w, device=images.device)
        if noise.shape != (len(images), h * w):
            raise ValueError(f"noise must be [{len(images)}, {h * w}] (one per patch), got {list(noise.shape)}")
        shuffle = torch.argsort(noise, dim=1)
        n = self.kept(h * w)
        return shuffle[:, :n], shuffle[:, n:]

    def predicted(self, keep: Tensor, removed: Tensor) -> Tensor:
        """Indices of the patches that are predicted: the removed ones, or all if none are removed."""
        return removed if removed.shape[1] else keep

    def targets(self, pixels: Tensor) -> Tensor:
        """Pixels of patches [..., P] -> the decoder's targets [..., P], float32."""
        pixels = pixels.float()
        if not self.normalize_targets:
            return pixels
        var, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return (pixels - mean) * torch.rsqrt(var + 1e-6)

    def predict(self, images: Tensor, keep: Tensor, removed: Tensor) -> Tensor:
        """Targets [B, N - n, P] of the ``predicted`` patches, in their order."""
        latent = self.decoder_embed(self.backbone.encode(self.backbone.embed(images, keep)))  # [B, 1 + n, .]
        table = resample(self.decoder_pos_embed, self.grid, self.backbone.grid_of(images))[0]
        seen = torch.cat([F.pad(keep + 1, (1, 0)), removed + 1], dim=1)  # rows of the table; 0 is the class token's
        gaps = self.mask_token.expand(len(images), removed.shape[1], -1)
        x = torch.cat([latent, gaps], dim=1) + F.embedding(seen, table)
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        count = self.predicted(keep, removed).shape[1]  # they are the last rows
        x = self.decoder_blocks[-1](x, slice(x.shape[1] - count, None))
        return self.decoder_pred(self.decoder_norm(x))

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
