"""The image tower of CLIP (Radford et al., 2021, arXiv:2103.00020, section 2.4): a ViT with a norm before the blocks.

    z_0 = LayerNorm([x_class; E patch_1; ...; E patch_N] + E_pos)      patches without bias
    z_l = block_l(z_{l-1})                                             see networks/text.py
    y   = LayerNorm(z_L)
Parameter names are those of timm's ``vision_transformer`` with its norm before the blocks.
Shapes: B images, N = H' * W' patches, n a subset of them, D width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from sensorium.abilities import AttentionMaps, MapEncoder, TokenEncoder
from sensorium.networks.text import Activation, Block, init_blocks_
from sensorium.networks.vit import layer_index
from sensorium.parts.drop import PatchDropout
from sensorium.parts.patches import PatchEmbed, grid_of
from sensorium.parts.positions.grid import Resampling, resample


class CLIPVision(nn.Module, TokenEncoder, MapEncoder, AttentionMaps):
    """CLIP's vision transformer; the class token is its feature.

    ``image_size`` pixels (one number, or height and width), ``patch_size`` pixels, ``hidden`` channels of a block's Mlp
    (four times the width). Images of other sizes are supported if the patch divides them: positions are resampled
    (``resampling``: see ``resample``). Raises ``SensoriumError`` if the patch does not divide the image.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        activation: Activation = "quick_gelu",
        eps: float = 1e-5,
        resampling: Resampling = "bicubic",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.image_size: int | tuple[int, int] = image_size
        self.grid = grid_of(*((image_size, image_size) if isinstance(image_size, int) else image_size), patch_size)
        self.patch_size, self.dim, self.depth, self.heads = patch_size, width, depth, heads
        self.channels, self.strides = (width,), (patch_size,)  # of the one map
        self.hidden = 4 * width if hidden is None else hidden
        self.activation: Activation = activation
        self.eps = eps
        self.resampling: Resampling = resampling
        self.patch_embed = PatchEmbed(patch_size, width)
        self.patch_embed.proj.register_parameter("bias", None)
        self.patch_drop = PatchDropout()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), width))
        self.norm_pre = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(
            Block(width, heads, self.hidden, activation=activation, eps=eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        nn.init.normal_(self.cls_token, std=width**-0.5)
        nn.init.normal_(self.pos_embed, std=width**-0.5)
        init_blocks_(self.blocks, width)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images [B, 3, H, W]; ``SensoriumError`` if the patch does not divide them."""
        return grid_of(images.shape[-2], images.shape[-1], self.patch_size)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens with positional embeddings [B, N, D], not yet normed.

        With ``keep`` (indices [B, n]) only these patches are embedded, in that order: [B, n, D].
        """
        positions = resample(self.pos_embed, self.grid, self.grid_of(images), self.resampling)[:, 1:]
        tokens = self.patch_embed(images, keep)
        return tokens + (positions if keep is None else positions[0][keep])

    def _before_last(self, patches: Tensor) -> Tensor:
        first = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        x = self.norm_pre(torch.cat([first, patches], dim=1))
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def hidden_states(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> output of the last block [B, 1 + N, D], the class token first, before the final norm."""
        return self.blocks[-1](self._before_last(self.embed(images)))

    def encode(self, patches: Tensor) -> Tensor:
        """Any subset of the patch tokens [B, n, D] -> encoded and normed [B, 1 + n, D], the class token first."""
        return self.norm(self.blocks[-1](self._before_last(patches)))

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D] after the final norm: the class token, then the patches."""
        return self.encode(self.embed(images))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: the class token after the final norm; while training, of the patches that are kept."""
        return self.norm(self.blocks[-1](self._before_last(self.patch_drop(self.embed(images))), slice(0, 1)))[:, 0]

    def attention(self, images: Tensor) -> Tensor:
        """Attention of the class token in the last block: [B, 3, H, W] -> [B, heads, H', W'], each map sums to at most
        1."""
        last = cast(Block, self.blocks[-1])
        weights = last.attn.weights(last.norm1(self._before_last(self.embed(images))), slice(0, 1))
        return weights[:, :, 0, 1:].unflatten(-1, self.grid_of(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one feature map [B, D, H', W']."""
        return [self.tokens(images)[:, 1:].transpose(1, 2).unflatten(-1, self.grid_of(images))]

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, D] and the map [B, D, H', W'], in one pass."""
        tokens = self.tokens(images)
        return tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(-1, self.grid_of(images))

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer, 0 (embeddings) to depth + 1 (final norm): for layer-wise learning rate decay."""
        return {
            name: 0 if name.startswith("norm_pre.") else layer_index(name, self.depth)
            for name, _ in self.named_parameters()
        }
