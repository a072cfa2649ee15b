"""Expert parallelism: each of P processes holds E / P experts, and tokens are sent to them and back (GShard: Lepikhin
et al., 2020, arXiv:2006.16668, section 3; without capacity the pieces are uneven, as in arXiv:2211.15841).

    rows to the owners of their experts -> sort by expert -> run -> unsort -> back -> weighted sum
Each process routes its own tokens over all E experts. As everywhere (parts/gather.py) the loss is the mean over
processes of their own: the experts' gradients, which come from the tokens of all processes, are divided by P here and
are then those of the mean. So they must not be averaged again: a data-parallel wrapper has to leave these weights out.
Shapes: N own tokens, M own assignments, R received rows, L = E / P own experts, D width, H hidden channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from sensorium.parts.feedforward import Kind
from sensorium.parts.gather import rank, world_size
from sensorium.parts.moe.experts import Way, apply_experts, combine, run_experts, with_gradient
from sensorium.parts.moe.route import Routing


def own_experts(experts: int) -> slice:
    """The experts of E that this process holds. Raises ValueError if P doesn't divide E."""
    if experts % world_size():
        raise ValueError(f"the {world_size()} processes must divide the {experts} experts")
    own = experts // world_size()
    return slice(rank() * own, (rank() + 1) * own)


def parallel_experts(
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
    """``apply_experts`` on x [N, D] where gate_up [L, ...], down [L, D, H] and frozen [L] are only :func:`own_experts`.

    Every process must call it equally often, forward and backward, even without tokens.
    """
    world = world_size()
    if world == 1:
        return apply_experts(x, routing, gate_up, down, kind=kind, way=way, dropout=dropout, frozen=frozen)
    gate_up, down = with_gradient(gate_up, lambda g: g / world), with_gradient(down, lambda g: g / world)

    sent_PL = routing.counts.view(world, -1)
    received_PL = torch.empty_like(sent_PL)
    dist.all_to_all_single(received_PL, sent_PL)
    sent, received = sent_PL.sum(1).tolist(), received_PL.sum(1).tolist()

    rows_RD = _AllToAll.apply(x.index_select(0, routing.token), sent, received)
    own = torch.arange(received_PL.shape[1], device=x.device).repeat(world)  # from each process its rows by expert
    order = own.repeat_interleave(received_PL.flatten(), output_size=len(rows_RD)).argsort(stable=True)
    counts = received_PL.sum(0)
    y_RD = run_experts(
        rows_RD.index_select(0, order), counts, gate_up, down, kind=kind, way=way, dropout=dropout, frozen=frozen
    )
    y_MD = _AllToAll.apply(y_RD.index_select(0, order.argsort()), received, sent)
    return combine(y_MD, routing, len(x))


class _AllToAll(torch.autograd.Function):
    """The first ``sent[0]`` rows to the first process, and so on -> ``received[0]`` rows of the first, and so on."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.sent, ctx.received = sent, received
        return _exchange(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(grads[0], ctx.received, ctx.sent), None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    arrived = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent)
    return arrived
