"""Relative positions as biases of the scores: T5's buckets, ALiBi's slopes, Shaw's vectors.

With e_ij the bias added to q_i k_j / sqrt(d), and a distance j - i from query i to key j:
    T5     e_ij = table[bucket(j - i), head]                               Raffel et al., 2020, arXiv:1910.10683
    ALiBi  e_ij = -slope_head |j - i|                                      Press et al., 2022, arXiv:2108.12409
    Shaw   e_ij = q_i a^K_c / sqrt(d),  and value j is v_j + a^V_c         Shaw et al., 2018, arXiv:1803.02155
           c = max(-clip, min(clip, j - i))
Only differences of positions enter, so all are translation-invariant.
Shapes: B batch, T queries, S keys, h heads, d channels per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sensorium.parts.positions import Positions


class T5(Positions):
    """One learned value per bucket and head, shared by all layers of T5 (Raffel et al., 2020, section 2.1).

    ``buckets`` of distances: half of them hold one distance each, the others are logarithmic up to ``distance``, and
    the last holds all larger ones. ``bidirectional``: half of the buckets each for earlier and later keys; otherwise
    all later keys share the bucket of distance 0, since causal masks hide them. T5 itself does not divide its scores by
    sqrt(d): its W_q is smaller by that factor instead.
    """

    attention = frozenset({"softmax"})
    undecayed = ("table.weight",)

    def __init__(self, heads: int, *, buckets: int = 32, distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        self.buckets, self.distance, self.bidirectional = buckets, distance, bidirectional
        exact = buckets // (4 if bidirectional else 2)
        if not 0 < exact < distance:
            raise ValueError(f"{buckets} buckets up to a distance of {distance}: too few, or too near to grow")
        self.table = nn.Embedding(buckets, heads)

    def bucket(self, ahead: Tensor) -> Tensor:
        """Distances j - i, int64 of any shape -> bucket indices."""
        side, count = 0, self.buckets
        if self.bidirectional:
            count //= 2
            side, far = (ahead > 0) * count, ahead.abs()
        else:
            far = (-ahead).clamp(min=0)
        exact = count // 2
        growth = (far.clamp(min=exact).float() / exact).log() / math.log(self.distance / exact)
        grown = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        return side + torch.where(far < exact, far, grown)

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """[1, h, T, S]."""
        return self.table(self.bucket(at_k - at_q[:, None])).permute(2, 0, 1)[None].to(q.dtype)


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... 2^-8 for n heads; if n is not a power of two, those of the power below and then every
    other one of the power above, as in the authors' code."""
    if heads & (heads - 1) == 0:
        return [2.0 ** (-8 * i / heads) for i in range(1, heads + 1)]
    below = 1 << (heads.bit_length() - 1)
    return alibi_slopes(below) + alibi_slopes(2 * below)[::2][: heads - below]


class ALiBi(Positions):
    """A penalty linear in the distance, with one slope per head (Press et al., 2022, section 3); any length, no
    weights.

    The authors' form is for keys before the query. Here later keys get the same penalty, so that bidirectional models
    can use it; with a causal mask the two are equal.
    """

    attention = frozenset({"softmax"})
    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """[1, h, T, S]."""
        far = (at_k - at_q[:, None]).abs()
        return (-self.slopes.float()[:, None, None] * far)[None].to(q.dtype)


class Shaw(Positions):
    """A learned vector per distance, for keys and for values, shared by heads (Shaw et al., 2018, eq. 3 and 4).

    Distances beyond ``clip`` count as ``clip``. Queries are multiplied with all 2 clip + 1 vectors once and the scores
    are gathered from there; weights are summed by distance before they are multiplied with the values' vectors.
    """

    attention = frozenset({"softmax"})
    undecayed = ("keys", "values")

    def __init__(self, head_dim: int, clip: int) -> None:
        super().__init__()
        self.clip = clip
        self.keys = nn.Parameter(torch.empty(2 * clip + 1, head_dim))
        self.values = nn.Parameter(torch.empty(2 * clip + 1, head_dim))
        nn.init.xavier_uniform_(self.keys)
        nn.init.xavier_uniform_(self.values)

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """[B, h, T, S]."""
        scores = q @ self.keys.mT.to(q.dtype) * q.shape[-1] ** -0.5
        return scores.gather(-1, self._kind(at_q, at_k).expand(*q.shape[:3], -1))

    def read(self, weights: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """[B, h, T, d]."""
        kinds = self._kind(at_q, at_k).expand_as(weights)
        shares = weights.new_zeros(*weights.shape[:3], len(self.values)).scatter_add(-1, kinds, weights)
        return shares @ self.values.to(weights.dtype)

    def _kind(self, at_q: Tensor, at_k: Tensor) -> Tensor:
        return (at_k - at_q[:, None]).clamp(-self.clip, self.clip) + self.clip  # [T, S], 0 .. 2 clip
