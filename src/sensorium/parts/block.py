"""The pre-norm transformer block of ViT (Dosovitskiy et al., 2021, arXiv:2010.11929).

    x = x + proj(softmax(q k^T / sqrt(d)) v)      q, k, v = qkv(norm1(x))
    x = x + fc2(gelu(fc1(norm2(x))))
LayerScale multiplies the output of each branch by a learned factor per channel.
If only some rows of a block's output are needed (the class token, the patches to reconstruct), they can be selected:
keys and values come from all rows, the rest is computed for the chosen ones, with the same result. Attention and Mlp
can be replaced: by a gated unit (:class:`Gated`) or anything with the same interface, by experts (:class:`Balanced`) or
a feed-forward layer of parts/feedforward.py. ``angles`` rotate queries and keys by the position in an image or a sequence
(:func:`sensorium.parts.positions.turning.turned`).
Shapes: B images, T tokens, R chosen rows, D width, h heads, d = D / h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.drop import DropPath
from sensorium.parts.moe.layer import MoE
from sensorium.parts.positions.turning import turned

Angles = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection ``qkv`` and an output projection ``proj``."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, h, T, d]

    def bias(self) -> Tensor | None:
        """Of queries, keys and values, [3 D]; None for none."""
        return self.qkv.bias

    def _queries_keys_values(
        self, x: Tensor, rows: slice | None, angles: Angles | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        width, bias = x.shape[-1], self.bias()
        if rows is None:
            # split, not unbind of a stacked view: its backward is one concatenation in qkv's layout
            q, k, v = F.linear(x, self.qkv.weight, bias).split(width, dim=-1)
        else:
            weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
            bias_q, bias_kv = (None, None) if bias is None else bias.split([width, 2 * width])
            q = F.linear(x[:, rows], weight_q, bias_q)
            k, v = F.linear(x, weight_kv, bias_kv).split(width, dim=-1)
        q, k, v = self._split(q), self._split(k), self._split(v)
        if angles is not None:
            cos, sin = angles
            of_q = angles if rows is None else (cos[..., rows, :, :], sin[..., rows, :, :])
            q, k = turned(q, of_q), turned(k, angles)
        return q, k, v

    def forward(self, x: Tensor, rows: slice | None = None, angles: Angles | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``."""
        q, k, v = self._queries_keys_values(x, rows, angles)
        return self.proj(sdpa(q, k, v).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, rows: slice, angles: Angles | None = None) -> Tensor:
        """Attention of the chosen rows to all tokens, float32 [B, h, R, T]; rows sum to 1."""
        q, k, _ = self._queries_keys_values(x, rows, angles)
        return torch.softmax((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5, dim=-1)


class NoKeyBias(Attention):
    """Self-attention whose keys have no bias (BEiT: Bao et al., 2022, arXiv:2106.08254; EVA; DINOv3).

    A bias of the keys adds the same number to all scores of a query, which softmax ignores, but not once keys are
    rotated. ``biased``: queries and values have one.
    """

    def __init__(self, width: int, heads: int, *, biased: bool = True) -> None:
        super().__init__(width, heads, qkv_bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if biased else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if biased else None

    def bias(self) -> Tensor | None:
        """Of queries, keys and values, [3 D], zero for keys; None for none."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


class Gated(nn.Module):
    """A gated attention unit (parts/attention/gau.py) as attention: not causal, without positions of its own."""

    def __init__(self, unit: GatedAttentionUnit) -> None:
        super().__init__()
        if unit.causal or unit.theta is not None:
            raise ValueError("image patches have no causal order: the unit must have causal=False and theta=None")
        self.unit, self.head_dim = unit, unit.shared

    def forward(self, x: Tensor, rows: slice | None = None, angles: Angles | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``."""
        y = self.unit(x, turn=None if angles is None else lambda heads: turned(heads, angles))
        return y if rows is None else y[:, rows]

    def weights(self, x: Tensor, rows: slice, angles: Angles | None = None) -> Tensor:
        """Attention of the chosen rows to all tokens, [B, 1, R, T]; rows sum to 1."""
        return self.unit.weights(x, None if angles is None else lambda heads: turned(heads, angles))[:, None, rows]


class Balanced(nn.Module):
    """Experts balanced without a loss (Wang et al., 2024, arXiv:2408.15664), so that callers of a block need no special
    handling. Their biases are updated between steps: a method calls ``update_biases`` in ``after_step``."""

    def __init__(self, experts: MoE) -> None:
        super().__init__()
        if experts.bias is None:
            raise ValueError("experts are balanced by their bias: build them with bias=True and route deepseek")
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.experts(x)[0]


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """x * gamma, a learned factor for each channel of a branch (Touvron et al., 2021, arXiv:2103.17239, section 2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return x * self.gamma


def hidden_channels(width: int, ratio: float) -> int:
    """width * ratio, rounded down; of a ratio that is a quotient of channels it gives the numerator."""
    return int(width * ratio + 1e-6)


class Block(nn.Module):
    """Attention and Mlp, each pre-norm with a residual connection; ``attention`` and ``mlp`` replace the defaults.

    layer_scale: the initial factor of both branches, None for no LayerScale.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        attention: nn.Module | None = None,
        mlp: nn.Module | None = None,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn: Any = attention or Attention(width, heads, qkv_bias=qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp: Any = mlp or Mlp(width, hidden_channels(width, mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rows: slice | None = None, angles: Angles | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``."""
        branch = self.ls1(self.attn(self.norm1(x), rows, angles))
        x = (x if rows is None else x[:, rows]) + self.drop_path(branch)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
