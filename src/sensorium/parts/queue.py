"""A queue of embeddings of earlier batches, as negatives or as more samples (He et al., 2019, arXiv:1911.05722, section 3.2).

    push:  queue[at : at + n] <- the newest n embeddings,   at <- (at + n) mod K
All processes push the embeddings of all of them, so that their queues are equal. Shapes: K entries, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.gather import gather


class Queue(nn.Module):
    """``rows`` [K, D], the oldest at ``at``, of which ``count`` were pushed; at first they are random unit vectors."""

    rows: Tensor
    at: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue has at least 1 entry, got {size}")
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @property
    def full(self) -> bool:
        """Whether none of the rows is random any more."""
        return int(self.count) >= len(self.rows)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replace the oldest entries by ``rows`` [n, D] of every process; of more than K the last K stay."""
        rows = gather(rows.detach()).to(self.rows.dtype)[-len(self.rows) :]
        place = (int(self.at) + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows[place] = rows
        self.at.copy_((self.at + len(rows)) % len(self.rows))
        self.count.copy_((self.count + len(rows)).clamp(max=len(self.rows)))
