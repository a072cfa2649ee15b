"""Beam search for the most likely texts of any autoregressive model.

The score of a hypothesis Y of n tokens is log P(Y) / ((5 + n) / 6)^alpha (Wu et al., 2016, arXiv:1609.08144, eq. 14,
without their coverage penalty).
Shapes: B sources, K hypotheses of each, V vocabulary, n tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def length_penalty(n: Tensor, alpha: float) -> Tensor:
    """((5 + n) / 6)^alpha, by which the log-probability of ``n`` tokens is divided."""
    return ((5 + n) / 6) ** alpha


def beam_search(
    step: Callable[[Tensor | None, Tensor], Tensor],
    first: Tensor,
    *,
    end: int,
    beam: int,
    alpha: float,
    most: int,
    fill: int,
) -> tuple[Tensor, Tensor]:
    """The best texts of a model, best first: tokens int64 [B, K, n] and scores [B, K].

    step: the parent of each text [B K] (None at first: itself) and its last token [B K] -> log-probabilities of the
    next token, [B K, V]. first: the start token [B], not part of the result. The K = ``beam`` most likely texts are
    kept (``beam`` 1: greedy). A finished text (with ``end``) keeps its slot in the beam (Sutskever et al., 2014,
    arXiv:1409.3215); when all have ended or ``most`` tokens are generated, they are ranked by log P /
    ``length_penalty(n, alpha)``, n counting ``end``; unfinished texts are ranked the same way. ``fill`` pads after
    ``end``. If there are fewer than K texts the others score -inf.
    """
    if beam < 1 or most < 1:
        raise ValueError(f"a search needs a beam and a length of at least 1, got beam {beam} and most {most}")
    B, device = len(first), first.device
    rank = torch.arange(beam, device=device).expand(B, -1)
    log_p = torch.where(rank == 0, 0.0, -torch.inf)  # initially all are the same text
    done, length = torch.zeros_like(rank, dtype=torch.bool), torch.zeros_like(rank)
    text, last, rows = first.new_empty(B, beam, 0), first.repeat_interleave(beam), None
    for n in range(1, most + 1):
        grown = log_p[..., None] + step(rows, last).unflatten(0, (B, beam))
        best, which = grown.masked_fill(done[..., None], -torch.inf).flatten(1).topk(beam)
        # finished texts first, then the best continuations
        behind = (rank - done.sum(1, keepdim=True)).clamp(min=0)
        parent = torch.where(done, rank, which.gather(1, behind) // grown.shape[-1])
        token = torch.where(done, fill, which.gather(1, behind) % grown.shape[-1])
        log_p, length = torch.where(done, log_p, best.gather(1, behind)), torch.where(done, length, n)
        done = done | (token == end) & (log_p > -torch.inf)
        order = done.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        parent, token, log_p, length, done = (x.gather(1, order) for x in (parent, token, log_p, length, done))
        text = torch.cat([text.gather(1, parent[..., None].expand_as(text)), token[..., None]], dim=2)
        if bool((done | (log_p == -torch.inf)).all()):
            break
        rows, last = (parent + beam * torch.arange(B, device=device)[:, None]).flatten(), token.flatten()
    score, order = (log_p / length_penalty(length.to(log_p), alpha)).sort(dim=1, descending=True, stable=True)
    return text.gather(1, order[..., None].expand_as(text)), score
