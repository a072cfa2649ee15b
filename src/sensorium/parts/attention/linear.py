"""Linear attention: transformers are RNNs (Katharopoulos et al., 2020, arXiv:2006.16236).

A product of features, phi(q_i) . phi(k_j), replaces the softmax's exp(q_i . k_j); then the sum over the keys can be
shared by all queries (eq. 4 to 6; 8 to 12 if causal, j <= i):
    y_i = phi(q_i) S_i / (phi(q_i) . z_i + eps),    S_i = sum_j phi(k_j) v_j^T,    z_i = sum_j phi(k_j)
:func:`naive` is the literal sum, with all T x S weights. :func:`absorb` and :func:`attend` are its two halves in linear
time, for all keys at once or, one token at a time (:func:`step`), a recurrence with a state of constant size.
:func:`causal_chunks` is the same for training: products within a chunk, the state between chunks; memory is linear in T.
All take q and k *after* a feature map, so that any map works with any form, and zero features mask a key.
z is stored as the sum of an extra channel of ones in v: the state is one tensor [B, h, d, e + 1].
Feature maps, from ``elu_features`` to ``PositiveFeatures``, name their papers. ``softmax_keys`` is only for
:func:`naive` and :func:`attend` and never causal, because its softmax is over all tokens.
Shapes: B batch, h heads, T queries, S keys, d features per head, e channels of a value, G chunks of C tokens, m random
features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise


def naive(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, eps: float | None = 1e-6) -> Tensor:
    """The specification. q [B, h, T, d], k [B, h, S, d], v [B, h, S, e] -> [B, h, T, e]; eps None: not divided by z.

    Raises ValueError if ``causal`` is True and T is not S.
    """
    with torch.autocast(q.device.type, enabled=False):
        weight_TS = precise(q) @ precise(k).mT
        if causal:
            _same_length(q, k)
            weight_TS = weight_TS.tril()
        y = weight_TS @ precise(v)
        if eps is not None:
            y = y / (weight_TS.sum(-1, keepdim=True) + eps)
    return y.to(v.dtype)


def absorb(k: Tensor, v: Tensor, state: Tensor | None = None) -> Tensor:
    """The state after keys [B, h, S, d] and values [B, h, S, e], added to an earlier one: [B, h, d, e + 1], float32 or
    better."""
    with torch.autocast(k.device.type, enabled=False):
        total = precise(k).mT @ _with_ones(v)
    return total if state is None else state + total


def attend(q: Tensor, state: Tensor, *, eps: float | None = 1e-6) -> Tensor:
    """Output of queries [B, h, T, d] on a state [B, h, d, e + 1]: [B, h, T, e]. ``attend(q, absorb(k, v))`` is linear
    attention to all keys."""
    with torch.autocast(q.device.type, enabled=False):
        return _divided(precise(q) @ state, eps).to(q.dtype)


def step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, *, eps: float | None = 1e-6
) -> tuple[Tensor, Tensor]:
    """The recurrence: one token, q and k [B, h, 1, d], v [B, h, 1, e] -> y [B, h, 1, e] and the state after it."""
    if q.shape[2] != 1 or k.shape[2] != 1:
        raise ValueError(f"step takes one token, got {q.shape[2]} queries and {k.shape[2]} keys; see causal_chunks")
    state = absorb(k, v, state)
    return attend(q, state, eps=eps).to(v.dtype), state


def causal_chunks(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, *, chunk: int = 64, eps: float | None = 1e-6
) -> tuple[Tensor, Tensor]:
    """Causal, ``chunk`` tokens C at a time: q, k [B, h, T, d], v [B, h, T, e] -> y [B, h, T, e] and the state after them.

    ``state``: of earlier tokens. Time T (C (d + e) + d e) and memory T (C + d e / C) per head, gradients included.
    Raises ValueError if queries and keys differ in number or ``chunk`` is below 1.
    """
    _same_length(q, k)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    length = q.shape[2]
    chunk = max(1, min(chunk, length))
    with torch.autocast(q.device.type, enabled=False):
        q_GC, k_GC, v_GC = (
            F.pad(x, (0, 0, 0, -length % chunk)).unflatten(2, (-1, chunk))
            for x in (precise(q), precise(k), _with_ones(v))
        )
        sums_G = k_GC.mT @ v_GC  # [B, h, G, d, e + 1]
        first = torch.zeros_like(sums_G[:, :, :1]) if state is None else state[:, :, None]
        states_G = torch.cat([first, sums_G], dim=2).cumsum(2)
        y = (q_GC @ k_GC.mT).tril() @ v_GC + q_GC @ states_G[:, :, :-1]
        y = _divided(y.flatten(2, 3)[:, :, :length], eps)
    return y.to(v.dtype), states_G[:, :, -1]


def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive everywhere (Katharopoulos, eq. 7). [...] -> [...]"""
    return F.elu(x) + 1


