"""Attention softmax(q k^T) v by torch's fused kernel, or by three products where those take less time.

On a CPU torch's kernel for half precision computes gradients slowly: with them it takes two to seven times as long as the products
at 197 to 17 tokens (``python -m benchmarks.parts --only products``), two fifths of a training step of a small ViT. In float32, without
gradients and for long rows it is the faster one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST = 512  # keys; with more of them the products are hardly faster, and their scores take memory
HALF = (torch.bfloat16, torch.float16)
KERNEL = F.scaled_dot_product_attention


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    *,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
) -> Tensor:
    """torch's ``scaled_dot_product_attention`` of q [..., h, T, d], k [..., g, S, d], v [..., g, S, e]: [..., h, T, e].

    mask: bool, True for visible keys, or added to the scores; a query without visible keys gives zeros. grouped: h is a multiple of g. In
    half precision the scores of the products are rounded to it; the softmax of these has its sums in float32.
    """
    if not by_products(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], dim=-3) for x in (k, v))
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    least = torch.finfo(scores.dtype).min  # not -inf: softmax of a query without visible keys would not be a number
    if causal:  # as the kernel: query t attends to keys up to t
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, least)
    answered = None  # queries with a visible key
    if mask is not None and mask.dtype == torch.bool:
        scores, answered = scores.masked_fill(~mask, least), mask.any(-1, keepdim=True)
    elif mask is not None:
        scores = scores + mask.clamp_min(least / 2)
        answered = (mask != -torch.inf).any(-1, keepdim=True)
    y = F.dropout(scores.softmax(-1), dropout) @ v
    return y if answered is None else y * answered


def by_products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether three products are faster than torch's kernel."""
    return (
        q.dtype in HALF
        and q.device.type == "cpu"
        and k.shape[-2] <= LONGEST
        and torch.is_grad_enabled()
        and (q.requires_grad or k.requires_grad or v.requires_grad)
        and F.scaled_dot_product_attention is KERNEL  # else somebody looks at its arguments, as `sensorium signal` does
    )
