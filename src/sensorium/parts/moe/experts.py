"""E feed-forward networks with stacked weights, each applied to the tokens routed to it.

    y_n = sum over the assignments m of token n of  weight_m down_e activate(gate_up_e x_n),      e = expert of m
The rows of all experts are concatenated, so that a layer is two grouped matrix products with the stack:
    loop        one product per expert
    grouped     torch's grouped product: the loop in C++, or one kernel; it writes each gradient into one stack
    batched     rows padded to the most loaded expert, one batched product: for experts of equal load, as in expert choice
They differ only in speed. Frozen experts are used but not trained; an optimizer with weight decay must exclude them.
Shapes: N tokens, M assignments, E experts, D width, H hidden channels, C rows of the most loaded expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.bf16 import fast_bf16
from sensorium.parts.feedforward import Kind, activate
from sensorium.parts.moe.route import Routing

Way = Literal["loop", "grouped", "batched"]


def apply_experts(
    x: Tensor,
    routing: Routing,
    gate_up: Tensor,
    down: Tensor,
    *,
    kind: Kind = "swiglu",
    way: Way | None = None,
    dropout: float = 0.0,
    frozen: Tensor | None = None,
) -> Tensor:
    """x [N, D] -> y [N, D], zero for tokens without an expert. gate_up, down and the rest: as in :func:`run_experts`."""
    rows_MD = x.index_select(0, routing.token)
    y_MD = run_experts(rows_MD, routing.counts, gate_up, down, kind=kind, way=way, dropout=dropout, frozen=frozen)
    return combine(y_MD, routing, len(x))


def combine(y_MD: Tensor, routing: Routing, tokens: int) -> Tensor:
    """The experts' outputs [M, D] -> their weighted sums [N, D] for each of N ``tokens``."""
    weighted_MD = y_MD * routing.weight[:, None].to(y_MD.dtype)
    return y_MD.new_zeros(tokens, y_MD.shape[1]).index_add_(0, routing.token, weighted_MD)


def run_experts(
    rows_MD: Tensor,
    counts: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    kind: Kind = "swiglu",
    way: Way | None = None,
    dropout: float = 0.0,
    frozen: Tensor | None = None,
) -> Tensor:
    """rows [M, D], sorted by expert -> [M, D], each through its own expert.

    counts: int64 [E], rows of each expert. gate_up: [E, 2 H, D], the gate's rows first, or for a plain ``kind`` [E, H,
    D]; down: [E, D, H]. way: None uses the grouped product if torch supports it here and it is faster, else the loop.
    dropout: dropout rate of the hidden channels, as in Switch's fine-tuning. frozen: bool [E], experts whose weights
    get a zero gradient (None: none; for all of them ``requires_grad_(False)`` is cheaper).
    """
    if frozen is not None:
        kept = (~frozen)[:, None, None]
        gate_up, down = with_gradient(gate_up, kept.mul), with_gradient(down, kept.mul)
    if torch.is_autocast_enabled(rows_MD.device.type):  # once for the stack: grouped products don't support autocast
        low = torch.get_autocast_dtype(rows_MD.device.type)
        rows_MD, gate_up, down = rows_MD.to(low), gate_up.to(low), down.to(low)
    if rows_MD.dtype == torch.bfloat16 and rows_MD.device.type == "cpu" and not fast_bf16("cpu"):
        # casts are cheaper than emulated products, and nothing is rounded
        with torch.autocast("cpu", enabled=False):
            given = (rows_MD.float(), counts, gate_up.float(), down.float())
            return run_experts(*given, kind=kind, way=way, dropout=dropout).to(rows_MD.dtype)
    way = way or ("grouped" if _many(len(rows_MD), gate_up) and groupable(gate_up) and groupable(down) else "loop")
    if way == "batched":
        slot_M, source_EC = _padding(counts, len(rows_MD))
        padded_ECD = rows_MD.index_select(0, source_EC.flatten()).view(*source_EC.shape, rows_MD.shape[1])
        hidden_ECH = F.dropout(activate(padded_ECD.bmm(gate_up.mT), kind), dropout)
        return hidden_ECH.bmm(down.mT).flatten(0, 1).index_select(0, slot_M)
    product = _product(way, counts)
    hidden_MH = activate(product(rows_MD, gate_up), kind)
    return product(F.dropout(hidden_MH, dropout) if dropout else hidden_MH, down)


def groupable(weight: Tensor) -> bool:
    """Whether torch's grouped product supports a stack [E, out, in] of this type, device and size, forward and
    backward."""
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    if weight.device.type == "cuda":
        return aligned and weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(weight.device) >= (8, 0)
    return aligned and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _many(rows: int, weight: Tensor) -> bool:
    """Whether a grouped product is faster: on a CPU it is much slower for few rows, as in token-by-token generation."""
    return weight.device.type != "cpu" or rows >= 4 * len(weight)


def with_gradient(weight: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``weight`` unchanged, with its gradient passed through ``change``."""
    view = weight.view_as(weight)
    if view.requires_grad:
        view.register_hook(change)
    return view


def _product(way: Way, counts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(rows [M, in], weight [E, out, in]) -> [M, out]."""
    if way == "grouped":
        ends = counts.cumsum(0, dtype=torch.int32)
        return lambda rows, weight: F.grouped_mm(rows, weight.mT, offs=ends)
    if way != "loop":
        raise ValueError(f"way must be one of {', '.join(get_args(Way))}, got {way!r}")
    sizes = counts.tolist()

    def loop(rows: Tensor, weight: Tensor) -> Tensor:
        # unbind, not indexing: its backward is one stack instead of a zeroed weight for each expert.
        # Experts without rows are included, so that every expert has a gradient and every process the same graph.
        own = zip(rows.split_with_sizes(sizes), weight.unbind(), sizes, strict=True)
        every = torch.is_grad_enabled() or not any(sizes)
        return torch.cat([F.linear(part, matrix) for part, matrix, size in own if every or size])

    return loop


def _padding(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The slot in [E C] of each of M rows, and the row of each slot [E, C]; 0 for unused slots."""
    experts, most = len(counts), int(counts.max())
    expert_M = torch.arange(experts, device=counts.device).repeat_interleave(counts, output_size=total)
    row_M = torch.arange(total, device=counts.device)
    slot_M = expert_M * most + row_M - (counts.cumsum(0) - counts)[expert_M]
    return slot_M, row_M.new_zeros(experts * most).index_copy_(0, slot_M, row_M).view(experts, most)
