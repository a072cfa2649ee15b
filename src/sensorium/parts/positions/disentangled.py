"""DeBERTa: disentangled attention (He et al., 2021, arXiv:2006.03654, section 3.1; v3: arXiv:2111.09543).

A score adds three products, of content with content, content with distance, and distance with content:
    A_ij = (q_i . k_j  +  q_i . K_n  +  k_j . Q_n) / sqrt(3 d),      K = P W_k,  Q = P W_q,
    n = max(0, min(2 span - 1, delta(i - j) + span)),
with one table P of 2 span distances for all layers, and W_k, W_q of each layer. delta is the distance in the first
version and logarithmic beyond span / 2 in the second. The paper writes n of j - i for the last term; the authors' code,
and so every checkpoint, uses the same n for both, as here.
Shapes: B batch, T queries, S keys, D width, h heads, g key-value heads, d channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.parts.positions import Positions


def log_distance(away: Tensor, span: int, farthest: int) -> Tensor:
    """Distances i - j, int64 of any shape -> the same up to span / 2, then logarithmic, reaching span at
    ``farthest``."""
    middle = span // 2
    far = away.abs().clamp(min=middle).float() / middle
    # both logarithms in float32: at farthest - 1 their ratio is then exactly one, not slightly more, which ceil would round up
    growth = far.log() / torch.tensor((farthest - 1) / middle).log()
    grown = (growth * (middle - 1)).ceil().long() + middle
    return torch.where(away.abs() <= middle, away, grown * away.sign())


class Disentangled(Positions):
    """Content-to-position and position-to-content scores.

    table: P, [2 span, D]; pass the same to every layer. farthest: in the second version, the distance at which the
    logarithm reaches span; None is the first version. W_k has no bias, which would add a constant to all scores of a
    query. One of the three products is the attention's: q k^T / sqrt(d) must be multiplied by ``scale``, 1 / sqrt(3),
    before ``bias`` is added.
    """

    attention = frozenset({"softmax"})
    scale = 3**-0.5

    def __init__(self, table: nn.Embedding, heads: int, head_dim: int, *, farthest: int | None = None) -> None:
        super().__init__()
        span = table.num_embeddings // 2
        if farthest is not None and not 1 < span // 2 < farthest - 1:
            raise ValueError(f"span {span} is too large for distances up to {farthest}")
        self.table, self.heads, self.span, self.farthest = table, heads, span, farthest
        self.key = nn.Linear(table.embedding_dim, heads * head_dim, bias=False)
        self.query = nn.Linear(table.embedding_dim, heads * head_dim)

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """[B, h, T, S]."""
        away = at_q[:, None] - at_k
        if self.farthest is not None:
            away = log_distance(away, self.span, self.farthest)
        n = (away + self.span).clamp(0, 2 * self.span - 1)  # [T, S]
        keys, queries = (
            project(self.table.weight).unflatten(-1, (self.heads, -1)).permute(1, 2, 0).to(q.dtype)
            for project in (self.key, self.query)
        )  # [h, d, 2 span]
        k = k.repeat_interleave(self.heads // k.shape[1], dim=1)
        to_position = (q @ keys).gather(-1, n.expand(*q.shape[:3], -1))
        to_content = (k @ queries).gather(-1, n.mT.expand(*k.shape[:3], -1)).mT
        return (to_position + to_content) * (3 * q.shape[-1]) ** -0.5
