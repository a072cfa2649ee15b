"""What one layer's attention keeps of the tokens that it has seen, so that the next ones need not read them again.

A kind of attention makes its own (``new_cache``), fills it, and alone knows what is in it: keys and values here, a latent in
parts/attention/latent.py, a state that does not grow. A decoder (networks/decoder.py) holds one a layer and only ever puts
its rows in another order.
Shapes: B batch, T tokens, h heads, g key-value heads, d channels a head, e of a value.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sensorium.parts.attention.gau import GatedAttentionUnit, Past


class LayerCache(Protocol):
    """What a decoder asks of it."""

    def reorder(self, rows: Tensor) -> None:
        """Row i goes on from what was row ``rows[i]``; int64 [B]."""
        ...


class KeysAndValues:
    """Keys [B, g, ``length``, d] and values, memory for which is taken at once."""

    def __init__(
        self, batch: int, heads: int, length: int, dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.k = torch.empty(batch, heads, length, dim, device=device, dtype=dtype)
        self.v = torch.empty_like(self.k)
        self.seen = 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [B, g, T, d] behind what is there -> all of them."""
        start, new = self.seen, k.shape[2]
        self.k.narrow(2, start, new).copy_(k)
        self.v.narrow(2, start, new).copy_(v)
        self.seen = end = start + new
        return self.k.narrow(2, 0, end), self.v.narrow(2, 0, end)

    def reorder(self, rows: Tensor) -> None:
        for kept in (self.k, self.v):
            kept[:, :, : self.seen] = kept[rows, :, : self.seen]


class Running:
    """The state of linear attention after the ``seen`` tokens, sums [B, h, ., .] that don't grow; () before the first."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, ...] = ()
        self.seen = 0

    def reorder(self, rows: Tensor) -> None:
        self.state = tuple(one[rows] for one in self.state)


class GatedPast:
    """What a gated unit keeps: the last chunk, or all tokens if it is not mixed, and sums over the chunks before."""

    def __init__(self) -> None:
        self.past: Past | None = None

    def extend(self, unit: GatedAttentionUnit, x: Tensor) -> Tensor:
        """``unit`` of the tokens [B, T, D] that follow -> [B, T, D]."""
        y, self.past = unit.extend(x, self.past)
        return y

    def reorder(self, rows: Tensor) -> None:
        if self.past is not None:
            k, v, before, total, seen = self.past
            self.past = Past(k[rows], v[rows], before[rows], total[rows], seen)
