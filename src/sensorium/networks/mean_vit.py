"""A ViT without class token, whose feature is the mean of its patches (Zhai et al., 2022, arXiv:2106.04560, section 3.3).

    z_0 = [registers; E patch_1 + E_pos_1; ...; E patch_N + E_pos_N]
    z_l = block_l(z_{l-1})                                      see networks/vit.py
    y   = mean LayerNorm(z_L), or LayerNorm of the mean         of the patches
So are timm's ViTs called ``gap``, and I-JEPA's (Assran et al., 2023, arXiv:2301.08243). Parameter names are timm's.
Shapes: N = H' * W' patches, D width.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from torch import nn

from sensorium.networks.patch_transformer import PatchTransformer
from sensorium.networks.vit import Pool, other_parts
from sensorium.parts.block import Block
from sensorium.parts.init import Init, init_transformer_
from sensorium.parts.positions.grid import Resampling, sincos_2d

Positions = Literal["learned", "sincos"]


class MeanViT(PatchTransformer):
    """A vision transformer that pools by the mean, "mean" after the final norm or "fc_norm" before it, in place of which
    it norms the mean. ``positions`` are learned, or MAE's fixed table. Other arguments are ViT's; ``encode`` gives this
    mean where others have the class token."""

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        qkv_bias: bool = True,
        registers: int = 0,
        pool: Pool = "mean",
        positions: Positions = "learned",
        resampling: Resampling = "antialias",
        parts: tuple[str, ...] = (),
        init: Init = "normal",
    ) -> None:
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {', '.join(get_args(Positions))}, got {positions!r}")
        side = (image_size, image_size) if isinstance(image_size, int) else image_size
        tokens = registers + math.prod(n // max(1, patch_size) for n in side)
        numbers: dict[str, Any] = {"mlp_ratio": mlp_ratio, "eps": eps, "qkv_bias": qkv_bias}
        super().__init__(
            image_size,
            patch_size,
            width,
            heads,
            (
                Block(width, heads, **numbers, **other_parts(parts, width, heads, tokens, mlp_ratio, depth))
                for _ in range(depth)
            ),
            eps=eps,
            pool=pool,
            registers=registers,
            class_token=False,
            table="patches",
            resampling=resampling,
        )
        self.positions: Positions = positions
        self.parts, self.mlp_ratio, self.qkv_bias = tuple(parts), mlp_ratio, qkv_bias
        if positions == "sincos":
            self.pos_embed = nn.Parameter(sincos_2d(self.grid, width)[:, 1:].clone(), requires_grad=False)
        if init != "normal":
            init_transformer_(self, init)  # and the patch embedding, a linear layer in a convolution's shape, alike
            nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
