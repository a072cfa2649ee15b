"""Transformer-XL: relative sinusoids in the scores (Dai et al., 2019, arXiv:1901.02860, section 3.3), also XLNet's
(Yang et al., 2019, arXiv:1906.08237).

In the product of two tokens with positions, each absolute position becomes a distance or a learned constant:
    A_ij = (q_i . k_j  +  q_i . r_{i-j}  +  u . k_j  +  v . r_{i-j}) / sqrt(d),      r_n = W_kR R_n,
    R_n = [sin(n w) | cos(n w)], the sinusoids of a distance, and u, v learned per head.
The first term is the attention's; ``bias`` gives the other three. XLNet's is the same with distances of both signs,
keys ahead included. Each layer has its own W_kR; u and v may be shared between layers, as in the paper.
Shapes: B batch, T queries, S keys, D width, h heads, g key-value heads, d channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import sinusoids


def relative_shift(x: Tensor, keys: int) -> Tensor:
    """[..., T, T + S] by distance, from T - 1 downwards -> [..., T, S] by key: y[i, j] = x[i, T - 1 - i + j].

    Row i starts one column earlier than the previous row, so in memory starts are one less than a row's length apart.
    """
    rows, columns = x.shape[-2:]
    flat = x.flatten(-2)[..., rows - 1 : rows * columns - 1]
    return flat.unflatten(-1, (rows, columns - 1))[..., :keys]


class TransformerXL(Positions):
    """Scores by content and distance. ``clamp``: maximum distance, for texts longer than in training.

    The paper shares ``u`` and ``v`` [h, d] between layers: assign one layer's to the others.
    """

    attention = frozenset({"softmax"})
    undecayed = ("u", "v")

    def __init__(self, width: int, heads: int, head_dim: int, *, clamp: int | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.proj = nn.Linear(width, heads * head_dim, bias=False)  # W_kR
        self.u = nn.Parameter(torch.zeros(heads, head_dim))
        self.v = nn.Parameter(torch.zeros(heads, head_dim))

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor:
        """[B, h, T, S]. Positions must be consecutive, as in a memory and its next segment; else ValueError."""
        if not torch.compiler.is_compiling() and any((at.diff() != 1).any() for at in (at_q, at_k)):
            raise ValueError("Transformer-XL shifts rows of distances: positions must be consecutive")
        heads, d = self.u.shape
        away = at_q[-1] - at_k[0] - torch.arange(len(at_q) + len(at_k), device=at_q.device)
        if self.clamp is not None:
            away = away.clamp(-self.clamp, self.clamp)
        waves = torch.cat(sinusoids(away, self.proj.in_features), dim=-1).to(self.proj.weight.dtype)
        r = self.proj(waves).unflatten(-1, (heads, d)).transpose(0, 1).to(q.dtype)  # [h, T + S, d]
        u, v = self.u.to(q.dtype), self.v.to(q.dtype)
        by_distance = relative_shift((q + v[:, None]) @ r.mT, len(at_k))
        by_key = u[:, None] @ k.repeat_interleave(heads // k.shape[1], dim=1).mT  # [B, h, 1, S]
        return (by_distance + by_key) * d**-0.5