def relu_features(x: Tensor) -> Tensor:
    """max(x, 0). A query that shares no channel with any key gets zero. [...] -> [...]"""
    return x.relu()


def softmax_queries(q: Tensor) -> Tensor:
    """Softmax over the channels (efficient attention: Shen et al., 2018, arXiv:1812.01243, eq. 5). [B, h, T, d] -> same,
    float32 or finer."""
    return precise(q).softmax(-1)


def softmax_keys(k: Tensor) -> Tensor:
    """Softmax over the tokens, each channel for itself (Shen, eq. 5): with ``softmax_queries`` weights sum to one and z
    divides by one. Not causal, nor for :func:`step`: every key depends on all. [B, h, S, d] -> same, float32 or finer."""
    return precise(k).softmax(-2)


def cosine_features(x: Tensor, length: int, start: int = 0) -> Tensor:
    """cosFormer (Qin et al., 2022, arXiv:2202.08791, eq. 10): products of relu(x) decay as cos(pi/2 (i - j) / length).

    x [..., T, d], tokens ``start`` and on of at most ``length`` -> [..., T, 2 d], float32 or finer: by cos(a - b) =
    cos a cos b + sin a sin b. Raises ValueError beyond ``length``, where the cosine would turn negative.
    """
    if start < 0 or start + x.shape[-2] > length:
        raise ValueError(f"cosFormer has a length of {length} tokens, got {start} to {start + x.shape[-2]}")
    x = precise(x).relu()
    angle = torch.arange(start, start + x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * (math.pi / 2 / length)
    return torch.cat([x * angle.cos(), x * angle.sin()], dim=-1)


class PositiveFeatures(nn.Module):
    """Performer's FAVOR+ (Choromanski et al., 2020, arXiv:2009.14794, lemma 1): m = ``count`` positive random features
    whose products have the expectation exp(q . k / sqrt(d)), the unnormalized weights of softmax attention:

        phi(x)_r = exp(w_r . x' - |x'|^2 / 2) / sqrt(m),    x' = x / d^(1/4),    w_r ~ N(0, 1), orthogonal in d's at a time
    The w are a buffer, drawn when built and by :meth:`redraw_`; queries and keys must be mapped by the same w.
    """

    weight: Tensor

    def __init__(self, dim: int, count: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1 or count < 1:
            raise ValueError(f"dim and count must be at least 1, got {dim} and {count}")
        self.register_buffer("weight", orthogonal_normal(count, dim, generator))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., m], float32 or finer. The mean is exact; |x'| above about 15 underflows: see ``queries``."""
        return self._exponent(x).exp() / math.sqrt(len(self.weight))

    def queries(self, q: Tensor) -> Tensor:
        """``forward(q)`` over each query's largest feature, which cancels against z: safe for queries of any size."""
        exponent = self._exponent(q)
        return (exponent - exponent.amax(-1, keepdim=True).detach()).exp()

    @torch.no_grad()
    def redraw_(self, generator: torch.Generator | None = None) -> None:
        """Redraw the random features, so that the model does not fit the errors of one draw; earlier states become
        invalid."""
        count, dim = self.weight.shape
        self.weight.copy_(orthogonal_normal(count, dim, generator))

    def _exponent(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = precise(x) * x.shape[-1] ** -0.25
            return x @ self.weight.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2


def orthogonal_normal(count: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """[count, dim]: each row is N(0, 1), and up to ``dim`` in turn are orthogonal, which reduces the variance (section
    2.4).

    Drawn on the CPU, so that a seed gives the same result on every device.
    """
    blocks = []
    for _ in range(math.ceil(count / dim)):
        turn, triangle = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
        blocks.append(turn * triangle.diagonal().sign())  # signs make the rotation uniform: plain QR is biased
    norm = torch.randn(count, dim, generator=generator).norm(dim=1, keepdim=True)
    return torch.cat(blocks)[:count] * norm


def _with_ones(v: Tensor) -> Tensor:
    return F.pad(precise(v), (0, 1), value=1.0)


def _divided(y: Tensor, eps: float | None) -> Tensor:
    return y[..., :-1] if eps is None else y[..., :-1] / (y[..., -1:] + eps)


def _same_length(q: Tensor, k: Tensor) -> None:
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"causal attention needs a key for each query, got {q.shape[2]} and {k.shape[2]}")
