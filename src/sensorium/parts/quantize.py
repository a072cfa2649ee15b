"""Vector quantization: neural discrete representation learning (van den Oord, Vinyals & Kavukcuoglu, 2017, arXiv:1711.00937).

Each vector is replaced by the nearest of K codes; its gradient is passed through unchanged (straight-through):
    k = argmin_j |z - e_j|^2,        z_q = z + sg(e_k - z)                                              (eq. 1, 2)
    L = mean (sg(z) - e_k)^2 + beta mean (z - sg(e_k))^2        codes move to vectors; vectors commit to codes  (eq. 3)
sg stops the gradient; means are over all positions and channels, as in VQGAN's code.
Codes far from all vectors are never used and never updated. Random restarts (Dhariwal et al., 2020, arXiv:2005.00341,
section 3.1) revive them: a code whose usage u, a moving average of its fraction of the assignments, falls below a
threshold is set to an encoder output.
Shapes: B images, D channels, h x w positions, N vectors, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

BETA = 0.25


class Quantized(NamedTuple):
    """vectors: z_q [B, D, h, w]. loss: L, 0-d. codes: k, int64 [B, h, w]."""

    vectors: Tensor
    loss: Tensor
    codes: Tensor


class Quantizer(nn.Module):
    """A codebook of ``codes`` vectors of ``dim`` channels. beta: weight of the commitment loss.

    Distances and the loss are in float32 or better. The forward has no side effects: see :func:`revive_`.
    """

    def __init__(self, codes: int, dim: int, beta: float = BETA) -> None:
        super().__init__()
        if codes < 1 or dim < 1:
            raise ValueError(f"a codebook needs at least one code and one channel, got {codes} codes of {dim} channels")
        self.codes, self.dim, self.beta = codes, dim, beta
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, z: Tensor) -> Quantized:
        """[B, D, h, w] -> quantized."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, torch.float32))
            codes = nearest(z.movedim(1, -1), self.embedding.weight)
            e = self.look_up(codes)
            loss = (z.detach() - e).square().mean() + self.beta * (z - e.detach()).square().mean()
            return Quantized(z + (e - z).detach(), loss, codes)

    def look_up(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> their vectors [B, D, h, w]."""
        return self.embedding(codes).movedim(-1, 1)


@torch.no_grad()
def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Vectors [..., D], codebook [K, D] -> the nearest code of each, int64 [...]; the first of ties."""
    flat, codebook = z.flatten(0, -2), codebook.to(z.dtype)
    distance = torch.addmm(codebook.square().sum(1), flat, codebook.T, alpha=-2)  # |z|^2 would not change the order
    return distance.argmin(1).view(z.shape[:-1])


def counts_of(codes: Tensor, size: int) -> Tensor:
    """Codes int64 [...] -> counts of each of ``size`` codes, float32 [size]."""
    return torch.bincount(codes.flatten(), minlength=size).float()


def perplexity(usage: Tensor) -> Tensor:
    """Counts or fractions [K] -> 0-d, exp of their entropy: K for uniform usage, 1 if only one code is used."""
    share = usage / usage.sum().clamp_min(1e-12)
    return torch.special.entr(share).sum().exp()


def dead(usage: Tensor, least: float) -> Tensor:
    """Usage fractions [K] -> bool [K]: which codes have less than ``least`` of uniform usage, 1 / K."""
    return usage * len(usage) < least


@torch.no_grad()
def revive_(codebook: Tensor, usage: Tensor, recent: Tensor, generator: torch.Generator, *, least: float) -> int:
    """Set the dead codes of ``codebook`` [K, D] to different ``recent`` vectors [N, D], drawn with a CPU ``generator``,
    and their ``usage`` [K] to uniform usage, which gives them time to be used. In place; returns their number.

    If there are more dead codes than vectors, the rest stay dead.
    """
    which = dead(usage, least).nonzero().squeeze(1)[: len(recent)]
    drawn = torch.randperm(len(recent), generator=generator)[: len(which)].to(recent.device)
    codebook[which] = recent[drawn].to(codebook.dtype)
    usage[which] = 1 / len(usage)
    return len(which)
