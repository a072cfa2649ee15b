"""A sparse feed-forward layer: a router, E experts of which a few process each token, and shared ones for every token.

    y = sum over the chosen e of  weight_e expert_e(x)  + shared(x)        (DeepSeekMoE: Dai et al., 2024, arXiv:2401.06066)
The systems differ in their routing (``route``, of parts/moe/route.py) and in the kind of their experts (``kind``):
    Switch      partial(top1, factor=1.25), kind="relu", loss 0.01 balance          Mixtral    partial(top_k, k=2)
    DeepSeek    partial(deepseek, k=8, groups=8, best_groups=4, scale=2.5), bias=True, shared=hidden
Shapes: B sequences of T tokens, D width, H hidden channels, E experts (L of them held by this process).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sensorium.parts.feedforward import FeedForward, Kind, rows
from sensorium.parts.gather import sum_over_processes
from sensorium.parts.moe.experts import Way, apply_experts
from sensorium.parts.moe.parallel import own_experts, parallel_experts
from sensorium.parts.moe.route import Routing, router_scores, update_bias_


class MoE(nn.Module):
    """``experts`` feed-forward networks of ``hidden`` channels; ``route`` decides which of them process a token.

    route: scores -> Routing, or with ``bias`` (scores, bias) -> Routing. bias: keep a buffer [E], initially 0, that
    :func:`update_biases` changes after a step, by the training assignments since the last one. shared: hidden channels
    of the network that processes every token. dropout: dropout rate inside the experts. frozen: indices of experts that
    are not trained. parallel: every process holds its part of the experts (parts/moe/parallel.py), initialized as if it
    held all.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        route: Callable[..., Routing],
        *,
        kind: Kind = "swiglu",
        shared: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
        frozen: Sequence[int] = (),
        way: Way | None = None,
        parallel: bool = False,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.route, self.dropout, self.parallel = route, dropout, parallel
        self.kind: Kind = kind
        self.way: Way | None = way
        own = own_experts(experts) if parallel else slice(None)
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(experts, rows(kind, hidden), width)[own] * std)
        self.down = nn.Parameter(torch.randn(experts, width, hidden)[own] * std)
        self.shared = FeedForward(width, shared, kind) if shared else None
        self.bias: Tensor | None
        self.register_buffer("bias", torch.zeros(experts) if bias else None)
        still = torch.zeros(experts, dtype=torch.bool)
        still[list(frozen)] = True
        self.frozen: Tensor | None
        self.register_buffer("frozen", still[own] if frozen else None, persistent=False)
        nn.init.normal_(self.router.weight, std=std)
        self.chosen: Tensor | None = None  # int64 [E], assignments to each since the last update of biases

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """x [N, D] or [B, ..., D] -> y of the same shape, and the routing record.

        Capacity and balance are per sequence. The record's ``load`` and ``dropped`` are for the logs;
        its ``load``, ``share``, ``scores`` and ``probability`` for the losses of parts/moe/route.py.
        """
        scores = router_scores(x.flatten(1, -2) if x.ndim > 2 else x, self.router.weight)
        record = self.route(scores) if self.bias is None else self.route(scores, self.bias)
        if self.training and self.bias is not None:
            chosen = record.chosen.detach()
            self.chosen = chosen if self.chosen is None else self.chosen + chosen
        y = (parallel_experts if self.parallel else apply_experts)(
            x.flatten(0, -2),
            record,
            self.gate_up,
            self.down,
            kind=self.kind,
            way=self.way,
            dropout=self.dropout if self.training else 0.0,
            frozen=self.frozen,
        ).view_as(x)
        return (y if self.shared is None else y + self.shared(x)), record


def update_biases(network: nn.Module) -> None:
    """Update the balancing biases of every :class:`MoE` in ``network`` that has one, by the assignments since the last
    call: a method calls it in ``after_step``, so that the micro-batches of a step count as one batch. All processes
    must call it."""
    for module in network.modules():
        if isinstance(module, MoE) and module.bias is not None and module.chosen is not None:
            update_bias_(module.bias, sum_over_processes(module.chosen))
            module.chosen = None


@torch.no_grad()
def copy_biases(target: nn.Module, source: nn.Module) -> None:
    """Copy the biases of ``source``'s experts to ``target``, a network of the same architecture, for a moving
    average."""
    for mine, theirs in zip(target.modules(), source.modules(), strict=True):
        if isinstance(mine, MoE) and isinstance(theirs, MoE) and mine.bias is not None and theirs.bias is not None:
            mine.bias.copy_(theirs.bias)
