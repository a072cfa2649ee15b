"""The pre-norm transformer block of ViT (Dosovitskiy et al., 2021, arXiv:2010.11929).

    x = x + proj(softmax(q k^T / sqrt(d)) v)      q, k, v = qkv(norm1(x))
    x = x + fc2(gelu(fc1(norm2(x))))
Whoever needs only some rows of a block's output (the class token, the patches to reconstruct) may ask for these
rows alone: keys and values come from all rows, the rest is computed for the chosen ones. Nothing changes but the cost.
Shapes: B images, T tokens, R chosen rows, D width, h heads, d = D / h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.drop import DropPath


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection ``qkv`` and an output projection ``proj``."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, h, T, d]

    def _queries_keys_values(self, x: Tensor, rows: slice | None) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[-1]
        if rows is None:
            # split, not unbind of a stacked view: its backward is one concatenation into the layout that qkv wants
            q, k, v = self.qkv(x).split(width, dim=-1)
        else:
            weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
            bias_q, bias_kv = (None, None) if self.qkv.bias is None else self.qkv.bias.split([width, 2 * width])
            q = F.linear(x[:, rows], weight_q, bias_q)
            k, v = F.linear(x, weight_kv, bias_kv).split(width, dim=-1)
        return self._split(q), self._split(k), self._split(v)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``."""
        q, k, v = self._queries_keys_values(x, rows)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, rows: slice) -> Tensor:
        """Attention of the chosen rows to all tokens, float32 [B, h, R, T]; rows sum to 1."""
        q, k, _ = self._queries_keys_values(x, rows)
        return torch.softmax((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5, dim=-1)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and Mlp, each behind a LayerNorm and added to the residual stream."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``."""
        branch = self.attn(self.norm1(x), rows)
        x = (x if rows is None else x[:, rows]) + self.drop_path(branch)
        return x + self.drop_path(self.mlp(self.norm2(x)))
