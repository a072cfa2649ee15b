"""ToMe: token merging, your ViT but faster (Bolya et al., 2022, arXiv:2210.09461).

In every block of a ViT, between attention and feed-forward layer, the r most similar pairs of tokens are merged, so
that later blocks have fewer tokens. It needs no training. Bipartite soft matching (section 3):
    A, B   = alternating tokens, without the protected ones (the class token, registers)
    m(a)   = argmax over b in B of cos(key_a, key_b)                    keys are means over the heads
    merge a into m(a) for the r tokens a of highest similarity:    x_b <- sum of s x / sum of s,    s_b <- sum of s
over b and all tokens merged into it. A merged token represents s tokens, and attention is proportional to s:
    softmax(q k^T / sqrt(d) + log s) v                                  (eq. 1)
Shapes: B images, T tokens, M after merging, C channels to compare, D width, h heads, d channels per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.attention.exact import fused
from sensorium.parts.block import Block
from sensorium.parts.patches import rows_at


class Groups(NamedTuple):
    """The merged token, of ``count`` = M, of each of T tokens: ``of`` int64 [B, T]."""

    of: Tensor
    count: int

    def then(self, later: Groups) -> Groups:
        """The composition of both merges."""
        return Groups(later.of.gather(1, self.of), later.count)


def ungrouped(x: Tensor) -> Groups:
    """Each of the tokens [B, T, ...] as its own group."""
    return Groups(torch.arange(x.shape[1], device=x.device).expand(len(x), -1), x.shape[1])


def match(metric: Tensor, r: int, protected: int = 0) -> Groups:
    """Bipartite soft matching of tokens by their ``metric`` [B, T, C]: r fewer, at most half of them.

    The first ``protected`` tokens are unchanged. After them come the unmerged tokens of A, in order, then those of B;
    this order determines the pairs of the next block. Similarities are in float32 or better; nothing here has a
    gradient.
    Raises ValueError if r is negative.
    """
    T = metric.shape[1]
    if r < 0:
        raise ValueError(f"r must not be negative, got {r}")
    r = min(r, max(0, T - protected) // 2)
    if r == 0:
        return ungrouped(metric)
    of_a, of_b = slice(protected + protected % 2, None, 2), slice(protected + 1 - protected % 2, None, 2)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        direction = F.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
        similarity, target = (direction[:, of_a] @ direction[:, of_b].mT).max(dim=-1)
        chosen = similarity.argsort(dim=-1, descending=True, stable=True)[:, :r]
        merged = torch.zeros_like(target, dtype=torch.bool).scatter(1, chosen, True)
    of = ungrouped(metric).of.clone()  # the protected tokens' are right
    first_b = protected + target.shape[1] - r
    of[:, of_a] = torch.where(merged, first_b + target, protected + (~merged).cumsum(1) - 1)
    of[:, of_b] = torch.arange(first_b, T - r, device=of.device)
    return Groups(of, T - r)


def merge(x: Tensor, groups: Groups, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean of each group, weighted by the size of its members: [B, T, D] -> [B, M, D], and sizes [B, M].

    size: [B, T], float, by default 1 each. Sums are float32 or better.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    size = x.new_ones(x.shape[:2], dtype=exact) if size is None else size
    total = size.new_zeros(len(x), groups.count).scatter_add(1, groups.of, size)
    index = groups.of[..., None].expand_as(x)
    summed = x.new_zeros(len(x), groups.count, x.shape[2], dtype=exact)
    summed = summed.scatter_add(1, index, x.to(exact) * size[..., None])
    return (summed / total[..., None]).to(x.dtype), total


def unmerge(x: Tensor, groups: Groups) -> Tensor:
    """Copy each group's value to its tokens: [B, M, D] -> [B, T, D]."""
    return rows_at(x, groups.of)


def merging_block(
    block: Block, x: Tensor, size: Tensor | None, r: int, *, protected: int = 0, proportional: bool = True
) -> tuple[Tensor, Tensor | None, Groups]:
    """A :class:`Block` that merges r tokens after its attention: [B, T, D] -> [B, M, D], their sizes [B, M], the groups.

    size: [B, T] of the input tokens, None if all are 1; None is also returned if nothing was ever merged.
    """
    q, k, v = (
        part.unflatten(-1, (block.attn.heads, -1)).transpose(1, 2)
        for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    )
    bias = size.log()[:, None, None] if proportional and size is not None else None
    y = fused(q, k, v, bias=bias)
    x = x + block.drop_path(block.ls1(block.attn.proj(y.transpose(1, 2).flatten(2))))
    groups = match(k.mean(dim=1), r, protected)
    if groups.count < x.shape[1]:
        x, size = merge(x, groups, size)
    return x + block.drop_path(block.ls2(block.mlp(block.norm2(x)))), size, groups


class Vision(Protocol):
    """The interface that is needed of a ViT, as in ``sensorium.networks.vit.ViT``."""

    registers: int
    blocks: nn.ModuleList

    def normed(self, x: Tensor) -> Tensor:
        """After the final norm."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> patch tokens [B, N, D]."""
        ...

    def _sequence(self, patches: Tensor) -> Tensor: ...


def encode_merged(
    vit: Vision, images: Tensor, r: int | Sequence[int], *, proportional: bool = True
) -> tuple[Tensor, Groups]:
    """A ViT's ``tokens`` with r merged in every block, or r[i] in block i; with 0 it is ``tokens`` itself.

    images [B, 3, H, W] -> [B, 1 + M, D] after the final norm, the class token first, no registers; and the groups of
    the 1 + N tokens, so that ``unmerge(tokens, groups)[:, 1:]`` is a feature of every patch. proportional: proportional
    attention, for networks trained without merging; the paper omits it for those trained with it, and for MAE's. Raises
    ValueError if r does not have one entry per block.
    """
    schedule = [r] * len(vit.blocks) if isinstance(r, int) else list(r)
    x, size = vit._sequence(vit.embed(images)), None
    groups, special = ungrouped(x), vit.registers
    for block, fewer in zip(vit.blocks, schedule, strict=True):
        x, size, found = merging_block(
            cast(Block, block), x, size, fewer, protected=1 + special, proportional=proportional
        )
        groups = groups.then(found)
    of = torch.cat([groups.of[:, :1], groups.of[:, 1 + special :] - special], dim=1)
    x = vit.normed(x)
    return torch.cat([x[:, :1], x[:, 1 + special :]], dim=1), Groups(of, groups.count - special)
