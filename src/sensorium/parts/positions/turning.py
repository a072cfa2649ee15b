"""Positions as rotations of queries and keys: RoPE (Su et al., 2021, arXiv:2104.09864), for text and images, its bases for
longer texts, and its form for linear attention.

:mod:`sensorium.parts.positions.rotary` turns a head; here are the schemes that use it. Where a model meets texts s times
as long as those it learned from, its angles m w_i, w_i = theta^(-2 i / d), are made from
    interpolated   (m / s) w_i                                                Chen et al., 2023, arXiv:2306.15595
    ntk_aware      theta s^(d / (d - 2)) in place of theta: the fastest pair keeps its speed, the slowest gets 1 / s of it
    yarn           m w_i (g_i + (1 - g_i) / s): pairs that turn often over the learned length keep their speed (g_i = 1), those
                   that turn less than once get 1 / s of it (g_i = 0); queries and keys grow by 0.1 ln s + 1, which
                   sharpens the softmax                                       Peng et al., 2023, arXiv:2309.00071
Each is a function like ``rotary_table``; ``functools.partial`` gives it its numbers.
Shapes: B batch, T queries, S keys, h heads, d channels a head, e channels of a value.
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
    """A ``rotary_table`` of positions that are ``factor`` times as near to each other."""
    return rotary_table(at / factor, dim, theta)


def ntk_aware(at: Tensor, dim: int, theta: float, *, factor: float) -> tuple[Tensor, Tensor]:
    """A ``rotary_table`` whose slowest pair is ``factor`` times as slow and whose fastest is what it was.

    What is called dynamic takes ``factor`` from the length L of the text at hand: s L / (learned length) - (s - 1).
    """
    return rotary_table(at, dim, theta * factor ** (dim / (dim - 2)))


def yarn(
    at: Tensor, dim: int, theta: float, *, factor: float, length: int, fast: float = 32.0, slow: float = 1.0
) -> tuple[Tensor, Tensor]:
    """A ``rotary_table`` of YaRN, for texts ``factor`` times as long as the ``length`` that was learned.

    Pairs that turn ``fast`` times or more over that length keep their speed, those that turn ``slow`` times or less are
    slowed down. Between the two g falls linearly with the number of the pair, as in the authors' code and so in every
    checkpoint, where the paper has it linear in the number of turns. The attention temperature is in the table, as cos
    and sin both grow by 0.1 ln ``factor`` + 1.
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
    """Turn pairs of channels by angles that grow with the position (Su et al., 2021, eq. 14 to 16).

    ``interleaved``: pairs are neighbors (0, 1), (2, 3) ..., the paper's form and that of RoFormer and GPT-J; otherwise they
    are half a head apart, as in Llama's checkpoints on Hugging Face. ``table`` makes the angles: ``rotary_table``, or
    ``partial(yarn, factor=4, length=2048)`` and the like for longer texts.
    """

    attention = frozenset({"softmax", "latent", "linear", "gated"})

    def __init__(self, *, theta: float = 10_000.0, interleaved: bool = False, table: Table = rotary_table) -> None:
        super().__init__()
        self.theta, self.interleaved, self.table = theta, interleaved, table
        if interleaved:  # a latent's rotary channels are in halves
            self.attention = type(self).attention - {"latent"}

    def rotate(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, T, d] and [B, g, S, d] -> the same. Raises ValueError where d is odd."""
        dim = q.shape[-1]
        return self.turn(q, self.angles(at_q, dim)), self.turn(k, self.angles(at_k, dim))

    def angles(self, at: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """What :meth:`turn` turns by at the positions ``at`` [T]: the same for queries and keys, and for all layers."""
        return self.table(at, dim, self.theta)

    def turn(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Queries or keys, or both at once: [B, h, T, d] -> the same."""
        if not self.interleaved:
            return rotate(x, angles)
        halves = rotate(x.unflatten(-1, (-1, 2)).mT.flatten(-2), angles)
        return halves.unflatten(-1, (2, -1)).mT.flatten(-2)


class Rotary2D(Positions):
    """Rotary positions of images: the first half of a head is turned by the row, the second by the column.

    Products then depend on both distances alone. Positions [T, 2]; pairs are a quarter of a head apart.
    """

    def __init__(self, theta: float = 10_000.0) -> None:
        super().__init__()
        self.theta = theta

    def rotate(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> tuple[Tensor, Tensor]:
        """[B, h, T, d] and [B, g, S, d] -> the same. Raises ValueError where 4 does not divide d."""
        dim = q.shape[-1]
        return turn_2d(q, self.angles(at_q, dim)), turn_2d(k, self.angles(at_k, dim))

    def angles(self, at: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """What :func:`turn_2d` turns by at the positions ``at`` [T, 2]: two [T, 2, d / 2], the same for all layers."""
        if dim % 4:
            raise ValueError(f"rows and columns each turn pairs of channels: 4 does not divide a head of {dim}")
        both = [rotary_table(one, dim // 2, self.theta) for one in at.unbind(1)]
        cos, sin = (torch.stack(parts, dim=1) for parts in zip(*both, strict=True))
        return cos, sin


def turn_2d(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys of images [..., T, d] turned by a ``Rotary2D``'s angles."""
    return rotate(x.unflatten(-1, (2, -1)), angles).flatten(-2)


def interleaved_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Weights of queries or keys that learned with neighboring pairs -> the same function with pairs half a head apart.

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
    q [B, h, T, d] and k [B, h, S, d] have been through a feature map that makes them positive; v [B, h, S, e]. Rotated,
    their products may be negative, so only the numerator turns and the weights no longer sum to one. At least float32.
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
    """The same where a token sees itself and those before it: its row is :func:`rotary_linear` of it and the keys up to it.

    q, k [B, h, T, d] behind a feature map, as they are and turned, v [B, h, T, e] -> y [B, h, T, e], and for the tokens
    that follow the sums of the numerator ``top`` [B, h, d, e + 1] and of the denominator ``bottom`` [B, h, 1, d].
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
