"""Exact attention, softmax(q k^T) v, in three equivalent implementations (Vaswani et al., 2017, arXiv:1706.03762, eq.
1).

:func:`naive` is the specification, :func:`fused` and :func:`flex` are torch's kernels with the same arguments,
:func:`choose` selects one of them.
    a[t, s] = scale q_t . k_s + bias[t, s]                                              scale: 1 / sqrt(d) unless given
    y_t = sum over visible s of exp(a[t, s]) v_s / sum over visible s of exp(a[t, s]);        0 if none is visible
A key is visible if all of these hold:
    mask       it is True
    causal     s <= t + S - T: the last query is aligned with the last key, so that earlier keys may come from a cache
    lengths    t and s are in one document, of those concatenated in the row
With fewer key and value heads than query heads, query head i uses head i // (h / g) (Ainslie et al., 2023,
arXiv:2305.13245).
Shapes: B batch, T queries, S keys, h heads of queries, g of keys and values, d channels of a key, e of a value.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from sensorium.parts.attention.sdpa import sdpa


class Asked(TypedDict, total=False):
    """Options of attention; all are optional.

    mask: bool, broadcastable to [B, h, T, S], True for visible keys. bias: broadcastable likewise, added to the scaled
    scores; -inf masks a key. lengths: of the documents in the row, positive; they sum to T = S.
    """

    causal: bool
    mask: Tensor | None
    bias: Tensor | None
    lengths: Sequence[int] | None
    scale: float | None


_NAMES = frozenset(Asked.__annotations__)


class Attend(Protocol):
    """The interface of exact attention: q [B, h, T, d], k [B, g, S, d], v [B, g, S, e] -> [B, h, T, e].

    Raises ValueError if ``lengths`` do not match, TypeError for an unknown option.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **asked: Unpack[Asked]) -> Tensor: ...


def answers(
    asked: Asked,
) -> tuple[bool, Tensor | None, Tensor | None, Sequence[int] | None, float | None]:
    """causal, mask, bias, lengths, scale. Raises TypeError for another name."""
    if not _NAMES.issuperset(asked):
        unknown = ", ".join(sorted(asked.keys() - _NAMES))
        raise TypeError(f"attention supports {', '.join(Asked.__annotations__)}, not {unknown}")
    get = asked.get
    return bool(get("causal")), get("mask"), get("bias"), get("lengths"), get("scale")


class Choice(NamedTuple):
    """An implementation, and the reason for it."""

    attend: Attend
    reason: str


def naive(q: Tensor, k: Tensor, v: Tensor, **asked: Unpack[Asked]) -> Tensor:
    """The literal :class:`Attend`: all scores at once, in float32 or better; the reference in tests."""
    causal, mask, bias, lengths, scale = answers(asked)
    exact = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k, v = (x.to(exact).repeat_interleave(group, dim=1) for x in (k, v))
    with torch.autocast(q.device.type, enabled=False):
        a = q.to(exact) @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if bias is not None:
            a = a + bias.to(exact)
        seen = visible(q.shape[2], k.shape[2], causal=causal, mask=mask, lengths=lengths, device=q.device)
        if seen is not None:
            a = a.masked_fill(~seen, -torch.inf)
        largest = a.detach().amax(-1, keepdim=True)
        weight = (a - largest.masked_fill(largest == -torch.inf, 0)).exp()
        total = weight.sum(-1, keepdim=True)
        return (weight @ v / total.masked_fill(total == 0, 1)).to(q.dtype)


def fused(q: Tensor, k: Tensor, v: Tensor, **asked: Unpack[Asked]) -> Tensor:
    """:class:`Attend` by :func:`sensorium.parts.attention.sdpa.sdpa`: without mask, bias and cache it is just that call."""
    causal, mask, bias, lengths, scale = answers(asked)
    # the most frequent case first: at 64 tokens each further check affects the time
    if mask is bias is lengths is None and q.shape == k.shape:
        return sdpa(q, k, v, causal=causal, scale=scale)
    if lengths is not None:
        return by_document(fused, q, k, v, **asked)
    grouped, (T, S) = q.shape[1] != k.shape[1], (q.shape[2], k.shape[2])
    causal = causal and T > 1  # the last query attends to all keys
    if mask is None and bias is None and (T == S or not causal):
        return sdpa(q, k, v, causal=causal, scale=scale, grouped=grouped)
    added = seen = visible(T, S, causal=causal, mask=mask, lengths=None, device=q.device)
    if bias is not None:
        added = bias.to(q.dtype) if seen is None else bias.to(q.dtype).masked_fill(~seen, -torch.inf)
    return sdpa(q, k, v, added, scale=scale, grouped=grouped)


