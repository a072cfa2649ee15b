"""Invertible layers that change a part of the values by functions of the others: coupling and autoregressive ones.

    coupling          x = (a, b):  z = (a, s(a) b + t(a)),     log |det| = sum log s(a)          (RealNVP: Dinh et al., 2016,
                      arXiv:1605.08803, eq. 4 - 8; NICE: Dinh et al., 2014, arXiv:1410.8516, section 3.2, has s = 1)
                      s = exp(c tanh(r))          RealNVP's, c a learned factor of each channel
                      s = sigmoid(r + 2)          that of Glow's authors, about 0.88 at first
    autoregressive    z_d = (x_d - mu_d(x_<d)) exp(-alpha_d(x_<d)),  log |det| = -sum alpha           (MAF: Papamakarios et al., 2017,
                      arXiv:1705.07057, eq. 3 - 5); alpha = r / (1 + |r| / log 1000), softly bounded
    gated             z_d = sigma_d x_d + (1 - sigma_d) m_d,  sigma_d = sigmoid(s_d),  m_d and s_d of x_<d and a context h,
                      log |det| = sum log sigma               (IAF: Kingma et al., 2016, arXiv:1606.04934, eq. 12 - 14)
    factored          x = (a, b):  a goes on, z = (b - mu(a)) exp(-alpha(a)) is done             (RealNVP, section 3.6; Glow's learned prior)
Shapes: B samples; vectors [B, D] or images [B, C, H, W]; H numbers of a context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.parts.density.invertible import Invertible
from sensorium.parts.density.masked import MaskedMLP, in_order

LARGEST = math.log(1000)  # logarithm of an autoregressive scale
Scale = Literal["none", "tanh", "sigmoid"]
OPEN = 2.0  # s of a gate at first: it lets most of a value through


class Coupling(Invertible):
    """``mask``: of the values that stay as they are, zeros and ones that broadcast to a sample, or None for the first half of the
    channels. network: what stays (by a mask all values, those that change set to 0) -> t and, unless ``scale`` is "none", r before it
    in the channels. channels: of what changes, for the factor of "tanh". ``given`` (images): channels that the network sees besides."""

    mask: Tensor | None

    def __init__(self, network: nn.Module, mask: Tensor | None, scale: Scale = "none", channels: int = 1) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.register_buffer("mask", mask, persistent=False)
        self.factor = nn.Parameter(torch.ones(channels)) if scale == "tanh" else None

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        still, moving = self._parts(x)
        log_scale, shift = self._functions(still, given)
        return self._joined(x, moving * log_scale.exp() + shift), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        still, moving = self._parts(z)
        log_scale, shift = self._functions(still, given)
        return self._joined(z, (moving - shift) * (-log_scale).exp())

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask is None:
            still, moving = x.chunk(2, 1)
            return still, moving
        return x * self.mask, x

    def _joined(self, x: Tensor, moved: Tensor) -> Tensor:
        if self.mask is None:
            return torch.cat([x.chunk(2, 1)[0], moved], 1)
        return torch.where(self.mask.bool(), x, moved)

    def _functions(self, still: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """log s and t, 0 where nothing changes."""
        found = self.network(still if given is None else torch.cat([still, given], 1))
        if self.scale == "none":
            raw, shift = torch.zeros_like(found), found
        else:
            raw, shift = found.chunk(2, 1)
        match self.scale:
            case "tanh":
                assert self.factor is not None
                raw = torch.tanh(raw) * self.factor.view(-1, *(1,) * (raw.ndim - 2))
            case "sigmoid":
                raw = F.logsigmoid(raw + 2)
        if self.mask is None:
            return raw, shift
        return raw * (1 - self.mask), shift * (1 - self.mask)


def checkerboard(height: int, width: int, odd: bool = False) -> Tensor:
    """float32 [1, H, W], 1 where row + column is even, or odd."""
    return ((torch.arange(height)[:, None] + torch.arange(width) + odd + 1) % 2).float()[None]


class ResidualNet(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H, W], zeros at first: ``blocks`` residual blocks of ``wide`` channels."""

    def __init__(self, inputs: int, outputs: int, wide: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, wide, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1)
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(wide, outputs, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(F.relu(x))


class Autoregressive(Invertible):
    """Of vectors [B, D], by a perceptron of the hidden layers ``hidden``, each value given those before it in ``places`` int64 [D]. Its
    inverse, which has no gradient, takes D steps."""

    places: Tensor

    def __init__(self, places: Tensor, hidden: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        before = in_order(places)
        self.network = MaskedMLP(torch.cat([before, before]), hidden, seeds=(seed,))
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, alpha = precise(self.network(x)).chunk(2, 1)  # sums of hundreds of logarithms
        alpha = bounded(alpha)
        return (x - mu) * (-alpha).exp(), -alpha.sum(1)

    @torch.no_grad()
    def inverse(self, z: Tensor) -> Tensor:
        x, size, order = torch.zeros_like(z), z.shape[1], self.places.argsort().tolist()
        outputs = self.network.in_turn(x, order)
        for d in order:
            mu, alpha = outputs(d, [d, size + d]).unbind(1)
            x[:, d] = z[:, d] * bounded(alpha).exp() + mu
        return x


def bounded(alpha: Tensor) -> Tensor:
    """A logarithm of a scale, softly kept within +-log(1000), as zuko's affine transforms do: without a bound a network of random
    weights overflows within some steps."""
    return alpha / (1 + alpha.abs() / LARGEST)


class GatedAutoregressive(Invertible):
    """Of vectors [B, D], as :class:`Autoregressive`, and a ``context`` of H numbers ``given`` [B, H] with each sample, which all values
    depend on. Each becomes a mean of itself and of a value that is given; at first it changes little (section 4).

    The same direction as MAF's, which takes one pass: MAF goes so from data to noise, IAF from noise to a sample.
    """

    places: Tensor

    def __init__(self, places: Tensor, hidden: Sequence[int], context: int = 0, seed: int = 0) -> None:
        super().__init__()
        before = in_order(places)
        seen = torch.cat([before, before.new_ones(len(before), context)], 1)
        self.network = MaskedMLP(torch.cat([seen, seen]), hidden, seeds=(seed,), activation=F.elu)
        self.register_buffer("places", places, persistent=False)
        with torch.no_grad():
            self.network.biases[-1][len(places) :].fill_(OPEN)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        m, s = precise(self.network(x if given is None else torch.cat([x, given], 1))).chunk(2, 1)
        gate = torch.sigmoid(s)
        return gate * x + (1 - gate) * m, F.logsigmoid(s).sum(1)

    @torch.no_grad()
    def inverse(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        size, order = z.shape[1], self.places.argsort().tolist()
        x = torch.zeros_like(z) if given is None else torch.cat([torch.zeros_like(z), given], 1)
        outputs = self.network.in_turn(x, order)
        for d in order:
            m, s = outputs(d, [d, size + d]).unbind(1)
            gate = torch.sigmoid(s)
            x[:, d] = (z[:, d] - (1 - gate) * m) / gate
        return x[:, :size]


class Factored(Invertible):
    """The rest of the network for a part of the channels: the second half is done, the first goes through ``rest``.

    network: the first half -> mu and alpha of the second. rest: keeps the shape of what it gets. z has the values of ``rest`` first.
    """

    def __init__(self, network: nn.Module, rest: Invertible) -> None:
        super().__init__()
        self.network, self.rest = network, rest

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        on, done = x.chunk(2, 1)
        mu, alpha = self.network(on).chunk(2, 1)
        z, log_det = self.rest(on)
        done = (done - mu) * (-alpha).exp()
        return torch.cat([z, done], 1), log_det - alpha.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        first, done = z.chunk(2, 1)
        on = self.rest.inverse(first)
        mu, alpha = self.network(on).chunk(2, 1)
        return torch.cat([on, done * alpha.exp() + mu], 1)
