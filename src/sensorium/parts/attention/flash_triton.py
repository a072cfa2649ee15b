"""FlashAttention-2 as Triton kernels (Dao, 2023, arXiv:2307.08691), for a GPU or, with TRITON_INTERPRET=1, anywhere.

The algorithm and its equations are those of :mod:`sensorium.parts.attention.tiled`, one program per tile: of queries
for y, L and dq; of keys for dk and dv, over all query heads that share them, so that no two programs write to one
address.
Shapes: B batch, T queries, S keys, h heads of queries, g of keys and values, r = h / g, d channels of a key, e of a value;
in the kernels capital letters of tensors are pointers, ``_b``, ``_h`` and ``_t`` their strides, d_ and e_ are rounded up to
powers of two.
"""

# pyright: reportInvalidTypeForm=false
# Triton reads the annotations of kernels, and tl is imported only when they are needed.

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sensorium.parts.attention.exact import Asked, answers, by_document

tl: Any = None  # triton.language, imported with the first kernel, which finds it by this name


def flash(q: Tensor, k: Tensor, v: Tensor, *, tile: int | None = None, **asked: Unpack[Asked]) -> Tensor:
    """:class:`~sensorium.parts.attention.exact.Attend` for heads of 16 to 128 channels, without mask and bias.

    tile: queries and keys per program (a power of two, at least 16; by default as many as fit). No second derivative.
    Raises ValueError for unsupported arguments, RuntimeError without triton or a GPU.
    """
    causal, mask, bias, lengths, scale = answers(asked)
    if mask is not None or bias is not None:
        raise ValueError("flash() supports neither mask nor bias: fused() and tiled() do")
    channels = (q.shape[-1], v.shape[-1])
    if min(channels) < 16 or max(channels) > 128:
        raise ValueError(f"flash() needs heads of 16 to 128 channels, got {channels[0]} and {channels[1]}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"flash() needs float32, float16 or bfloat16, the same for q, k and v, got {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} heads of keys and values must divide the {q.shape[1]} of the queries")
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("flash() needs triton, which is not installed; fused() computes the same")
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"flash() needs a GPU, not {q.device.type!r}, or TRITON_INTERPRET=1; fused() computes the same"
        )
    if not q.is_cuda and q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter does not support bfloat16: use float32 or float16")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tile = tile or (64 if max(channels) * q.element_size() <= 256 else 32)

    def one(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        return _Flash.apply(q, k, v, causal, scale, tile)

    if lengths is None:
        return one(q, k, v)
    return by_document(one, q, k, v, **asked)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, tile: int) -> Tensor:
        q, k, v = (_in_rows(x) for x in (q, k, v))
        (B, h, T, _), e = q.shape, v.shape[-1]
        y = q.new_empty(B, T, h, e).transpose(1, 2)  # so that the heads of a token are contiguous
        L = q.new_empty(B, h, T, dtype=torch.float32)
        numbers = _numbers(q, k, v, causal, scale, tile)
        with torch.cuda.device_of(q):
            _kernels()[0][(-(-T // tile), B * h)](q, k, v, y, L, *_strides(q, k, v, y), **numbers)
        ctx.save_for_backward(q, k, v, y, L)
        ctx.numbers = numbers
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, L = ctx.saved_tensors
        dy = _in_rows(grads[0])
        D = (dy.float() * y.float()).sum(-1)
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        (B, h, T, _), (g, S), tile = q.shape, k.shape[1:3], ctx.numbers["TILE"]
        _, keys_kernel, queries_kernel = _kernels()
        strides = _strides(q, k, v, dy)
        with torch.cuda.device_of(q):
            keys_kernel[(-(-S // tile), B * g)](q, k, v, dy, L, D, dk, dv, *strides, **ctx.numbers)
            queries_kernel[(-(-T // tile), B * h)](q, k, v, dy, L, D, dq, *strides, **ctx.numbers)
        return dq, dk, dv, None, None, None


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(dim) for x in tensors for dim in range(3)]


def _numbers(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, tile: int) -> dict[str, Any]:
    d, e = q.shape[-1], v.shape[-1]
    return {
        "h": q.shape[1], "r": q.shape[1] // k.shape[1], "T": q.shape[2], "S": k.shape[2], "d": d, "e": e, "scale": scale,
        "CAUSAL": causal, "TILE": tile, "d_": 1 << (d - 1).bit_length(), "e_": 1 << (e - 1).bit_length(),
        # TensorFloat-32, the default, would keep only three digits of float32 scores
        "EXACT": "ieee" if q.dtype == torch.float32 else "tf32", "num_warps": 4, "num_stages": 2,
    }  # fmt: skip


@cache
def _kernels() -> tuple[Any, Any, Any]:
    global tl
    import triton
    import triton.language as tl

    return triton.jit(_forward), triton.jit(_backward_keys), triton.jit(_backward_queries)


def _forward(
    Q, K, V, Y, L, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, h, r, T, S, d, e, scale,
    CAUSAL: tl.constexpr, TILE: tl.constexpr, d_: tl.constexpr, e_: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """y and L of one tile of queries of one head."""
    low, one = tl.program_id(0) * TILE, tl.program_id(1).to(tl.int64)
    b, head = one // h, one % h
    t, x, z = low + tl.arange(0, TILE), tl.arange(0, d_), tl.arange(0, e_)
    q_at = Q + b * q_b + head * q_h + t[:, None] * q_t + x[None, :]
    q = tl.load(q_at, mask=(t[:, None] < T) & (x[None, :] < d), other=0.0)
    m = tl.full([TILE], float("-inf"), tl.float32)
    l = tl.zeros([TILE], tl.float32)
    y = tl.zeros([TILE, e_], tl.float32)
    end = S
    if CAUSAL:
        end = tl.minimum(S, low + TILE + S - T)
    for first in range(0, end, TILE):
        s = first + tl.arange(0, TILE)
        k_at = K + b * k_b + head // r * k_h + s[:, None] * k_t + x[None, :]
        v_at = V + b * v_b + head // r * v_h + s[:, None] * v_t + z[None, :]
        k = tl.load(k_at, mask=(s[:, None] < S) & (x[None, :] < d), other=0.0)
        v = tl.load(v_at, mask=(s[:, None] < S) & (z[None, :] < e), other=0.0)
        seen = (s[None, :] < S) & (t[:, None] < T)
        if CAUSAL:
            seen = seen & (s[None, :] <= t[:, None] + (S - T))
        a = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=EXACT) * scale, float("-inf"))
        new = tl.maximum(m, tl.max(a, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)
        p, shrink = tl.exp(a - finite[:, None]), tl.exp(m - finite)
        l = shrink * l + tl.sum(p, 1)
        y = shrink[:, None] * y + tl.dot(p.to(v.dtype), v, input_precision=EXACT)
        m = new
    full = tl.where(l == 0.0, 1.0, l)
    y_at = Y + b * y_b + head * y_h + t[:, None] * y_t + z[None, :]
    tl.store(y_at, (y / full[:, None]).to(Y.dtype.element_ty), mask=(t[:, None] < T) & (z[None, :] < e))
    tl.store(L + one * T + t, tl.where(l == 0.0, 0.0, m + tl.log(full)), mask=t < T)


def _backward_keys(
    Q, K, V, DY, L, D, DK, DV, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, h, r, T, S, d, e, scale,
    CAUSAL: tl.constexpr, TILE: tl.constexpr, d_: tl.constexpr, e_: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys of one key head."""
    low, one, g = tl.program_id(0) * TILE, tl.program_id(1).to(tl.int64), h // r
    b, kv_head = one // g, one % g
    s, x, z = low + tl.arange(0, TILE), tl.arange(0, d_), tl.arange(0, e_)
    k_in, v_in = (s[:, None] < S) & (x[None, :] < d), (s[:, None] < S) & (z[None, :] < e)
    k = tl.load(K + b * k_b + kv_head * k_h + s[:, None] * k_t + x[None, :], mask=k_in, other=0.0)
    v = tl.load(V + b * v_b + kv_head * v_h + s[:, None] * v_t + z[None, :], mask=v_in, other=0.0)
    dk = tl.zeros([TILE, d_], tl.float32)
    dv = tl.zeros([TILE, e_], tl.float32)
    start = 0
    if CAUSAL:
        start = tl.maximum(0, low - (S - T)) // TILE * TILE
    for head in range(kv_head * r, kv_head * r + r):
        for first in range(start, T, TILE):
            t = first + tl.arange(0, TILE)
            q_at = Q + b * q_b + head * q_h + t[:, None] * q_t + x[None, :]
            dy_at = DY + b * y_b + head * y_h + t[:, None] * y_t + z[None, :]
            q = tl.load(q_at, mask=(t[:, None] < T) & (x[None, :] < d), other=0.0)
            dy = tl.load(dy_at, mask=(t[:, None] < T) & (z[None, :] < e), other=0.0)
            l = tl.load(L + (b * h + head) * T + t, mask=t < T, other=0.0)
            delta = tl.load(D + (b * h + head) * T + t, mask=t < T, other=0.0)
            seen = (s[None, :] < S) & (t[:, None] < T)
            if CAUSAL:
                seen = seen & (s[None, :] <= t[:, None] + (S - T))
            a = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=EXACT) * scale, float("-inf"))
            p = tl.exp(a - l[:, None])
            da = p * (tl.dot(dy, tl.trans(v), input_precision=EXACT) - delta[:, None])
            dv += tl.dot(tl.trans(p.to(dy.dtype)), dy, input_precision=EXACT)
            dk += tl.dot(tl.trans(da.to(q.dtype)), q, input_precision=EXACT)
    dk_at, dv_at = (one * S + s[:, None]) * d + x[None, :], (one * S + s[:, None]) * e + z[None, :]
    tl.store(DK + dk_at, (dk * scale).to(DK.dtype.element_ty), mask=k_in)
    tl.store(DV + dv_at, dv.to(DV.dtype.element_ty), mask=v_in)


def _backward_queries(
    Q, K, V, DY, L, D, DQ, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, y_b, y_h, y_t, h, r, T, S, d, e, scale,
    CAUSAL: tl.constexpr, TILE: tl.constexpr, d_: tl.constexpr, e_: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries of one head."""
    low, one = tl.program_id(0) * TILE, tl.program_id(1).to(tl.int64)
    b, head = one // h, one % h
    t, x, z = low + tl.arange(0, TILE), tl.arange(0, d_), tl.arange(0, e_)
    q_in, y_in = (t[:, None] < T) & (x[None, :] < d), (t[:, None] < T) & (z[None, :] < e)
    q = tl.load(Q + b * q_b + head * q_h + t[:, None] * q_t + x[None, :], mask=q_in, other=0.0)
    dy = tl.load(DY + b * y_b + head * y_h + t[:, None] * y_t + z[None, :], mask=y_in, other=0.0)
    l = tl.load(L + one * T + t, mask=t < T, other=0.0)
    delta = tl.load(D + one * T + t, mask=t < T, other=0.0)
    dq = tl.zeros([TILE, d_], tl.float32)
    end = S
    if CAUSAL:
        end = tl.minimum(S, low + TILE + S - T)
    for first in range(0, end, TILE):
        s = first + tl.arange(0, TILE)
        k_at = K + b * k_b + head // r * k_h + s[:, None] * k_t + x[None, :]
        v_at = V + b * v_b + head // r * v_h + s[:, None] * v_t + z[None, :]
        k = tl.load(k_at, mask=(s[:, None] < S) & (x[None, :] < d), other=0.0)
        v = tl.load(v_at, mask=(s[:, None] < S) & (z[None, :] < e), other=0.0)
        seen = (s[None, :] < S) & (t[:, None] < T)
        if CAUSAL:
            seen = seen & (s[None, :] <= t[:, None] + (S - T))
        a = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=EXACT) * scale, float("-inf"))
        p = tl.exp(a - l[:, None])
        da = p * (tl.dot(dy, tl.trans(v), input_precision=EXACT) - delta[:, None])
        dq += tl.dot(da.to(k.dtype), k, input_precision=EXACT)
    tl.store(DQ + (one * T + t[:, None]) * d + x[None, :], (dq * scale).to(DQ.dtype.element_ty), mask=q_in)
