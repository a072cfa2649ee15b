"""Deep InfoMax's critics: networks that score a feature map's places and a global vector (section 3 and appendix A).

dot      encode and dot product: both are projected to U units, and a score is their dot product; every pairing is scored
concat   concatenate and convolve: 1x1 convolutions of a place and the vector, which are costly; a vector is scored with
         its own map and with that of the ``others`` next pictures
The projections are the authors' MI1x1ConvNet (:class:`Projection`, local and global) and, in the global objective,
MIFCNet (:class:`FlatProjection`): a linear shortcut, initially nearly the identity, and a layer of ReLUs beside it. Scores
are float32. Shapes: B global vectors of this process, N maps of all, C channels, L places, D of the vector, U units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.gather import gather, rank
from sensorium.parts.learning.information import pairs

NOISE = 0.01  # of the shortcut's initial weights beside the identity


class Projection(nn.Module):
    """LayerNorm(conv(relu(norm(conv(x)))) + shortcut(x)) by 1x1 convolutions: [B, C, h, w] -> [B, U, h, w]."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.block_nonlinear = nn.Sequential(
            nn.Conv2d(channels, units, 1, bias=False), nn.BatchNorm2d(units), nn.ReLU(), nn.Conv2d(units, units, 1)
        )
        self.linear_shortcut = nn.Conv2d(channels, units, 1, bias=False)
        self.block_ln = nn.LayerNorm(units)
        _nearly_identity_(self.linear_shortcut.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_nonlinear(x) + self.linear_shortcut(x)
        return self.block_ln(x.movedim(1, -1)).movedim(-1, 1)


class FlatProjection(nn.Module):
    """linear(relu(norm(linear(x)))) + shortcut(x): [B, C] -> [B, U]."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.block_nonlinear = nn.Sequential(
            nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(), nn.Linear(units, units)
        )
        self.linear_shortcut = nn.Linear(inputs, units)
        _nearly_identity_(self.linear_shortcut.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_nonlinear(x) + self.linear_shortcut(x)


class DotLocal(nn.Module):
    """Scores of every place of every map: [B, D], [B, C, h, w] -> joint [B, L], marginal [B, N - 1, L]."""

    def __init__(self, channels: int, dim: int, units: int) -> None:
        super().__init__()
        self.local_net, self.global_net = Projection(channels, units), Projection(dim, units)

    def forward(self, y: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        places = self.local_net(found).flatten(2)
        return dots(self.global_net(y[:, :, None, None]).flatten(1), places)


class DotGlobal(nn.Module):
    """Scores of whole maps, as vectors: [B, D], [B, C, h, w] -> joint [B, 1], marginal [B, N - 1, 1].

    size: of the maps; those of another size are averaged to it.
    """

    def __init__(self, channels: int, size: tuple[int, int], dim: int, units: int) -> None:
        super().__init__()
        self.size = size
        self.map_net, self.global_net = FlatProjection(channels * size[0] * size[1], units), FlatProjection(dim, units)

    def forward(self, y: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.map_net(F.adaptive_avg_pool2d(found, self.size).flatten(1))
        return dots(self.global_net(y), whole[:, :, None])


class ConcatLocal(nn.Module):
    """Scores of a few maps: [B, D], [B, C, h, w] -> joint [B, L], marginal [B, others, L] (fewer if N is smaller).

    The first convolution of a concatenation is the sum of one of the places and one of the vector.
    """

    def __init__(self, channels: int, dim: int, hidden: int, others: int = 1) -> None:
        super().__init__()
        self.others = others
        self.of_place, self.of_vector = nn.Conv2d(channels, hidden, 1), nn.Linear(dim, hidden, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, y: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        places = gather(self.of_place(found).flatten(2).transpose(1, 2))  # [N, L, H]
        own = torch.arange(len(y), device=y.device)[:, None] + rank() * len(y)
        which = (own + torch.arange(1 + min(self.others, len(places) - 1), device=y.device)) % len(places)
        scores = precise(self.rest(places[which] + self.of_vector(y)[:, None, None])).squeeze(-1)
        return scores[:, 0], scores[:, 1:]


def dots(vectors: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """[B, U], [B, U, L] -> joint [B, L], marginal [B, N - 1, L], against the places of all processes."""
    with torch.autocast(vectors.device.type, enabled=False):
        scores = torch.einsum("bu,nul->bnl", precise(vectors), gather(precise(places)))
    return pairs(scores, rank() * len(vectors))


@torch.no_grad()
def _nearly_identity_(weight: Tensor) -> None:
    """[U, C, ...]: the identity and a little noise, if there are as many units as inputs; else as it is."""
    if weight.shape[0] >= weight.shape[1]:
        weight.uniform_(-NOISE, NOISE)
        weight.flatten(1).fill_diagonal_(1.0)
