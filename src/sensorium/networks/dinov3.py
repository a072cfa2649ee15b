"""The vision transformer of DINOv3 (Siméoni et al., 2025, arXiv:2508.10104, section 3.2).

A ViT with registers and LayerScale, without a table of positions and without a bias of keys. Queries and keys of the
patches are rotated by their place in the image, whose sides are [-1, 1] at any size; class token and registers are not:
    y = 2 (row + 1/2) / H' - 1,     x = 2 (column + 1/2) / W' - 1
    angles   2 pi y w_i  and  2 pi x w_i,     w_i = theta^(-4 i / d),     i = 0 .. d/4 - 1
A rotated pair of channels is that of networks/vit.py's rotary positions: the first half of a head by the row. Published
files have another order of the channels (networks/formats/dinov3.py), which no product sees.
Shapes: N = H' * W' patches, D width, h heads, d = D / h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.networks.patch_transformer import PatchTransformer
from sensorium.networks.vit import Pool
from sensorium.parts.block import Angles, Block, Mlp, NoKeyBias
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.positions.turning import Rotary2D


class DINOv3(PatchTransformer):
    """DINOv3's vision transformer.

    ``image_size`` pixels (one number, or height and width: the usual one, as any that the patch divides is legal),
    ``patch_size`` pixels, ``hidden`` channels of a feed-forward layer; ``gated``: it is SwiGLU, else a plain one.
    ``biased``: queries and values have a bias. ``pool``: the class token, or the mean of the patches after the norm.
    """

    in_attention = True

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        gated: bool = False,
        biased: bool = True,
        registers: int = 4,
        pool: Pool = "cls",
        theta: float = 100.0,
        eps: float = 1e-5,
    ) -> None:
        hidden = 4 * width if hidden is None else hidden
        super().__init__(
            image_size,
            patch_size,
            width,
            heads,
            (
                Block(
                    width,
                    heads,
                    eps=eps,
                    attention=NoKeyBias(width, heads, biased=biased),
                    mlp=FeedForward(width, hidden, "swiglu", bias=True) if gated else Mlp(width, hidden),
                    layer_scale=1e-5,
                )
                for _ in range(depth)
            ),
            eps=eps,
            pool=pool,
            registers=registers,
        )
        if width // heads % 4:
            raise ValueError(
                f"rotated heads have channels divisible by 4: {heads} heads of a width of {width} have not"
            )
        self.hidden, self.gated, self.biased, self.theta = hidden, gated, biased, theta
        self.rope = Rotary2D(theta)

    def place(self, grid: tuple[int, int]) -> Angles:
        """The rotations of all tokens of a ``grid``, zero for those before the patches: two [T, 2, d / 2]."""
        device = self.patch_embed.proj.weight.device
        sides = (2 * math.pi * (2 * (torch.arange(n, device=device) + 0.5) / n - 1) for n in grid)
        at: Tensor = torch.cartesian_prod(*sides)
        return self.rope.angles(F.pad(at, (0, 0, self.before, 0)), self.dim // self.heads)
