"""I-JEPA's predictor (Assran et al., 2023, arXiv:2301.08243, section 3): a narrow ViT over the encoded context and, for each
patch of a target, a learned token at the patch's position.
Shapes: B images, n patches of a context, M targets of m patches, D width of the encoder, W of the predictor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.block import Block
from sensorium.parts.init import init_transformer_
from sensorium.parts.positions.grid import resample, sincos_2d


class Predictor(nn.Module):
    """``dim``: D. ``grid``: patches (rows, columns) of the table of fixed positions, resampled for images of other sizes.
    ``width``: W, which ``heads`` and 4 must divide."""

    def __init__(
        self, dim: int, grid: tuple[int, int], width: int, depth: int, heads: int, *, mlp_ratio: float = 4.0, eps: float = 1e-6
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 1:
            raise ValueError(f"the predictor's depth must be at least 1, got {depth}")
        self.grid = grid
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_2d(grid, width)[:, 1:].clone(), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Linear(width, dim)
        nn.init.normal_(self.mask_token, std=0.02)
        init_transformer_(self, "xavier")

    def forward(self, seen: Tensor, context: Tensor, targets: Tensor, grid: tuple[int, int]) -> Tensor:
        """The encoded patches [B, n, D] of a ``context`` [B, n] -> predictions of the ``targets`` [B, M, m]: [B, M, m, D].

        Each target is predicted by itself, as in the authors' code. Of the last block only what it gives for the targets is
        computed.
        """
        table = resample(self.pos_embed, self.grid, grid, first=0)[0]
        known = self.embed(seen) + F.embedding(context, table)
        wanted = self.mask_token + F.embedding(targets, table)
        M, n = targets.shape[1], context.shape[1]
        x = torch.cat([known[:, None].expand(-1, M, -1, -1), wanted], dim=2).flatten(0, 1)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, slice(n, None))
        return self.proj(self.norm(x)).unflatten(0, (-1, M))
