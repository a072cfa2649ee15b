"""Rotary positions: RoPE (Su et al., 2021, arXiv:2104.09864), for text and images, its extensions to longer texts, and
its form for linear attention.

:mod:`sensorium.parts.positions.rotary` rotates a head; here are the schemes that use it. For texts s times as long as
in training, the angles m w_i, w_i = theta^(-2 i / d), are replaced by
    interpolated   (m / s) w_i                                                Chen et al., 2023, arXiv:2306.15595
    ntk_aware      theta s^(d / (d - 2)) in place of theta: the highest frequency is unchanged, the lowest divided by s
    yarn           m w_i (g_i + (1 - g_i) / s): pairs with many turns over the training length keep their frequency
                   (g_i = 1), it is divided by s for pairs with less than one turn (g_i = 0); queries and keys are
                   scaled
                   by 0.1 ln s + 1, which sharpens the softmax               Peng et al., 2023, arXiv:2309.00071
Each is a function like ``rotary_table``; set its parameters with ``functools.partial``.
Shapes: B batch, T queries, S keys, h heads, d channels per head, e channels of a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sensorium.parts.attention.linear import absorb, attend, causal_chunks
from sensorium.parts.positions import Positions
from sensorium.parts.positions.rotary import rotary_table, rotate

Table = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def interpolated(at: Tensor, dim: int, theta: float, *, factor: float) -> tuple[Tensor, Tensor]:
    """A ``rotary_table`` with positions divided by ``factor``."""
    return rotary_table(at / factor, dim, theta)


def ntk_aware(at: Tensor, dim: int, theta: float, *, factor: float) -> tuple[Tensor, Tensor]:
    """A ``rotary_table`` whose lowest frequency is divided by ``factor`` and whose highest is unchanged.

    The dynamic variant computes ``factor`` from the length L of the text: s L / (training length) - (s - 1).
    """
    return rotary_table(at, dim, theta * factor ** (dim / (dim - 2)))


def yarn(
    at: Tensor, dim: int, theta: float, *, factor: float, length: int, fast: float = 32.0, slow: float = 1.0
) -> tuple[Tensor, Tensor]:
    """YaRN's ``rotary_table``, for texts ``factor`` times as long as the training ``length``.

    Pairs with at least ``fast`` turns over that length keep their frequency, those with at most ``slow`` turns are
    divided by ``factor``. In between g falls linearly with the index of the pair, as in the authors' code and so in
    every checkpoint; in the paper it is linear in the number of turns. The attention temperature is in the table: cos
    and sin are both multiplied by 0.1 ln ``factor`` + 1.
    """

    def pair(turns: float) -> float:
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), dim - 1)
    i = torch.arange(dim // 2, device=at.device, dtype=torch.float32)
    g = 1 - ((i - first) / max(last - first, 1e-3)).clamp(0, 1)
    angle = at.to(torch.float32)[:, None] * theta ** (-2 * i / dim) * (g + (1 - g) / factor)
    grown = 0.1 * math.log(max(factor, 1.0)) + 1
    cos, sin = grown * angle.cos(), grown * angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class Rotary(Positions):
    """Rotate pairs of channels by angles proportional to the position (Su et al., 2021, eq. 14 to 16).

    ``interleaved``: pairs are adjacent (0, 1), (2, 3) ..., as in the paper, RoFormer and GPT-J; otherwise they are half
    a head apart, as in Llama's checkpoints on Hugging Face. ``table`` gives the angles: ``rotary_table``, or for longer
    texts ``partial(yarn, factor=4, length=2048)``, for example.
    """

    attention = frozenset({"softmax", "latent", "linear", "gated"})

    def __init__(self, *, theta: float = 10_000.0, interleaved: bool = False, table: Table = rotary_table) -> None:
        super().__init__()
        self.theta, self.interleaved, self.table = theta, interleaved, table
        if interleaved:  # a latent's rotary channels are in halves
            self.attention = type(self).attention - {"latent"}

    def rotate(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, T, d] and [B, g, S, d] -> the same. Raises ValueError if d is odd."""
        dim = q.shape[-1]
        return self.turn(q, self.angles(at_q, dim)), self.turn(k, self.angles(at_k, dim))

    def angles(self, at: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The rotations of :meth:`turn` at positions ``at`` [T]: the same for queries and keys, and for all layers."""
        return self.table(at, dim, self.theta)

    def turn(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys, or both at once: [B, h, T, d] -> the same."""
        if not self.interleaved:
            return rotate(x, angles)
        halves = rotate(x.unflatten(-1, (-1, 2)).mT.flatten(-2), angles)
        return halves.unflatten(-1, (2, -1)).mT.flatten(-2)


class Rotary2D(Positions):
    """Rotary positions of images: the first half of a head is rotated by the row, the second by the column.

    Products then depend only on both distances. Positions [T, 2]; pairs are a quarter of a head apart.
    """

    def __init__(self, theta: float = 10_000.0) -> None:
        super().__init__()
        self.theta = theta

    def rotate(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, T, d] and [B, g, S, d] -> the same. Raises ValueError if 4 does not divide d."""
        dim = q.shape[-1]
        return turned(q, self.angles(at_q, dim)), turned(k, self.angles(at_k, dim))

    def angles(self, at: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The rotations of :func:`turned` at positions ``at`` [T, 2]: two [T, 2, d / 2], the same for all layers."""
        if dim % 4:
            raise ValueError(f"2-D rotary embedding needs channels per head divisible by 4, got {dim}")
        both = [rotary_table(one, dim // 2, self.theta) for one in at.unbind(1)]
        cos, sin = (torch.stack(parts, dim=1) for parts in zip(*both, strict=True))
        return cos, sin


def turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys [..., T, d], each of the ``a`` parts of a head rotated along an axis of its own, by angles [..., T, a, d / a]:
    those of a ``Rotary2D`` for images, of :func:`in_time` for sequences."""
    return rotate(x.unflatten(-1, (angles[0].shape[-2], -1)), angles).flatten(-2)


def in_time(at: Tensor, dim: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """The rotations of :func:`turned` of heads of ``dim`` channels, for rows of positions [B, T] in any order: two [B, 1, T, 1,
    d]."""
    cos, sin = rotary_table(at.flatten(), dim, theta)
    return cos.unflatten(0, at.shape)[:, None, :, None], sin.unflatten(0, at.shape)[:, None, :, None]


def interleaved_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Convert weights of queries or keys trained with adjacent pairs to the same function with pairs half a head apart.

    weight: [h * d, ...], of a projection or its bias, head by head.
    """
    heads = weight.unflatten(0, (-1, head_dim // 2, 2))
    return heads.transpose(1, 2).flatten(0, 2)


def halves_to_interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`interleaved_to_halves`."""
    heads = weight.unflatten(0, (-1, 2, head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2)


def rotary_linear(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, at_q: Tensor, at_k: Tensor, eps: float = 1e-6
) -> Tensor:
    """Linear attention to all keys with rotary positions (Su et al., 2021, eq. 19): [B, h, T, e].

        y_m = sum_n (R_m q_m) . (R_n k_n) v_n / sum_n q_m . k_n
    q [B, h, T, d] and k [B, h, S, d] are outputs of a positive feature map; v [B, h, S, e]. Rotated products may be
    negative, so only the numerator is rotated and the weights no longer sum to one. Float32 or better.
    """
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
    turned_q, turned_k = positions.rotate(q, k, at_q, at_k)
    return turned_q @ (turned_k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT + eps)


def rotary_linear_causal(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turned_q: Tensor,
    turned_k: Tensor,
    top: Tensor | None = None,
    bottom: Tensor | None = None,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """The causal form: each row is :func:`rotary_linear` of a token and the keys up to it.

    q, k [B, h, T, d] after a feature map, plain and rotated, v [B, h, T, e] -> y [B, h, T, e], and for later tokens the
    sums of the numerator ``top`` [B, h, d, e + 1] and of the denominator ``bottom`` [B, h, 1, d].
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    if q.shape[2] == 1:  # the recurrence, at less than half the cost
        top = absorb(turned_k, v, top)
        y = attend(turned_q.to(exact), top, eps=None)
    else:
        y, top = causal_chunks(turned_q, turned_k, v.to(exact), top, eps=None)
    z = k.to(exact).cumsum(-2)
    z = z if bottom is None else z + bottom
    y = y / ((q.to(exact) * z).sum(-1, keepdim=True) + eps)
    return y.to(v.dtype), top, z[:, :, -1:]
