"""ViT over time: the transformer of an image's patches (Dosovitskiy et al., 2021, arXiv:2010.11929) for sequences.

A sequence is split into patches of k consecutive moments, each of which is a token; a class token is prepended:
    z_0 = [x_class; E patch_1; ...; E patch_N] + E_pos,    E_pos the sinusoids of Vaswani et al. (2017), 0 for x_class
    z_l = block_l(z_{l-1})                                 (parts/block.py)
    y   = LayerNorm(z_L);   a sequence's feature is the mean of its patches' y
E is a linear map of all values of k frames of a stream, or the embedding of one token of a text. In place of E_pos each layer
may rotate its queries and keys by their places (RoPE: Su et al., 2021, arXiv:2104.09864), 0 for x_class and 1 .. N.
Shapes: B sequences of T moments, N = T / k patches of P values, n a subset of them, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.block import Block
from sensorium.parts.init import init_transformer_
from sensorium.parts.patches import rows_at
from sensorium.parts.positions.absolute import Sinusoidal
from sensorium.parts.positions.turning import in_time


class SequenceViT(nn.Module):
    """A transformer over patches of ``patch`` moments, of sequences of any whole number of them.

    ``patch_embed``: E, from the values [..., P] of patches to [..., D]. ``rotary``: places rotate queries and keys.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        *,
        eps: float = 1e-6,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        if min(patch, depth) < 1:
            raise ValueError(f"patch and depth must be at least 1, got {patch} and {depth}")
        if rotary and width // heads % 2:
            raise ValueError(
                f"rotated heads have an even number of channels: a width of {width} in {heads} heads has not"
            )
        self.patch, self.dim, self.depth, self.rotary = patch, width, depth, rotary
        self.head_dim = width // heads
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = Sinusoidal(width)
        self.blocks = nn.ModuleList(Block(width, heads, eps=eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        init_transformer_(self, "xavier")
        nn.init.normal_(self.cls_token, std=0.02)

    def count(self, x: Tensor) -> int:
        """N of sequences [B, T, ...]; ``ValueError`` if a patch does not divide them."""
        length = x.shape[1]
        if not length or length % self.patch:
            raise ValueError(f"patches of {self.patch} do not divide a sequence of {length}")
        return length // self.patch

    def patches(self, x: Tensor) -> Tensor:
        """[B, T] or [B, T, F] -> the values of the patches [B, N, P], in the order of time, and of F in a moment."""
        return x.reshape(len(x), self.count(x), -1)

    def embed(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Sequences -> patch tokens with positions, unless these are rotary [B, N, D]; with ``keep`` [B, n] only those, in that
        order."""
        values = self.patches(x)
        tokens = self.patch_embed(values if keep is None else rows_at(values, keep))
        if self.rotary:
            return tokens
        table = self.positions.rows(torch.arange(values.shape[1], device=x.device))
        return tokens + (table if keep is None else table[keep])

    def encode(self, patches: Tensor, keep: Tensor | None = None) -> Tensor:
        """Any subset of the patch tokens [B, n, D] -> encoded and normed [B, 1 + n, D], the class token first. Rotary positions
        need to know which they are, ``keep`` [B, n]; None: the first n in order."""
        angles = None
        if self.rotary:
            at = torch.arange(patches.shape[1], device=patches.device)[None] if keep is None else keep
            angles = in_time(F.pad(at + 1, (1, 0)), self.head_dim)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        for block in self.blocks:
            x = block(x, None, angles)
        return self.norm(x)

    def features(self, x: Tensor) -> Tensor:
        """Sequences -> [B, D]: the mean of the encoded patches."""
        return self.encode(self.embed(x))[:, 1:].mean(1)
