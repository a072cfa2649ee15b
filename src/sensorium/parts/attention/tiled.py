"""Attention in tiles, with memory linear in T + S instead of T S, in plain torch.

Online softmax rescales partial sums whenever a larger score appears (Milakov & Gimelshein, 2018, arXiv:1805.02867; for
attention: Rabe & Staats, 2021, arXiv:2112.05682). FlashAttention (Dao et al., 2022, arXiv:2205.14135, algorithms 1, 2
and 4) stores only the log-sum-exp L of the scores and recomputes the rest for the gradient; as in FlashAttention-2
(Dao, 2023, arXiv:2307.08691) tiles of queries are the outer loop, and the division by the sum comes once, at the end.
For tile i of queries and j = 1, 2 ... of keys:
    a = scale q_i k_j^T + bias_ij,                 m' = max(m, rowmax a),       p = exp(a - m')
    l <- exp(m - m') l + rowsum p,                 y_i <- exp(m - m') y_i + p v_j,                  m <- m'
    at the end                                     y_i <- y_i / l,              L_i = m + log l
and backward, from dy, with D = rowsum(dy * y):
    p = exp(a - L_i),       da = p * (dy_i v_j^T - D_i)
    dv_j += p^T dy_i        dq_i += scale da k_j          dk_j += scale da^T q_i          dbias_ij += da
Tiles without visible keys, beyond the causal diagonal or in another document, are skipped.
Shapes: B batch, T queries, S keys, h heads of queries, g of keys and values, r = h / g, d channels of a key, e of a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sensorium.parts.attention.exact import Asked, answers, by_document, part


def tiled(q: Tensor, k: Tensor, v: Tensor, *, tile: int = 128, **asked: Unpack[Asked]) -> Tensor:
    """:class:`~sensorium.parts.attention.exact.Attend` with tiles of ``tile`` queries and keys; computes in float32 or
    better.

    For backward it saves its arguments, the output and L [B, g, r, T]. No second derivative.
    """
    causal, mask, bias, lengths, scale = answers(asked)
    if lengths is not None:

        def alone(q: Tensor, k: Tensor, v: Tensor, **kept: Unpack[Asked]) -> Tensor:
            return tiled(q, k, v, tile=tile, **kept)

        return by_document(alone, q, k, v, **asked)
    heads, groups = q.shape[1], k.shape[1]
    if heads % groups:
        raise ValueError(f"{groups} heads of keys and values must divide the {heads} of the queries")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(q.device.type, enabled=False):
        y = _Tiled.apply(q.unflatten(1, (groups, -1)), k, v, _in_groups(mask, groups), _in_groups(bias, groups), causal, scale, tile)  # fmt: skip
    return y.flatten(1, 2)


def _in_groups(x: Tensor | None, groups: int) -> Tensor | None:
    """Reshape a tensor that broadcasts to [B, h, T, S] to one that broadcasts to [B, g, r, T, S]."""
    if x is None:
        return None
    x = x[(None,) * (4 - x.ndim)]
    return x.unsqueeze(2) if x.shape[1] == 1 else x.unflatten(1, (groups, -1))


def _tiles(T: int, S: int, causal: bool, tile: int) -> Iterator[tuple[slice, list[slice]]]:
    """Every tile of queries, with the tiles of keys that it attends to."""
    for low in range(0, T, tile):
        high = min(low + tile, T)
        end = min(S, high + S - T) if causal else S
        yield slice(low, high), [slice(s, min(s + tile, end)) for s in range(0, end, tile)]


def _scores(q_i: Tensor, k_j: Tensor, i: slice, j: slice, shift: int | None, mask: Tensor | None, bias: Tensor | None) -> Tensor:  # fmt: skip
    """a [B, g, r, t, s] of one tile from scaled queries, -inf for masked keys; ``shift``: S - T if causal."""
    a = (q_i.flatten(2, 3) @ k_j.mT).unflatten(2, q_i.shape[2:4])
    here = part(bias, i, j)
    if here is not None:
        a = a + here.to(a.dtype)
    here = part(mask, i, j)
    if here is not None:
        a = a.masked_fill(~here, -torch.inf)
    if shift is not None and j.stop > i.start + shift + 1:
        before = torch.ones(a.shape[-2:], dtype=torch.bool, device=a.device).tril(i.start + shift - j.start)
        a = a.masked_fill(~before, -torch.inf)
    return a


class _Tiled(torch.autograd.Function):
    """q [B, g, r, T, d], k [B, g, S, d], v [B, g, S, e] -> [B, g, r, T, e]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool, scale: float, tile: int) -> Tensor:  # fmt: skip
        T, S, exact = q.shape[3], k.shape[2], torch.promote_types(q.dtype, torch.float32)
        shift = S - T if causal else None
        y = q.new_zeros(*q.shape[:-1], v.shape[-1])
        L = q.new_zeros(q.shape[:-1], dtype=exact)
        for i, tiles in _tiles(T, S, causal, tile):
            q_i = q[..., i, :].to(exact) * scale
            y_i = torch.zeros_like(y[..., i, :], dtype=exact)
            m = torch.full_like(L[..., i], -torch.inf)
            l = torch.zeros_like(m)
            for j in tiles:
                a = _scores(q_i, k[:, :, j].to(exact), i, j, shift, mask, bias)
                new = torch.maximum(m, a.amax(-1))
                finite = new.masked_fill(new == -torch.inf, 0)  # for rows without visible keys so far
                p, shrink = (a - finite[..., None]).exp(), (m - finite).exp()
                l = shrink * l + p.sum(-1)
                y_i = shrink[..., None] * y_i + _values(p, v[:, :, j].to(exact))
                m = new
            nothing = l == 0
            y[..., i, :] = y_i / l.masked_fill(nothing, 1)[..., None]
            L[..., i] = (m + l.log()).masked_fill(nothing, 0)
        ctx.save_for_backward(q, k, v, mask, bias, y, L)
        ctx.numbers = causal, scale, tile
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, bias, y, L = ctx.saved_tensors
        causal, scale, tile = ctx.numbers
        T, S, exact = q.shape[3], k.shape[2], L.dtype
        shift = S - T if causal else None
        dq, dk, dv = (torch.zeros_like(x, dtype=exact) for x in (q, k, v))
        dbias = torch.zeros_like(bias, dtype=exact) if ctx.needs_input_grad[4] else None
        with torch.autocast(q.device.type, enabled=False):
            for i, tiles in _tiles(T, S, causal, tile):
                q_i, dy_i = q[..., i, :].to(exact) * scale, grads[0][..., i, :].to(exact)
                D_i = (dy_i * y[..., i, :]).sum(-1, keepdim=True)
                for j in tiles:
                    k_j = k[:, :, j].to(exact)
                    p = (_scores(q_i, k_j, i, j, shift, mask, bias) - L[..., i, None]).exp()
                    da = p * (_values(dy_i, v[:, :, j].to(exact).mT) - D_i)
                    dv[:, :, j] += p.flatten(2, 3).mT @ dy_i.flatten(2, 3)
                    dk[:, :, j] += da.flatten(2, 3).mT @ q_i.flatten(2, 3)
                    dq[..., i, :] += _values(da, k_j) * scale
                    here = part(dbias, i, j)
                    if here is not None:
                        here += da.sum_to_size(here.shape)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None if dbias is None else dbias.to(bias.dtype), None, None, None  # fmt: skip


def _values(p: Tensor, v: Tensor) -> Tensor:
    """[B, g, r, t, s] and [B, g, s, e] -> [B, g, r, t, e]: the heads of a group are rows of one product."""
    return (p.flatten(2, 3) @ v).unflatten(2, p.shape[2:4])
