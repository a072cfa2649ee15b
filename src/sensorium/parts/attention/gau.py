"""GAU: the gated attention unit, quadratic or by mixed chunks (Hua et al., "Transformer Quality in Linear Time", 2022,
arXiv:2202.10447).

One layer is attention and feed-forward in one: values are gated, so that a single head without softmax is enough (eq. 3 to 6):
    U, V, Z = SiLU(X W)                 Q, K = rope(Z * gamma + beta), separate gamma and beta
    A = relu(Q K^T / n + b)^2           O = (U * A V) W_o
b is a bias learned for the distance j - i. In FLASH (section 3.2) A V stays within chunks of n tokens, and two further
heads of the same Z attend linearly to the other chunks, by one sum per chunk:
    V_g = A_g V_g + Q'_g M_g,    M_g = mean of K'_h^T V_h / n,  over chunks h < g (causal) or over all chunks
as in the authors' code; their eq. 8 has the sum in place of the mean, which only differs in scale for equal lengths.
The paper's n is the length of a row. Here it is an argument of the unit, so that a token's output does not depend on
the number of later tokens, and decoding equals a full pass.
Shapes: B batch, T tokens, D width, e channels of V, s of Z, n tokens per chunk, G chunks, H heads of Z (2 or 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.positions.rotary import rotary_table, rotate

LEARNT = 512  # the authors' largest table of distances; beyond, two vectors parametrize all
FEW = 32  # maximum chunks for which one matrix product is faster than a running sum, forward and backward


class Past(NamedTuple):
    """The cache of a causal unit: k [B, t, s] and v [B, t, e] of the last chunk (of all tokens, if not mixed); the sums
    of K'^T V [B, s, e] over earlier chunks and over all tokens; and the number of tokens."""

    k: Tensor
    v: Tensor
    before: Tensor
    total: Tensor
    seen: int


class OffsetScale(nn.Module):
    """``heads`` cheap views of one tensor, each with a scale gamma and an offset beta per channel. [B, T, s] -> [B, H,
    T, s]."""

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(heads, 1, dim) * 0.02)
        self.beta = nn.Parameter(torch.zeros(heads, 1, dim))

    def forward(self, z: Tensor) -> Tensor:
        return z[:, None] * self.gamma + self.beta


class DistanceBias(nn.Module):
    """A weight for each distance j - i, as in T5, up to ``reach`` tokens; larger distances share the last one."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.randn(2 * reach - 1) * 0.02)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions [T] and [S] -> [T, S]."""
        far = self.reach - 1
        return self.weight[(keys - queries[:, None]).clamp(-far, far) + far]


class Even(nn.Module):
    """One bias for all pairs, initially 1 / sqrt(n)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(length**-0.5))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """A scalar, independent of positions."""
        return self.weight


class RotaryBias(nn.Module):
    """A bias for any distance from two vectors: the product of a rotated by i and c rotated by j."""

    def __init__(self, dim: int, theta: float = 10_000.0) -> None:
        super().__init__()
        self.theta = theta
        self.a, self.c = (nn.Parameter(torch.randn(dim) * 0.02) for _ in range(2))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions [T] and [S] -> [T, S]."""
        a_Td, c_Sd = (
            rotate(vector.expand(len(at), -1), rotary_table(at, len(vector), self.theta))
            for vector, at in ((self.a, queries), (self.c, keys))
        )
        return a_Td @ c_Sd.mT


