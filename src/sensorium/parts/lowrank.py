"""LoRA: low-rank adaptation (Hu et al., 2022, arXiv:2106.09685).

A trained weight stays as it is; what is learned is the product of two narrow matrices, which is added to it:
    W = W_0 + (alpha / r) B A          A [r, I] random, B [O, r] = 0 at the start        (eq. 3, section 4.1)
so that a network starts as it was, and an adapted one costs nothing more once the product is added for good. The kernel
of a convolution is the matrix of its O filters, each with I = C k k numbers. Shapes: O outputs, I inputs, r the rank.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

M = TypeVar("M", bound=nn.Module)
ADAPTED = (nn.Linear, nn.Conv2d)


class LowRank(nn.Module):
    """What a weight [O, ...] becomes: itself and a learned product of ``rank`` (at most the smaller of O and I)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.scale = alpha / rank
        like = {"dtype": weight.dtype, "device": weight.device}
        self.a = nn.Parameter(torch.empty(rank, columns, **like))
        self.b = nn.Parameter(torch.zeros(rows, rank, **like))
        nn.init.kaiming_uniform_(self.a, math.sqrt(5))  # as in the authors' code; the paper says Gaussian

    def forward(self, weight: Tensor) -> Tensor:
        """[O, ...] -> [O, ...]."""
        # in float32, as it will be merged; shapes alone have no autocast
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.b @ self.a).view(weight.shape)


def low_rank_(network: M, rank: int, alpha: float) -> M:
    """Adapt the weights of all linear layers and convolutions of ``network``, and train nothing else in it. In place."""
    network.requires_grad_(False)
    for module in [m for m in network.modules() if isinstance(m, ADAPTED)]:
        weight = module.weight
        parametrize.register_parametrization(module, "weight", LowRank(weight, rank, alpha))
    return network


def is_adapted(network: nn.Module) -> bool:
    """Whether it has adapted weights."""
    return any(isinstance(module, LowRank) for module in network.modules())


def merged(network: M) -> M:
    """A copy with the products added to the weights, all of it trainable; ``network`` itself if none is adapted."""
    if not is_adapted(network):
        return network
    network = copy.deepcopy(network)
    part: Any
    for part in list(network.modules()):
        if parametrize.is_parametrized(part, "weight"):
            weight = nn.Parameter(part.weight.detach().clone())
            # torch's remove_parametrizations changes the class that the copy shares with the original
            del part.parametrizations
            part.__class__ = type(part).__bases__[0]
            part.weight = weight
    return network.requires_grad_(True)