def flex(q: Tensor, k: Tensor, v: Tensor, **asked: Unpack[Asked]) -> Tensor:
    """:class:`Attend` by torch's FlexAttention (Dong et al., 2024, arXiv:2412.05496), compiled at its first call:
    blocks without visible keys are skipped.

    Raises RuntimeError if it can't run: no compiler for the device, gradients on a CPU, too small heads on a GPU.
    """
    causal, mask, bias, lengths, scale = answers(asked)
    missing = _why_no_flex(q, k, v)
    if missing:
        raise RuntimeError(f"FlexAttention can't be used here: {missing}; fused() computes the same")
    T, S, documents = q.shape[2], k.shape[2], None if lengths is None else tuple(lengths)
    if documents is not None:
        _spans(documents, T, S)
    score_mod = None if bias is None else _adding(bias.expand(*q.shape[:3], S))
    blocks = None
    if mask is not None:
        blocks = _blocks(T, S, causal, documents, q.device, mask.expand(*mask.shape[:-2], T, S))
    elif causal or documents is not None:
        blocks = _cached_blocks(T, S, causal, documents, q.device)
    kernel = _compiled_flex()
    return kernel(q, k, v, score_mod, blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def choose(q: Tensor, k: Tensor, v: Tensor, **asked: Unpack[Asked]) -> Choice:
    """The implementation for these arguments of :class:`Attend`, and the reason. Never ``naive``."""
    causal, mask, bias, lengths, _ = answers(asked)
    T, S = q.shape[2], k.shape[2]
    if lengths is None:
        if mask is None and bias is None and (T == S or T == 1 or not causal):
            return Choice(fused, "no mask: one call of torch's fused kernel")
        return Choice(fused, f"one call of torch's fused kernel, with a mask for {T} queries x {S} keys")
    if len(lengths) == 1:
        return Choice(fused, "one document: one call of torch's fused kernel")
    if q.device.type == "cpu":
        return Choice(fused, "a CPU computes documents one after another without loss of speed")
    if mask is not None or bias is not None:
        return Choice(fused, "a mask or bias would need a new block mask at each call: documents one after another")
    missing = _why_no_flex(q, k, v)
    if missing:
        return Choice(fused, f"documents one after another, because FlexAttention can't be used here: {missing}")
    return Choice(flex, f"{len(lengths)} documents in one kernel that skips blocks between them")


def visible(
    T: int, S: int, *, causal: bool, mask: Tensor | None, lengths: Sequence[int] | None, device: torch.device
) -> Tensor | None:
    """The mask of visible keys: bool, broadcastable to [B, h, T, S]; None if all are visible."""
    seen = mask
    if causal:
        before = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
        seen = before if seen is None else seen & before
    if lengths is not None:
        _spans(lengths, T, S)
        of = _document_of(lengths, device)
        same = of[:, None] == of
        seen = same if seen is None else seen & same
    return seen


def by_document(attend: Attend, q: Tensor, k: Tensor, v: Tensor, **asked: Unpack[Asked]) -> Tensor:
    """Apply ``attend`` to the documents of a row separately, one after another. [B, h, T, e]."""
    causal, mask, bias, lengths, scale = answers(asked)
    lengths = lengths or ()
    done, spans = [], _spans(lengths, q.shape[2], k.shape[2])
    # split, not slices: its backward is one concatenation instead of a zeroed row for each document
    each = zip(*(x.split(list(lengths), dim=2) for x in (q, k, v)), strict=True)
    for at, one in zip(spans, each, strict=True):
        done.append(attend(*one, causal=causal, mask=part(mask, at, at), bias=part(bias, at, at), scale=scale))
    return torch.cat(done, dim=2)


def part(x: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    """A view of these rows and columns of a tensor that broadcasts to [B, h, T, S]."""
    if x is None:
        return None
    x = x if x.ndim > 1 else x[None]
    everything = slice(None)
    return x[..., rows if x.shape[-2] > 1 else everything, columns if x.shape[-1] > 1 else everything]


def _spans(lengths: Sequence[int], T: int, S: int) -> list[slice]:
    """The slice of each document."""
    if min(lengths, default=0) < 1 or not sum(lengths) == T == S:
        raise ValueError(
            f"lengths of documents must be positive and sum to {T} queries and {S} keys, got {list(lengths)}"
        )
    return [slice(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)]


def _document_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """The index of each token's document, [T]."""
    count = torch.tensor(lengths, device=device)
    return torch.arange(len(lengths), device=device).repeat_interleave(count, output_size=sum(lengths))


def _why_no_flex(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    device = q.device.type
    if device == "cpu":
        if any(x.requires_grad for x in (q, k, v)):
            return "it does not support gradients on a CPU"
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")):
            return "there is no C++ compiler (g++ or clang++)"
        return None
    if device != "cuda":
        return f"it needs a GPU or a CPU, not {device!r}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if min(q.shape[-1], v.shape[-1]) < 16:
        return f"heads have {min(q.shape[-1], v.shape[-1])} channels, but its kernel needs at least 16"
    return None


def _adding(bias: Tensor) -> Callable[..., Tensor]:
    return lambda score, b, h, t, s: score + bias[b, h, t, s]


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _blocks(
    T: int, S: int, causal: bool, lengths: tuple[int, ...] | None, device: torch.device, mask: Tensor | None
) -> Any:
    """The BlockMask of blocks with visible keys."""
    from torch.nn.attention.flex_attention import create_block_mask

    of = None if lengths is None else _document_of(lengths, device)
    given = None if mask is None else mask[(None,) * (4 - mask.ndim)]

    def seen(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        here = t >= s - (S - T) if causal else t >= 0
        if of is not None:
            here = here & (of[t] == of[s])
        if given is not None:
            here = here & given[b if given.shape[0] > 1 else 0, h if given.shape[1] > 1 else 0, t, s]
        return here

    batch, heads = (None, None) if given is None else (n if n > 1 else None for n in given.shape[:2])
    return create_block_mask(seen, batch, heads, T, S, device=str(device))


@lru_cache(maxsize=16)
def _cached_blocks(T: int, S: int, causal: bool, lengths: tuple[int, ...] | None, device: torch.device) -> Any:
    return _blocks(T, S, causal, lengths, device, None)