def squared_relu_attention(
    q: Tensor, k: Tensor, v: Tensor, n: int, *, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """relu(q k^T / n + bias)^2 v: q [..., T, s], k [..., S, s], v [..., S, e] -> [..., T, e].

    bias: [T, S]. mask: bool, broadcast to [..., T, S], True for visible keys.
    """
    q, added = q / n, torch.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias.to(q.dtype)
    if mask is not None and mask.ndim == 2:  # merged into the bias: fewer passes over T x S values
        added, mask = added.masked_fill(~mask, -torch.inf), None
    weight = torch.baddbmm(added, q.flatten(0, -3), k.flatten(0, -3).mT).relu().square().unflatten(0, q.shape[:-2])
    return (weight if mask is None else weight * mask) @ v


def mixed_chunk_attention(
    quad_q: Tensor,
    quad_k: Tensor,
    lin_q: Tensor,
    lin_k: Tensor,
    v: Tensor,
    n: int,
    *,
    bias: Tensor | None = None,
    causal: bool = True,
    documents: Tensor | None = None,
) -> Tensor:
    """Quadratic within chunks of ``n`` tokens, linear across them. Heads [B, T, s], v [B, T, e] -> [B, T, e].

    bias: [n, n], or [T, T] if T is smaller. An incomplete last chunk is padded with v = 0, which does not change any
    sum. ``documents`` int [B, T] (a document is a run of equal numbers): each starts a new chunk, so that documents do
    not interact and each gives the same result as alone; it costs up to n more tokens per document, and a product with
    a G x G matrix in place of a running sum.
    """
    length = v.shape[1]
    size = min(n, length)  # a row shorter than a chunk needs no padding
    slot = None if documents is None else document_slots(documents, size)
    q_G, k_G, lin_q_G, lin_k_G, v_G = (_fold(x, size, slot) for x in (quad_q, quad_k, lin_q, lin_k, v))
    mask = torch.ones(size, size, dtype=torch.bool, device=v.device).tril() if causal else None
    y_G = squared_relu_attention(q_G, k_G, v_G, n, bias=bias, mask=mask)
    sums_G = (lin_k_G.mT @ v_G).to(torch.promote_types(v.dtype, torch.float32))  # [B, G, s, e]
    if documents is not None and slot is not None:
        means_G = _means_of_documents(sums_G, documents, slot // size, causal)
    elif causal:
        chunks = sums_G.shape[1]
        count = torch.arange(chunks, device=v.device).mul(size).clamp(min=1)[:, None]
        if chunks <= FEW:
            before_GG = torch.ones(chunks, chunks, dtype=sums_G.dtype, device=v.device).tril(-1)
            means_G = ((before_GG / count) @ sums_G.flatten(2)).view_as(sums_G)
        else:
            means_G = F.pad(sums_G[:, :-1], (0, 0, 0, 0, 1, 0)).cumsum(1) / count[..., None]
    else:
        means_G = sums_G.sum(1, keepdim=True) / length
    y = (y_G + lin_q_G @ means_G.to(v.dtype)).flatten(1, 2)
    return y[:, :length] if slot is None else y.gather(1, slot[..., None].expand(-1, -1, y.shape[-1]))


def document_runs(documents: Tensor) -> tuple[Tensor, Tensor]:
    """For each token [B, T] the index of its run of equal numbers, from 1, and its position within, from 0."""
    new = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    at = torch.arange(documents.shape[1], device=documents.device)
    return new.cumsum(1), at - (at * new).cummax(1).values


def document_slots(documents: Tensor, n: int) -> Tensor:
    """Where each token [B, T] comes to stand in chunks of ``n`` when each document begins a new one: [B, T]."""
    within = document_runs(documents)[1] % n
    return ((within == 0).cumsum(1) - 1) * n + within


class GatedAttentionUnit(nn.Module):
    """The unit without its norm and residual: ``x + unit(norm(x))`` is a layer of FLASH-Quad, or of FLASH if ``mixed``.

    width: D. length: n, what products are divided by: tokens a row at training, or tokens a chunk if ``mixed``.
    expansion: e / D. shared: s, even. theta: RoPE's base; None: no positions of its own, as for images, whose caller
    turns the heads: b is then one number for all pairs, 1 / sqrt(n) at first, by which a unit begins as the mean of all
    values (with b = 0 no gradient would pass the square). Rows longer than ``length`` are taken too.
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        mixed: bool = False,
        causal: bool = True,
        expansion: float = 2.0,
        shared: int = 128,
        theta: float | None = 10_000.0,
    ) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length must be 1 or more tokens, got {length}")
        if shared % 2:
            raise ValueError(f"rotary positions turn pairs of channels: shared {shared} is odd")
        self.length, self.mixed, self.causal, self.theta = length, mixed, causal, theta
        self.shared, self.hidden = shared, int(width * expansion)
        self.uvz = nn.Linear(width, 2 * self.hidden + shared)
        self.heads = OffsetScale(4 if mixed else 2, shared)
        self.bias: nn.Module = Even(length)
        if theta is not None:
            self.bias = DistanceBias(length) if length <= LEARNT else RotaryBias(shared, theta)
        self.out = nn.Linear(self.hidden, width)
        for layer in (self.uvz, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, documents: Tensor | None = None, turn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]. ``documents`` int [B, T]: runs of equal numbers do not see one another. turn: what turns
        the heads [B, H, T, s] of a unit without positions of its own."""
        u, v, heads = self._project(x, 0, turn)
        at = torch.arange(min(x.shape[1], self.length) if self.mixed else x.shape[1], device=x.device)
        bias = self.bias(at, at)
        if self.mixed:
            y = mixed_chunk_attention(*heads, v=v, n=self.length, bias=bias, causal=self.causal, documents=documents)
        else:
            mask = at <= at[:, None] if self.causal else None
            if documents is not None:
                run = document_runs(documents)[0]
                same = run[:, :, None] == run[:, None, :]
                mask = same if mask is None else same & mask
            y = squared_relu_attention(*heads, v=v, n=self.length, bias=bias, mask=mask)
        return self.out(u * y)

    def weights(self, x: Tensor, turn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """relu^2 of the scores of all pairs over their sum, [B, T, T]: what a token reads, of a unit that is not mixed."""
        at = torch.arange(x.shape[1], device=x.device)
        q, k = self._project(x, 0, turn)[2]
        everything = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = squared_relu_attention(q, k, everything, self.length, bias=self.bias(at, at))
        return weight / weight.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)

    def extend(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Tokens [B, T, D] that follow those of ``past`` -> the same rows of ``forward`` on them all, and what to keep.

        Mixed, what is kept does not grow beyond a chunk. Raises ValueError where the unit is not causal.
        """
        if not self.causal:
            raise ValueError("only a causal unit can be extended: here each token sees those after it")
        past = past or self._nothing(x)
        u, v, heads = self._project(x, past.seen)
        found, begin = [], 0
        while begin < x.shape[1]:
            room = self.length - past.k.shape[1] if self.mixed else x.shape[1]
            piece = slice(begin, begin + room)
            y, past = self._read([head[:, piece] for head in heads], v[:, piece], past)
            found.append(y)
            begin += room
        return self.out(u * torch.cat(found, dim=1)), past

    def _nothing(self, x: Tensor) -> Past:
        """What is kept of no tokens, for rows like ``x``."""
        shared = self.shared if self.mixed else 0
        sums = x.new_zeros(len(x), shared, self.hidden, dtype=torch.promote_types(x.dtype, torch.float32))
        return Past(x.new_zeros(len(x), 0, self.shared), x.new_zeros(len(x), 0, self.hidden), sums, sums, 0)

    def _project(
        self, x: Tensor, start: int, turn: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """U and V [B, T, e], and the heads of Z [B, T, s] turned to their positions from ``start`` on."""
        u, v, z = F.silu(self.uvz(x)).split([self.hidden, self.hidden, self.shared], dim=-1)
        heads = self.heads(z)
        if turn is not None:
            heads = turn(heads)
        if self.theta is not None:
            at = torch.arange(start, start + x.shape[1], device=x.device)
            heads = rotate(heads, rotary_table(at, self.shared, self.theta))
        return u, v, heads.unbind(1)

    def _read(self, heads: list[Tensor], v: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Tokens of one chunk behind its earlier ones in ``past``: A V + Q' M [B, T, e], and what to keep."""
        quad_q, quad_k, *linear = heads
        k, values = torch.cat([past.k, quad_k], dim=1), torch.cat([past.v, v], dim=1)
        at = torch.arange(k.shape[1], device=k.device)
        new = at[past.k.shape[1] :]
        y = squared_relu_attention(quad_q, k, values, self.length, bias=self.bias(new, at), mask=at <= new[:, None])
        seen = past.seen + v.shape[1]
        if not linear:
            return y, past._replace(k=k, v=values, seen=seen)
        lin_q, lin_k = linear
        mean = past.before / max(past.seen - past.k.shape[1], 1)
        y = y + lin_q @ mean.to(v.dtype)
        total = past.total + lin_k.mT @ v
        if k.shape[1] == self.length:  # full: the next token begins a chunk
            return y, Past(k[:, :0], values[:, :0], total, total, seen)
        return y, Past(k, values, past.before, total, seen)


def _fold(x: Tensor, n: int, slot: Tensor | None) -> Tensor:
    """[B, T, d] -> chunks [B, G, n, d], zero where there is no token."""
    if slot is None:
        return F.pad(x, (0, 0, 0, -x.shape[1] % n)).unflatten(1, (-1, n))
    chunks = int(slot.max()) // n + 1
    spread = x.new_zeros(len(x), chunks * n, x.shape[2])
    return spread.scatter(1, slot[..., None].expand_as(x), x).unflatten(1, (chunks, n))


def _means_of_documents(sums_G: Tensor, documents: Tensor, chunk: Tensor, causal: bool) -> Tensor:
    """M_g from a sum [B, G, s, e] a chunk, over chunks of the same document; ``chunk`` [B, T] is each token's."""
    run = document_runs(documents)[0]
    run_G = run.new_zeros(sums_G.shape[:2]).scatter(1, chunk, run)
    tokens_G = sums_G.new_zeros(sums_G.shape[:2]).scatter_add(1, chunk, torch.ones_like(chunk, dtype=sums_G.dtype))
    seen_GG = (run_G[:, :, None] == run_G[:, None, :]).to(sums_G.dtype)
    if causal:
        seen_GG = seen_GG.tril(-1)
    count_G = (seen_GG @ tokens_G[..., None]).clamp(min=1)
    return torch.einsum("bgh,bhse->bgse", seen_GG / count_G, sums_G)
