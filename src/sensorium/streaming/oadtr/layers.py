"""The layers of OadTR (Wang et al., 2021, arXiv:2106.11149): an encoder's, pre-norm, and a decoder's, post-norm.

Both are split into parts, because on a stream some of their results are cached.
Shapes: B streams, T rows, M rows of memory, L queries, D width, h heads, d = D / h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.attention.sdpa import sdpa


class EncoderLayer(nn.Module):
    """Self-attention (queries, keys and values without bias) and an MLP, each pre-norm with a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; ``mask`` as in scaled_dot_product_attention."""
        q, k, v = by_head(self.project(x), 3, self.heads)
        return self.attend(x, q, k, v, mask)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys, values: [B, T, D] -> [B, T, 3 D]."""
        return self.qkv(self.norm1(x))

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rest of the layer for rows x [B, R, D] with queries [B, h, R, d] of keys and values [B, h, S, d]."""
        rate = self.dropout if self.training else 0.0
        y = self.proj(sdpa(q, k, v, mask, rate).transpose(1, 2).flatten(2))
        x = x + drop(y, rate)
        y = drop(F.gelu(self.fc1(self.norm2(x))), rate)
        return x + drop(self.fc2(y), rate)


class DecoderLayer(nn.Module):
    """Causal self-attention of the queries, cross-attention to the memory, and an MLP; a LayerNorm after each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_proj = nn.Linear(width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def ask(self, x: Tensor) -> Tensor:
        """Self-attention of the queries: [B, L, D] -> [B, L, D]."""
        rate = self.dropout if self.training else 0.0
        q, k, v = by_head(self.qkv(x), 3, self.heads)
        y = sdpa(q, k, v, dropout=rate, causal=True)
        return self.norm1(x + drop(self.proj(y.transpose(1, 2).flatten(2)), rate))

    def read(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cross-attention to the memory, [B, M, D] or its keys and values by head [2, B, h, M, d] (efficient if rows
        are reused): [B, L, D] -> [B, L, D]; ``mask`` bool [B, M], True for a visible row."""
        rate = self.dropout if self.training else 0.0
        (q,) = by_head(self.query(x), 1, self.heads)
        if memory.ndim == 3:
            y = self._gather(q, memory, mask, rate)
        else:
            k, v = memory
            q = q.expand(len(k), -1, -1, -1)
            y = sdpa(q, k, v, None if mask is None else mask[:, None, None], rate)
        x = self.norm2(x + drop(self.cross_proj(y.transpose(1, 2).flatten(2)), rate))
        y = drop(F.gelu(self.fc1(x)), rate)
        return self.norm3(x + drop(self.fc2(y), rate))

    def _gather(self, q: Tensor, memory: Tensor, mask: Tensor | None, rate: float) -> Tensor:
        """Cross-attention of queries [B, h, L, d] -> [B, h, L, d]. With few queries and many rows, the key's weights
        are applied to the queries, q (W m + b) = (q W) m + q b, the value's to the weighted sums, and no row is
        projected."""
        shape = (self.heads, q.shape[-1])
        (key, value), (key_bias, value_bias) = self.key_value.weight.chunk(2), self.key_value.bias.chunk(2)
        asked = torch.einsum("bhld,hde->bhle", q, key.unflatten(0, shape))
        asked = asked.expand(len(memory), -1, -1, -1).flatten(1, 2)  # [B, h L, D]
        shift = torch.einsum("bhld,hd->bhl", q, key_bias.unflatten(0, shape)).flatten(1)
        scores = (asked @ memory.transpose(1, 2) + shift.unsqueeze(-1)) * q.shape[-1] ** -0.5  # [B, h L, M]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        weights = drop(precise(scores).softmax(dim=-1).to(memory.dtype), rate)
        found = (weights @ memory).unflatten(1, (self.heads, -1))  # [B, h, L, D]
        total = weights.sum(dim=-1, keepdim=True).unflatten(1, (self.heads, -1))  # 1 except for dropout
        y = torch.einsum("bhld,hed->bhle", found, value.unflatten(0, shape))
        return y + total * value_bias.unflatten(0, shape).unsqueeze(1)


def by_head(x: Tensor, parts: int, heads: int) -> Tensor:
    """Split concatenated parts, each into its heads: [B, T, parts D] -> [parts, B, h, T, d]."""
    return x.view(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4)


def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout; no call at a rate of 0, because overhead matters in a step of a stream."""
    return F.dropout(x, rate) if rate else x
