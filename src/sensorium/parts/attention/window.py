"""Shifted-window attention of the Swin Transformer (Liu et al., 2021, arXiv:2103.14030, section 3.2), and that of Swin
Transformer V2 (Liu et al., 2021, arXiv:2111.09883, section 3).

A token attends only to its window, so that the cost is linear in the image's area; the next layer shifts the windows,
which connects neighboring windows.
    y = softmax(q k^T / sqrt(d) + bias) v         in each window of M x M' tokens                                (eq. 4)
    bias[t, s] = table[row t - row s, column t - column s]                 learned per head, the same in each window
V2 compares directions, and a small network makes the table, so that windows may become larger after training:
    y = softmax(scale cos(q, k) + bias) v          scale per head, at most 100                                   (eq. 2)
    bias = 16 sigmoid(mlp(sign(u) log2(1 + |u|) / log2(8))),      u = 8 (distance) / (M - 1)                 (eqs. 3, 4)
Shifted windows are those of the image rolled by -shift; at its far edges they hold tokens from opposite sides of the
image, which are masked from each other. Sizes that M does not divide are zero-padded at the far edges, without mask, as
in the authors' code; a side that one window covers is not shifted.
Shapes: B batch, H x W tokens, D width, h heads, d = D / h, n windows, N = M M' tokens per window.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.attention.exact import Attend, fused

LARGEST = 100.0  # scale of cosines
HIDDEN = 512  # channels of the network that makes V2's biases


class WindowAttention(nn.Module):
    """Self-attention in windows of ``window`` rows and columns, shifted by ``shift``.

    ``qkv`` and ``proj`` are the projections; ``bias_table`` [(2 M - 1) (2 M' - 1), h] holds the biases by distance of
    rows, then of columns, from the most negative on: the layout of published checkpoints.
    """

    undecayed = ("bias_table",)

    def __init__(
        self,
        width: int,
        heads: int,
        window: tuple[int, int],
        shift: tuple[int, int] = (0, 0),
        *,
        qkv_bias: bool = True,
        attend: Attend = fused,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        if not all(0 <= by < size for by, size in zip(shift, window, strict=True)):
            raise ValueError(f"shift {shift} must be smaller than the window {window}")
        self.heads, self.window, self.shift, self.attend = heads, window, shift, attend
        self.proj = nn.Linear(width, width)
        self.distance: Tensor  # row of the table for each query and key [N, N]
        with torch.device("cpu"):  # it is not in files, so that it must have values on the meta device too
            self.register_buffer("distance", distances(window), persistent=False)
        self._learn(width, qkv_bias)

    def _learn(self, width: int, biased: bool) -> None:
        """Set the parameters, but for ``proj``."""
        self.qkv = nn.Linear(width, 3 * width, bias=biased)
        self.bias_table = nn.Parameter(torch.empty((2 * self.window[0] - 1) * (2 * self.window[1] - 1), self.heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def _project(self, x: Tensor) -> Tensor:
        """[..., D] -> queries, keys and values [..., 3 D]."""
        return self.qkv(x)

    def _table(self) -> Tensor:
        """The biases by distance, [(2 M - 1) (2 M' - 1), h]."""
        return self.bias_table

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Of [B, h, N, d] each, where windows may be heads: then they are n times as many."""
        return self.attend(q, k, v, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> the same."""
        height, width = x.shape[1:3]
        (M, Mw), tall, wide = self.window, -height % self.window[0], -width % self.window[1]
        x = F.pad(x, (0, 0, 0, wide, 0, tall))
        size = (height + tall, width + wide)
        shift = tuple(0 if side == one else by for by, side, one in zip(self.shift, size, self.window, strict=True))
        shifted = any(shift)
        if shifted:
            x = x.roll((-shift[0], -shift[1]), dims=(1, 2))

        tokens = self._project(x).unflatten(2, (-1, Mw)).unflatten(1, (-1, M)).unflatten(-1, (3, self.heads, -1))
        qkv = tokens.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(2, 3)  # [3, B, n, h, N, d]
        bias = self._table()[self.distance].permute(2, 0, 1)  # [h, N, N]
        if shifted:  # windows as heads: the mask is built once, not for each image of the batch
            seen = same_region(size, self.window, shift, x.device)
            bias = bias.masked_fill(~seen[:, None], -torch.inf).flatten(0, 1)
            q, k, v = qkv.flatten(2, 3)
        else:
            q, k, v = qkv.flatten(1, 2)
        y = self._attend(q, k, v, bias[None]).unflatten(1, (-1, self.heads))  # [B, n, h, N, d] or [B n, 1, h, N, d]
        y = y.reshape(-1, size[0] // M, size[1] // Mw, self.heads, M, Mw, x.shape[-1] // self.heads)
        y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, *size, x.shape[-1])
        if shifted:
            y = y.roll(shift, dims=(1, 2))
        return self.proj(y[:, :height, :width])


class CosineWindowAttention(WindowAttention):
    """V2's: ``q_bias``, ``v_bias`` (keys have none), ``logit_scale`` [h, 1, 1], whose exponential is the scale, and ``mlp``,
    which makes the biases.

    reference: M - 1 is that of this window, in which the network was first trained; by default ``window`` itself.
    """

    undecayed = ("logit_scale", "mlp.0.weight", "mlp.2.weight")

    def __init__(
        self,
        width: int,
        heads: int,
        window: tuple[int, int],
        shift: tuple[int, int] = (0, 0),
        *,
        qkv_bias: bool = True,
        reference: tuple[int, int] | None = None,
        attend: Attend = fused,
    ) -> None:
        super().__init__(width, heads, window, shift, qkv_bias=qkv_bias, attend=attend)
        self.places: Tensor
        with torch.device("cpu"):
            self.register_buffer("places", log_distances(window, reference or window), persistent=False)

    def _learn(self, width: int, biased: bool) -> None:
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if biased else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if biased else None
        self.logit_scale = nn.Parameter(torch.full((self.heads, 1, 1), math.log(10)))
        self.mlp = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, self.heads, bias=False))

    def _project(self, x: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        return F.linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))

    def _table(self) -> Tensor:
        return 16 * self.mlp(self.places).sigmoid()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Directions and scales are computed in float32 or better."""
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k = (F.normalize(x.to(wide), dim=-1) for x in (q, k))
        scale = self.logit_scale.to(wide).clamp(max=math.log(LARGEST)).exp()
        q = (q.unflatten(1, (-1, self.heads)) * scale).flatten(1, 2)
        return self.attend(q.to(v.dtype), k.to(v.dtype), v, bias=bias, scale=1.0)


def log_distances(window: tuple[int, int], reference: tuple[int, int]) -> Tensor:
    """Distances of rows and columns in a window on V2's logarithmic scale, in the order of the table: float32
    [(2 M - 1) (2 M' - 1), 2]."""
    sides = [torch.arange(1.0 - n, n) * 8 / max(1, r - 1) for n, r in zip(window, reference, strict=True)]
    far = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, 1)
    return far.sign() * (far.abs() + 1).log2() / math.log2(8)


def distances(window: tuple[int, int]) -> Tensor:
    """For each query and key of a window, the index of their distance: int64 [N, N]."""
    row, column = (x.flatten() for x in torch.meshgrid(*(torch.arange(n) for n in window), indexing="ij"))
    down, right = (x[:, None] - x + n - 1 for x, n in zip((row, column), window, strict=True))
    return down * (2 * window[1] - 1) + right


def same_region(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, ...], device: torch.device) -> Tensor:
    """Which tokens of a window were neighbors before an image of ``size`` was rolled by -``shift``: bool [n, N, N].

    ``window`` divides ``size``.
    """
    # only the last window of a side holds both ends of it: there the last ``shift`` tokens came from the beginning
    rolled = [torch.arange(n, device=device) >= n - by for n, by in zip(size, shift, strict=True)]
    region = 2 * rolled[0][:, None] + rolled[1]  # [H, W]
    region = region.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2).flatten(2).flatten(0, 1)
    return region[:, :, None] == region[:, None, :]
