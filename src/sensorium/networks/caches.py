"""The cache of one attention layer, so that new tokens need not recompute earlier ones.

Each kind of attention creates its own (``new_cache``), fills it, and alone knows its content: keys and values here, a
latent in parts/attention/latent.py, or a state of constant size. A decoder (networks/decoder.py) holds one per layer
and only reorders its rows.
Shapes: B batch, T tokens, h heads, g key-value heads, d channels per head, e of a value.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sensorium.parts.attention.gau import GatedAttentionUnit, Past


class LayerCache(Protocol):
    """The interface that a decoder needs."""

    def reorder(self, rows: Tensor) -> None:
        """Row i continues from row ``rows[i]``; int64 [B]."""
        ...


class KeysAndValues:
    """Keys [B, g, ``length``, d] and values, preallocated."""

    def __init__(
        self, batch: int, heads: int, length: int, dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.k = torch.empty(batch, heads, length, dim, device=device, dtype=dtype)
        self.v = torch.empty_like(self.k)
        self.seen = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, g, T, d] -> all of them."""
        start, new = self.seen, k.shape[2]
        self.k.narrow(2, start, new).copy_(k)
        self.v.narrow(2, start, new).copy_(v)
        self.seen = end = start + new
        return self.k.narrow(2, 0, end), self.v.narrow(2, 0, end)

    def reorder(self, rows: Tensor) -> None:
        for kept in (self.k, self.v):
            kept[:, :, : self.seen] = kept[rows, :, : self.seen]


class Running:
    """The state of linear attention after ``seen`` tokens, sums [B, h, ., .] of constant size; () before the first."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, ...] = ()
        self.seen = 0

    def reorder(self, rows: Tensor) -> None:
        self.state = tuple(one[rows] for one in self.state)


class GatedPast:
    """The cache of a gated unit: the last chunk, or all tokens if it is not mixed, and sums over earlier chunks."""

    def __init__(self) -> None:
        self.past: Past | None = None

    def extend(self, unit: GatedAttentionUnit, x: Tensor) -> Tensor:
        """Apply ``unit`` to the following tokens [B, T, D] -> [B, T, D]."""
        y, self.past = unit.extend(x, self.past)
        return y

    def reorder(self, rows: Tensor) -> None:
        if self.past is not None:
            k, v, before, total, seen = self.past
            self.past = Past(k[rows], v[rows], before[rows], total[rows], seen)
