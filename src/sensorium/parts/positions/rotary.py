"""RoPE: rotary position embedding (Su et al., 2021, arXiv:2104.09864).

Pairs of channels of queries and keys are rotated by an angle proportional to the position m (eq. 14):
    (x_i, x_{i + d/2}) -> (x_i cos m w_i - x_{i + d/2} sin m w_i,  x_{i + d/2} cos m w_i + x_i sin m w_i),
    w_i = theta^(-2 i / d),        i = 0 .. d/2 - 1,
so that their product depends only on the distance of the positions. Pairs are half a head apart, as in Llama's
checkpoints on Hugging Face; the paper's adjacent pairs (0, 1), (2, 3) ... are equal up to a permutation of the
channels.
Shapes: B batch, h heads, T tokens, d channels per head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: Tensor, dim: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """For integer ``positions`` [T], two float32 [T, dim], on the positions' device: cos m w_i of each channel, and
    sin m w_i, negative for the first of a pair."""
    if dim % 2:
        raise ValueError(f"rotary embedding needs an even number of channels per head, got {dim}")
    rate = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angle = positions.to(torch.float32)[:, None] * rate
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x_BhTd: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate queries or keys by a ``rotary_table`` of their positions. [B, h, T, d] -> the same, in their precision."""
    cos, sin = table
    if cos.dtype != x_BhTd.dtype:
        cos, sin = cos.to(x_BhTd.dtype), sin.to(x_BhTd.dtype)
    partner = x_BhTd.roll(x_BhTd.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BhTd * cos, partner, sin)
