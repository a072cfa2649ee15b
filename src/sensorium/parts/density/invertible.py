"""Invertible layers and their log-determinants, of which normalizing flows are made.

    z = f(x),     log p(x) = log p(z) + log |det df/dx|
Each layer gives z and the logarithm for each sample, and its inverse. Of a chain the logarithms add up; a reversed layer has its
with the other sign. One test holds each of them against autograd's Jacobian (``tests/parts/test_invertible.py``).

    Planar      z = x + u tanh(w.x + b),  u.w >= -1                           (Rezende & Mohamed, 2015, arXiv:1505.05770, eq. 10, A.1)
                w, u and b may depend on a context h, linearly
    Radial      z = x + beta / (alpha + r) (x - c),  r = |x - c|, beta >= -alpha                                        (eq. 14, A.2)
    Scaling     z = exp(s) x                                                          (NICE: Dinh et al., 2014, arXiv:1410.8516, 3.3)
    ActNorm     z = exp(s) (x + b) of each channel                      (Glow: Kingma & Dhariwal, 2018, arXiv:1807.03039, section 3.1)
    Mixing      z = W x of each pixel's channels,  W = P L (U + diag(s))                                              (section 3.2)
    Squeeze     f x f pixels become channels                                  (RealNVP: Dinh et al., 2016, arXiv:1605.08803, 3.6)
    Logit       z = log(y / (1 - y)),  y = a + (1 - 2 a) x                                                                     (4.1)
Shapes: B samples; vectors [B, D] or images [B, C, H, W]; H numbers of a context.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise

BISECTIONS = 100


class Invertible(nn.Module):
    """A map with an inverse."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] -> z [B, ...] and log |det dz/dx| [B]."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> Tensor:
        """z [B, ...] -> x [B, ...]."""
        raise NotImplementedError


class Chain(Invertible):
    """Layers, one after the other; a context [B, H] that is ``given`` goes to each of them, all of which must take one then."""

    def __init__(self, *layers: Invertible) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total, also = x.new_zeros(len(x)), () if given is None else (given,)
        for layer in self.layers:
            x, log_det = layer(x, *also)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        also = () if given is None else (given,)
        for layer in reversed(self.layers):
            z = layer.inverse(z, *also)  # pyright: ignore
        return z


class Reversed(Invertible):
    """A layer in the other direction."""

    def __init__(self, layer: Invertible) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layer.inverse(x)
        return z, -self.layer(z)[1]

    def inverse(self, z: Tensor) -> Tensor:
        return self.layer(z)[0]


class Permuted(Invertible):
    """The values of a vector in another order."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z[:, self.order.argsort()]


class Flat(Invertible):
    """Samples of a ``shape`` as vectors."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z.view(len(z), *self.shape)


