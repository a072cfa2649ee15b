"""Exact nearest neighbors by cosine similarity, in bounded memory; and duplicate images.

For queries q_i and a bank x_j, the k largest of  s_ij = <q_i, x_j> / (|q_i| |x_j|).  The bank is taken in chunks and
the queries in blocks; each block's k best are merged with the k best so far, which is exact. Within a block the columns
are divided into m groups: the k best lie in the k groups with the largest maxima, so only k groups are searched, and
the selection costs about as much as one maximum over the block.

Memory beyond the inputs: ``QUERIES * chunk * 4`` bytes for the block (64 MiB by default), about half of that again for
selection, one normalized chunk of the bank (``chunk * D * 4``) and 12 bytes for each of the k results of each query.
It depends neither on the size of the bank nor (except for the results) on the number of queries.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 1024  # queries per block
CHUNK = 16384  # rows of the bank per block
GROUP = 32  # columns per group: larger makes the maxima cheaper and the search in the k groups more expensive


@torch.no_grad()
def neighbors(
    features: Tensor,
    queries: Tensor,
    k: int,
    *,
    chunk: int = CHUNK,
    query_chunk: int = QUERIES,
    exclude: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The k nearest of ``features`` [N, D] to each of ``queries`` [Q, D]: indices int64 [Q, k], similarities [Q, k].

    Best first. ``k`` is clipped to N. ``exclude`` int64 [Q]: a row of ``features`` that a query must not find, such as
    itself. Ties at the k-th place are broken arbitrarily.
    """
    if k < 1 or chunk < 1 or query_chunk < 1:
        raise ValueError(f"k, chunk and query_chunk must be at least 1, not {k}, {chunk} and {query_chunk}")
    k = min(k, len(features) - (exclude is not None))
    if k < 1:
        raise ValueError(f"no neighbors can be found among {len(features)} features")
    best_Qk = torch.full((len(queries), k), -torch.inf)
    index_Qk = torch.full((len(queries), k), -1, dtype=torch.int64)
    for start in range(0, len(features), chunk):
        bank_ND = F.normalize(features[start : start + chunk].to(device).float(), dim=1)
        for at in range(0, len(queries), query_chunk):
            rows = slice(at, at + query_chunk)
            block = queries[rows].to(device).float() @ bank_ND.T
            if exclude is not None:
                _forbid(block, exclude[rows].to(device) - start)
            value, index = _largest(block, k)
            _merge(best_Qk[rows], index_Qk[rows], value.cpu(), index.cpu() + start)
    length = (
        torch.cat([part.float().norm(dim=1) for part in queries.split(query_chunk)]) if len(queries) else torch.ones(0)
    )
    return index_Qk, best_Qk / length.clamp_min(1e-12)[:, None]


def _forbid(block: Tensor, column: Tensor) -> None:
    row = ((column >= 0) & (column < block.shape[1])).nonzero()[:, 0]
    block[row, column[row]] = -torch.inf


def _largest(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns of the ``min(k, n)`` largest of each row of [Q, n], best first."""
    q, n = block.shape
    m = n // GROUP
    if m <= k:
        return block.topk(min(k, n), dim=1)
    # group j holds the columns j, j + m, j + 2m ...: its maximum runs over the outer axis, which vectorizes
    group = block[:, : m * GROUP].unflatten(1, (GROUP, m)).amax(dim=1).topk(k, dim=1, sorted=False).indices
    column = (group[:, :, None] + torch.arange(0, m * GROUP, m, device=block.device)).flatten(1)
    rest = torch.arange(m * GROUP, n, device=block.device).expand(q, -1)
    column = torch.cat([column, rest], dim=1)
    value, place = block.gather(1, column).topk(k, dim=1)
    return value, column.gather(1, place)


def _merge(best: Tensor, index: Tensor, value: Tensor, found: Tensor) -> None:
    """Merge two sorted lists and keep the largest in ``best`` and ``index``, in place."""
    value, place = torch.cat([best, value], dim=1).topk(best.shape[1], dim=1)
    index.copy_(torch.cat([index, found], dim=1).gather(1, place))
    best.copy_(value)


def duplicates(images: Any) -> list[tuple[int, ...]]:
    """Groups of images (uint8 [N, 3, S, S], array or memory map) with identical pixels, each ascending, by first index."""
    groups: dict[bytes, list[int]] = {}
    for i in range(len(images)):
        digest = hashlib.blake2b(np.asarray(images[i]).tobytes(), digest_size=16).digest()
        groups.setdefault(digest, []).append(i)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def identical(images: Any, queries: Any, indices: Tensor, similarities: Tensor, threshold: float = 0.999) -> Tensor:
    """Which of the neighbors equal the query, pixel for pixel: bool [Q, k].

    ``images`` and ``queries``: the uint8 arrays that ``indices`` and ``similarities`` come from; only similarities of
    at least ``threshold`` are checked, because identical pixels have a similarity of 1 up to rounding.
    """
    same = torch.zeros(indices.shape, dtype=torch.bool)
    for q, place in (similarities >= threshold).nonzero().tolist():
        same[q, place] = np.array_equal(images[int(indices[q, place])], queries[q])
    return same
