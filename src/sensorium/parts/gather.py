"""Differentiable sums and concatenations over processes.

Data-parallel wrappers average gradients over the R processes, so a method is exact when the mean over processes of its
local losses, L = mean_r l_r, is the loss of the global batch. A tensor that every process needs (the embeddings of a
contrastive loss, the statistics of a normalization) then enters every l_r, and the gradient for process r's own rows is

    R dL/dz_r = sum over r' of  dl_r' / dz_r

so both operations sum in their backward. The average over processes cancels the factor R: one process and N give the
same gradient. Without a process group everything here is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Concatenate ``x`` of all processes along the first dimension, in the order of their ranks.

    x: [B, ...], of the same shape in every process -> [R * B, ...]; rows ``rank() * B`` onward are this process's own.
    Differentiable: gradients of every process's loss reach the process that made the rows.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of ``x``, of the same shape in every process, over the processes. Differentiable."""
    return _Sum.apply(x) if world_size() > 1 else x


def _summed(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # A sum of everything and a slice: gloo has no reduce-scatter.
        return _summed(grads[0]).chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])
