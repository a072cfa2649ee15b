"""What the transformers over patches that are not plain ViTs have in common: DINOv3, BEiT, EVA-02, ViTs without class token.

    z_0 = [x_class; registers; E patch_1; ...; E patch_N] (+ E_pos)
    z_l = block_l(z_{l-1}, place)                place: what a block's attention is told of the grid (rotations, distances)
    y   = LayerNorm(z_L), or LayerNorm of the mean of its patches
It is ViT's layout (networks/vit.py), with the block and the positions left to the network that inherits from it.
Shapes: B images, N = H' * W' patches, n a subset of them, D width, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from sensorium.abilities import AttentionMaps, MaskedEncoder, TokenEncoder
from sensorium.errors import SensoriumError
from sensorium.networks.vit import Pool, layer_index
from sensorium.parts.block import Block
from sensorium.parts.drop import PatchDropout
from sensorium.parts.init import init_transformer_
from sensorium.parts.patches import PatchEmbed, grid_of
from sensorium.parts.positions.grid import Resampling, resample

Table = Literal["none", "patches", "all"]


class PatchTransformer(nn.Module, TokenEncoder, MaskedEncoder, AttentionMaps):
    """Patches, after a class token and ``registers``, through ``blocks``.

    ``image_size`` pixels (one number, or height and width), ``patch_size`` pixels; ``pool``: the class token, the mean
    of the patches, or with "fc_norm" the norm of the mean. ``class_token``: without one ``pool`` can't be "cls", and
    the feature stands where others have it. ``table`` of learned positions: of the "patches", or of "all": class token
    and patches; "none". For images of other sizes it is resampled (``resampling``: see ``resample``). Raises
    ``SensoriumError`` if the patch does not divide the image.
    """

    in_attention = False  # attention needs the grid, so that not any subset of its patches can be encoded

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        heads: int,
        blocks: Iterable[Block],
        *,
        eps: float,
        pool: Pool,
        registers: int = 0,
        class_token: bool = True,
        table: Table = "none",
        resampling: Resampling = "antialias",
    ) -> None:
        super().__init__()
        named = {"pool": (pool, Pool), "table": (table, Table), "resampling": (resampling, Resampling)}
        for field, (value, legal) in named.items():
            if value not in get_args(legal):
                raise ValueError(f"{field} must be one of {', '.join(get_args(legal))}, got {value!r}")
        if not class_token and (pool == "cls" or table == "all"):
            raise ValueError(f"a network without class token has no pool 'cls' and no table 'all', got {pool}, {table}")
        self.image_size: int | tuple[int, int] = image_size
        self.grid = grid_of(*((image_size, image_size) if isinstance(image_size, int) else image_size), patch_size)
        self.patch_size, self.dim, self.heads = patch_size, width, heads
        self.channels, self.strides = (width,), (patch_size,)  # of the one map
        self.eps, self.registers, self.pool = eps, registers, pool
        self.resampling: Resampling = resampling
        self.patch_embed = PatchEmbed(patch_size, width)
        self.patch_drop = nn.Identity() if self.in_attention else PatchDropout()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        self.before = int(class_token) + registers  # tokens before the patches
        self.placed = int(table == "all")  # positions before those of the patches
        rows = 0 if table == "none" else self.placed + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.empty(1, rows, width)) if rows else None
        self.blocks = nn.ModuleList(blocks)
        self.depth = len(self.blocks)
        if self.depth < 1:
            raise ValueError("depth must be at least 1, got 0")
        self.norm = nn.LayerNorm(width, eps=eps)
        init_transformer_(self, "normal")
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02)
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images [B, 3, H, W]; ``SensoriumError`` if the patch does not divide them."""
        return grid_of(images.shape[-2], images.shape[-1], self.patch_size)

    def place(self, grid: tuple[int, int]) -> Any:
        """What the blocks' attention is told of a ``grid``; None for nothing."""
        return None

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens [B, N, D], with learned positions if there are any.

        With ``keep`` (indices [B, n]) only these patches are embedded, in that order: [B, n, D].
        """
        return self._placed(self.patch_embed(images, keep), self.grid_of(images), keep)

    def _placed(self, tokens: Tensor, grid: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        if self.pos_embed is None:
            return tokens
        rows = resample(self.pos_embed, self.grid, grid, self.resampling, first=self.placed)
        rows = rows[:, self.placed :]
        return tokens + (rows if keep is None else rows[0][keep])

    def _sequence(self, patches: Tensor) -> Tensor:
        tokens = [patches]
        if self.reg_token is not None:
            tokens.insert(0, self.reg_token.expand(patches.shape[0], -1, -1))
        if self.cls_token is not None:
            first = self.cls_token
            if self.pos_embed is not None and self.placed:
                first = first + self.pos_embed[:, :1]
            tokens.insert(0, first.expand(patches.shape[0], -1, -1))
        return torch.cat(tokens, dim=1)

    def _before_last(self, patches: Tensor, place: Any) -> Tensor:
        x = self._sequence(patches)
        for block in self.blocks[:-1]:
            x = block(x, None, place)
        return x

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.pool == "fc_norm" else self.norm(x)

    def _encoded(self, patches: Tensor, place: Any) -> Tensor:
        return self._normed(self.blocks[-1](self._before_last(patches, place), None, place))

    def _pooled(self, x: Tensor) -> Tensor:
        """The mean of chosen tokens [B, R, D], and the norm of this mean if that is the network's."""
        x = x.mean(dim=1)
        return self.norm(x) if self.pool == "fc_norm" else x

    def _first(self, x: Tensor) -> Tensor:
        """Encoded tokens [B, T, D] -> the class token, or what stands for it, and the patches, [B, 1 + n, D]."""
        patches = x[:, self.before :]
        first = self._pooled(patches)[:, None] if self.cls_token is None else x[:, :1]
        return torch.cat([first, patches], dim=1)

    def encode(self, patches: Tensor) -> Tensor:
        """Any subset of the patch tokens [B, n, D] -> encoded and normed [B, 1 + n, D], the class token first, without
        registers. Raises ``SensoriumError`` if positions are not in the tokens."""
        if self.in_attention:
            raise SensoriumError(
                f"{type(self).__name__} has its positions in its attention, so it can't encode some of an image's "
                "patches: choose a ViT with positions in its tokens (vit-micro ... vit-huge)."
            )
        return self._first(self._encoded(patches, None))

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D] after the final norm: the class token, then the patches; no registers."""
        return self._first(self._encoded(self.embed(images), self.place(self.grid_of(images))))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: the class token, or the mean of the patches, after the final norm or before it.

        While training, of the patches that :class:`PatchDropout` keeps.
        """
        rows = slice(0, 1) if self.pool == "cls" else slice(self.before, None)
        place = self.place(self.grid_of(images))
        x = self.blocks[-1](self._before_last(self.patch_drop(self.embed(images)), place), rows, place)
        return self._pooled(self._normed(x))

    def attention(self, images: Tensor) -> Tensor:
        """Attention of the class token in the last block, or the mean of the patches' if there is none: [B, 3, H, W] ->
        [B, heads, H', W'], each map sums to at most 1."""
        last, grid = cast(Block, self.blocks[-1]), self.grid_of(images)
        place = self.place(grid)
        rows = slice(self.before, None) if self.cls_token is None else slice(0, 1)
        weights = last.attn.weights(last.norm1(self._before_last(self.embed(images), place)), rows, place)
        return weights.mean(dim=2)[:, :, self.before :].unflatten(-1, grid)

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one feature map [B, D, H', W']."""
        return [self.tokens(images)[:, 1:].transpose(1, 2).unflatten(-1, self.grid_of(images))]

    def masked_map(self, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        """[B, 3, H, W], bool [B, H', W'] and a token [..., D] -> [B, D, H', W']: the token stands for masked patches, and has
        their positions."""
        grid = self.grid_of(images)
        patches = torch.where(mask.flatten(1)[..., None], token, self.patch_embed(images))
        x = self._encoded(self._placed(patches, grid), self.place(grid))
        return x[:, self.before :].transpose(1, 2).unflatten(-1, grid)

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer, 0 (embeddings) to depth + 1 (final norm): for layer-wise learning rate decay."""
        return {name: layer_index(name, self.depth) for name, _ in self.named_parameters()}
