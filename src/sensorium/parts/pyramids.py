"""Pyramids: of pooled bins (He et al., 2014, arXiv:1406.4729), of pooled windows (YOLOv4's, Bochkovskiy et al., 2020,
arXiv:2004.10934), and of images (Burt & Adelson, 1983, "The Laplacian pyramid as a compact image code", IEEE Transactions
on Communications 31(4)).

Spatial pyramid pooling divides a map of any size into n x n bins for a few n and pools each, so that a layer of fixed
width can follow. Bin i of n on a side of H pixels is (appendix A)
    floor(i H / n) ... ceil((i + 1) H / n) - 1,      i = 0 .. n - 1
YOLO's form keeps the map and concatenates max-poolings of several windows; a window of m k - m + 1 pixels is m
successive windows of k, because the maximum of maxima is the maximum. An image pyramid halves an image repeatedly; its
bands hold the details lost by each halving, so that it is invertible:
    G_0 = image,  G_{l+1} = reduce(G_l) = every second pixel of w * G_l       w = (1/4 - a/2, 1/4, a, 1/4, 1/4 - a/2)
    L_l = G_l - expand(G_{l+1}),  L_n = G_n                                   expand: zeros between pixels, then 4 w *
    G_l = L_l + expand(G_{l+1})
with w along rows and columns. a = 0.4 is nearly a Gaussian, 0.375 the binomial filter of OpenCV's ``pyrDown``.
Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Pool = Literal["max", "mean"]


def spatial_pyramid(x: Tensor, bins: Sequence[int] = (4, 2, 1), pool: Pool = "max") -> Tensor:
    """One vector of a fixed length from a map of any size: [B, C, H, W] -> [B, C * sum of n^2 for n in ``bins``].

    Levels in the order of ``bins``; inside a level channel, row, column. If a side is shorter than n, neighboring bins
    share pixels. Raises ValueError for an unknown ``pool``.
    """
    if pool not in get_args(Pool):
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
    pooled = F.adaptive_max_pool2d if pool == "max" else F.adaptive_avg_pool2d
    return torch.cat([pooled(x, (n, n)).flatten(1) for n in bins], dim=1)


def chained_maxima(x: Tensor, window: int = 5, times: int = 3) -> Tensor:
    """YOLO's SPPF: x and its maxima in windows of k, 2k - 1, 3k - 2 ... pixels, by default 5, 9 and 13.

    [B, C, H, W] -> [B, C * (1 + times), H, W]; padding is ignored. In YOLO there are 1 x 1 convolutions before it, to
    half the channels, and after it. Raises ValueError for an even window.
    """
    if window % 2 == 0:
        raise ValueError(f"a window of {window} has no center")
    maxima = [x]
    for _ in range(times):
        maxima.append(F.max_pool2d(maxima[-1], window, stride=1, padding=window // 2))
    return torch.cat(maxima, dim=1)


def reduce(x: Tensor, a: float = 0.4) -> Tensor:
    """Blur, then take every second pixel: [..., H, W] -> [..., ceil(H / 2), ceil(W / 2)]. Reflection padding (without
    repeating the border)."""
    return _halved(_halved(x, a).mT, a).mT


def expand(x: Tensor, size: tuple[int, int], a: float = 0.4) -> Tensor:
    """Upsample a reduced image: [..., ceil(H / 2), ceil(W / 2)] -> [..., H, W], ``size`` = (H, W).

    Raises ValueError if an image of that size does not reduce to x's size.
    """
    if tuple(x.shape[-2:]) != tuple(-(-n // 2) for n in size):
        raise ValueError(f"an image of {size[0]}x{size[1]} does not reduce to {x.shape[-2]}x{x.shape[-1]}")
    return _doubled(_doubled(x, size[1], a).mT, size[0], a).mT


def gaussian_pyramid(x: Tensor, levels: int, a: float = 0.4) -> list[Tensor]:
    """Images [..., H, W] -> G_0, the image itself, to G_levels, each half the previous one, rounded up."""
    pyramid = [x]
    for _ in range(levels):
        pyramid.append(reduce(pyramid[-1], a))
    return pyramid


def laplacian_pyramid(x: Tensor, levels: int, a: float = 0.4) -> list[Tensor]:
    """Images [..., H, W] -> L_0 to L_levels, of the sizes of the Gaussian pyramid; the last is the residual,
    G_levels."""
    pyramid = gaussian_pyramid(x, levels, a)
    bands = [fine - expand(coarse, _size(fine), a) for fine, coarse in pairwise(pyramid)]
    return [*bands, pyramid[-1]]


def from_laplacian(bands: Sequence[Tensor], a: float = 0.4) -> Tensor:
    """The inverse of :func:`laplacian_pyramid` with the same ``a``, exact up to rounding."""
    image = bands[-1]
    for band in reversed(bands[:-1]):
        image = band + expand(image, _size(band), a)
    return image


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _mirrored(x: Tensor) -> Tensor:
    """Reflection padding of 2 on both ends of the last dimension, of any length (F.pad needs at least three)."""
    n = x.shape[-1]
    turn = max(1, 2 * (n - 1))
    at = torch.arange(-2, n + 2, device=x.device) % turn
    return x[..., torch.minimum(at, turn - at) if n > 1 else at]


def _blurred(x: Tensor, a: float, step: int) -> Tensor:
    wide, n = _mirrored(x), x.shape[-1]
    outer = wide[..., 0:n:step] + wide[..., 4 : n + 4 : step]
    inner = wide[..., 1 : n + 1 : step] + wide[..., 3 : n + 3 : step]
    return (1 / 4 - a / 2) * outer + 1 / 4 * inner + a * wide[..., 2 : n + 2 : step]


def _halved(x: Tensor, a: float) -> Tensor:
    return _blurred(x, a, 2)


def _doubled(x: Tensor, length: int, a: float) -> Tensor:
    between = x.new_zeros(*x.shape[:-1], length)
    between[..., ::2] = x
    # half of the weights multiply zeros, except for a single pixel, which only reflects itself
    return _blurred(between, a, 1) * (2 if length > 1 else 1)
