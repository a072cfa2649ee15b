"""Spectral normalization (Miyato, Kataoka, Koyama & Yoshida, 2018, arXiv:1802.05957).

A layer's weight is divided by its largest singular value, which power iteration follows, a step of it per step of training:
    v <- W^T u / |W^T u|,     u <- W v / |W v|,     W / sigma,   sigma = u^T W v                                    (algorithm 1)
torch's own normalization iterates in each forward pass; here it is done by the method's hook, as a pass may run several times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

ITERATIONS = 15  # before the first step


class Spectral(nn.Module):
    """The parametrization of one weight [O, ...]."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(rows.shape[0], device=rows.device), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(rows.shape[1], device=rows.device), dim=0))
        for _ in range(ITERATIONS):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """A step of power iteration."""
        rows = weight.flatten(1)
        self.v.copy_(F.normalize(rows.T @ self.u, dim=0, eps=1e-12))
        self.u.copy_(F.normalize(rows @ self.v, dim=0, eps=1e-12))

    def forward(self, weight: Tensor) -> Tensor:
        sigma = self.u @ weight.flatten(1) @ self.v
        return weight / sigma


def spectral_(network: nn.Module) -> None:
    """Normalize each convolution and linear layer of ``network``, in place."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            parametrize.register_parametrization(layer, "weight", Spectral(layer.weight))


def spectral_step_(network: nn.Module) -> None:
    """One power iteration of each normalized weight, in place."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer, "weight"):
            held: Any = layer.parametrizations.weight  # pyright: ignore
            for one in held:
                if isinstance(one, Spectral):
                    one.iterate(held.original)