class Planar(Invertible):
    """Of vectors of ``size``: stretches space along u, across a plane. Its inverse is found along w, by bisection.

    ``context``: numbers ``given`` [B, context] with each sample, of which its own w, u and b differ from the layer's.
    """

    def __init__(self, size: int, context: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(size) * size**-0.5)
        self.u = nn.Parameter(torch.zeros(size))
        self.b = nn.Parameter(torch.zeros(()))
        self.told = nn.Linear(context, 2 * size + 1, bias=False) if context else None

    def _numbers(self, given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """w, u and b: [D], [D] and [], or of each sample [B, D], [B, D] and [B]. u is moved along w where w.u would be below -1 (A.1)."""
        w, u, b = self.w, self.u, self.b
        if self.told is not None:
            more_w, more_u, more_b = precise(self.told(given)).split([len(w), len(u), 1], 1)
            w, u, b = w + more_w, u + more_u, b + more_b[:, 0]
        along = _dot(w, u)
        wanted = F.softplus(along) - 1
        return w, u + (wanted - along)[..., None] * w / w.square().sum(-1, keepdim=True), b

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        w, u, b = self._numbers(given)
        bent = torch.tanh(_dot(x, w) + b)
        return x + bent[:, None] * u, torch.log1p((1 - bent.square()) * _dot(w, u))

    def inverse(self, z: Tensor, given: Tensor | None = None) -> Tensor:
        """w.x = a solves a + w.u tanh(a + b) = w.z, which increases with a."""
        w, u, b = self._numbers(given)
        along, wanted = _dot(w, u), _dot(z, w)
        a = _increasing(lambda a: a + along * torch.tanh(a + b), wanted, along.abs() + 1)
        return z - torch.tanh(a + b)[:, None] * u


class Radial(Invertible):
    """Of vectors of ``size``: stretches space around a point."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.randn(size))
        self.raw_alpha = nn.Parameter(torch.zeros(()))
        self.raw_beta = nn.Parameter(torch.full((), math.log(math.e - 1)))  # beta 0

    def _numbers(self) -> tuple[Tensor, Tensor]:
        """alpha > 0, and beta >= -alpha (A.2)."""
        alpha = self.raw_alpha.exp()
        return alpha, F.softplus(self.raw_beta) - alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = self._numbers()
        apart = x - self.center
        r = apart.norm(dim=1)
        h = 1 / (alpha + r)
        across = torch.log1p(beta * h)
        # d/dr of r + beta r / (alpha + r)
        along = torch.log1p(beta * h - beta * h.square() * r)
        return x + (beta * h)[:, None] * apart, (x.shape[1] - 1) * across + along

    def inverse(self, z: Tensor) -> Tensor:
        """r solves r + beta r / (alpha + r) = |z - c|: r^2 + (alpha + beta - |z - c|) r - alpha |z - c| = 0."""
        alpha, beta = self._numbers()
        apart = z - self.center
        far = apart.norm(dim=1)
        half = (alpha + beta - far) / 2
        root = (half.square() + alpha * far).sqrt()
        r = torch.where(half > 0, alpha * far / (root + half), root - half)  # without cancellation
        return self.center + apart / (1 + beta / (alpha + r))[:, None]


class Scaling(Invertible):
    """Each value by a factor of its own. shape: of a sample, without the batch."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_scale).exp()


class ActNorm(Invertible):
    """Each channel by a factor and a shift. :meth:`initialize` sets them so that a batch has mean 0 and variance 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """By the channels of a batch."""
        values = x.transpose(0, 1).flatten(1)
        self.shift.copy_(-values.mean(1))
        self.log_scale.copy_(-(values.var(1, correction=0) + 1e-6).log() / 2)

    def _broad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *(1,) * (x.ndim - 2))
        return self.log_scale.view(shape), self.shift.view(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._broad(x)
        pixels = math.prod(x.shape[2:])
        return (x + shift) * log_scale.exp(), (pixels * self.log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        log_scale, shift = self._broad(z)
        return z * (-log_scale).exp() - shift


class Mixing(Invertible):
    """A matrix of the channels (Glow's invertible 1 x 1 convolution), a random rotation at first. Its factors L and U are trained;
    the permutation P and the signs of s are kept."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_scale = nn.Parameter(diagonal.abs().log().float())

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag(self.sign * self.log_scale.exp())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        pixels = math.prod(x.shape[2:])
        return _each_pixel(self.permutation @ lower @ upper, x), (pixels * self.log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        lower, upper = self._factors()
        x = self.permutation.T @ z.flatten(2)
        x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, x, upper=True).view(z.shape)


class Squeeze(Invertible):
    """Images [B, C, H, W] <-> [B, f^2 C, H / f, W / f], f the ``factor``."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, self.factor), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, self.factor)


class Logit(Invertible):
    """Values in 0..1 to all real numbers, at most those of ``margin`` from 0 and 1."""

    def __init__(self, margin: float = 0.05) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(f"margin {margin:g}: must be above 0 and below 0.5")
        self.margin = margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.margin + (1 - 2 * self.margin) * x
        each = math.log(1 - 2 * self.margin) - y.log() - torch.log1p(-y)
        return y.log() - torch.log1p(-y), each.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        return (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin)


def _dot(x: Tensor, w: Tensor) -> Tensor:
    """Of [D] or [B, D] and one vector w [D], or of [B, D] and one for each sample [B, D]."""
    return x @ w if w.ndim == 1 else (x * w).sum(1)


def _each_pixel(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x.flatten(2)).view(x.shape)


def _increasing(function: Callable[[Tensor], Tensor], wanted: Tensor, reach: Tensor) -> Tensor:
    """a [B] with function(a) = wanted [B] of an increasing function that is nearer than ``reach`` to a everywhere, by bisection, without
    gradient."""
    with torch.no_grad():
        low, high = wanted - reach, wanted + reach
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = function(middle) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
