"""Contrastive predictive coding of sequences (CPC: van den Oord, Li & Vinyals, 2018, arXiv:1807.03748, sections 2 and 3.1). What a
moment of a sequence is before it is encoded is said by the system that inherits from it.

Strided convolutions encode a sequence; a recurrent network sums up what has been; and from its state the vectors of the next
moments are predicted, each number of steps ahead by a map of its own, told from those of all other moments of the batch:
    z_t = g_enc(x)_t,      c_t = GRU(z_1, ..., z_t)
    f_k(x_{t+k}, c_t) = exp(z_{t+k}^T W_k c_t)                                                                 (eq. 3)
    L_k = mean over t of -log( f_k(x_{t+k}, c_t) / sum over the K moments of all sequences of f_k )            (eq. 4)
    L = mean over k = 1 .. steps of L_k
log K - L bounds the mutual information of a context and a future moment. A sequence's feature is its last context, which the
paper probes for speech. Layers of the encoder are normalized over their channels (LayerNorm): the statistics of a batch
would tell its sequences apart.
Shapes: B sequences of T entries, t < S moments, D channels of z, C of c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.abilities import BoundsInformation, FuturePredictor
from sensorium.base.precision import precise
from sensorium.method import Method
from sensorium.parts.gather import world_size
from sensorium.parts.learning.ahead import contrast


class PredictiveCoding(Method, BoundsInformation, FuturePredictor):
    """Contrastive prediction of the next moments of sequences.

    ``field``: what of a batch it learns from. entry: what makes [B, T, ``inside``] of it. width: D. state: C. depth: layers
    of the encoder, of which the first ``halvings`` halve the number of moments (kernels of 4 at a stride of 2); the others
    are of single moments. steps: the largest k.
    """

    field: str
    least_batch = 2

    def __init__(
        self, entry: nn.Module, inside: int, *, width: int, state: int, depth: int, halvings: int, steps: int
    ) -> None:
        super().__init__()
        if depth < 1 or not 0 <= halvings <= depth or steps < 1:
            raise ValueError(f"needs 0 <= halvings {halvings} <= depth {depth}, depth and steps {steps} at least 1")
        self.dim, self.halvings, self.steps = state, halvings, steps
        self.entry = entry
        self.encoder = nn.ModuleList(
            Convolution(inside if i == 0 else width, width, halve=i < halvings) for i in range(depth)
        )
        self.gru = nn.GRU(width, state, batch_first=True)
        self.predict = nn.ModuleList(nn.Linear(state, width, bias=False) for _ in range(steps))  # W_k

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """A batch of sequences -> the loss.

        Logs ``information`` (log K - loss), its ``ceiling`` log K, and ``contrast_top1``, how often the moment that is
        predicted best is the right one. Raises ValueError for sequences of too few moments.
        """
        z = self.vectors(batch[self.field])
        with torch.autocast(z.device.type, enabled=False):
            losses, right = [], []
            for k, (p, t) in enumerate(self.predictions(z), 1):
                loss, found = contrast(p.mT.unsqueeze(-1), t.mT.unsqueeze(-1), k)
                losses.append(loss)
                right.append(found)
            loss = torch.stack(losses).mean()
            ceiling = loss.new_full((), math.log(len(z) * world_size() * z.shape[1]))
        told = {"information": ceiling - loss.detach(), "ceiling": ceiling}
        return {"loss": loss, "contrast_top1": torch.stack(right).mean(), **told}

    def vectors(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> z [B, S, D]. Raises ValueError for sequences shorter than what one moment is made of."""
        if x.shape[1] < reach(self.halvings):
            raise ValueError(f"CPC: a moment is made of {reach(self.halvings)}, and a sequence has {x.shape[1]}")
        x = self.entry(x)
        for layer in self.encoder:
            x = layer(x)
        return x

    def predictions(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """z [B, S, D] -> for each k the predictions W_k c_t [B, S - k, D], t < S - k, and all that is to be predicted [B, S,
        D], in float32 or better. Raises ValueError for too few moments."""
        if z.shape[1] <= self.steps:
            raise ValueError(f"CPC: {z.shape[1]} moments; predicting {self.steps} steps ahead needs more")
        z = precise(z)
        c = self.gru(z)[0]
        return [(layer(c[:, :-k]), z) for k, layer in enumerate(self.predict, 1)]

    def tell(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, steps]: of each sequence, the fraction of its moments for which the true future, k moments
        ahead, scores best among those of all B sequences at that time."""
        found = []
        z = self.vectors(x)
        with torch.autocast(z.device.type, enabled=False):
            for k, (p, t) in enumerate(self.predictions(z), 1):
                scores = torch.einsum("bsd,nsd->bsn", p, t[:, k:])
                own = torch.arange(len(z), device=z.device)[:, None]
                found.append((scores.argmax(-1) == own).to(scores.dtype).mean(1))
        return torch.stack(found, 1)

    def features(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, dim]: the last context."""
        z = self.vectors(x)
        with torch.autocast(z.device.type, enabled=False):
            return self.gru(precise(z))[0][:, -1]


class Convolution(nn.Module):
    """relu(LayerNorm(convolution)) in time, without padding: [B, T, C_in] -> [B, T', C_out]; T' = T, or T // 2 - 1 if it
    is to ``halve``."""

    def __init__(self, inside: int, outside: int, *, halve: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inside, outside, 4 if halve else 1, 2 if halve else 1)
        self.norm = nn.LayerNorm(outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.mT).mT).relu()


def reach(halvings: int) -> int:
    """How many entries a moment is made of: 1, 4, 10, 22 ..."""
    return 3 * 2**halvings - 2


def moments(length: int, halvings: int) -> int:
    """How many moments a sequence of ``length`` entries has; 0 if it is too short for one."""
    return max(0, (length - reach(halvings)) // 2**halvings + 1)
