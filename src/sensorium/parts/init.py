"""Initial weights, and parametrizations.

A layer preserves the variance of its input if its weights have the right variance:
    lecun   1 / fan_in                                  LeCun et al., 1998, "Efficient BackProp"
    xavier  2 / (fan_in + fan_out)                      Glorot & Bengio, 2010
    he      2 / fan_in, for relu, which halves it       He et al., 2015, arXiv:1502.01852
drawn normal, uniform, truncated normal (at two standard deviations, rescaled to the variance) or orthogonal (Saxe et
al., 2013, arXiv:1312.6120). In the NTK parametrization (Jacot et al., 2018, arXiv:1806.07572) the standard deviation is
a factor on the weight: the function is the same, the gradient smaller by that factor.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Init = Literal["normal", "xavier"]
Scheme = Literal["lecun", "xavier", "he"]
Draw = Literal["normal", "uniform", "truncated", "orthogonal"]

# The deviation of a standard normal that is cut off at -2 and 2.
_CUT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def init_transformer_(module: nn.Module, how: Init) -> None:
    """Set every linear layer below ``module``, biases to zero: ``normal`` is ViT's truncated normal of std 0.02,
    ``xavier`` the uniform of MAE (Glorot), which follows the layer's size and suits narrow networks."""
    if how not in get_args(Init):
        raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {how!r}")
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if how == "normal":
                nn.init.trunc_normal_(layer.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def fill_(weight: Tensor, scheme: Scheme = "xavier", draw: Draw = "normal", *, gain: float = 1.0) -> Tensor:
    """Fill a weight [fan_out, fan_in, ...] in place with standard deviation gain * sqrt(variance of ``scheme``).

    Further dimensions are a convolution's window, a part of both fans. Raises ValueError for another name or a weight
    of one dimension.
    """
    std = gain * deviation(weight, scheme)
    if draw == "normal":
        return weight.normal_(0, std)
    if draw == "uniform":
        bound = math.sqrt(3) * std
        return weight.uniform_(-bound, bound)
    if draw == "truncated":
        wide = std / _CUT
        return nn.init.trunc_normal_(weight, std=wide, a=-2 * wide, b=2 * wide)
    if draw != "orthogonal":
        raise ValueError(f"draw must be one of {', '.join(get_args(Draw))}, got {draw!r}")
    # orthonormal rows or columns have entries of variance 1 / the longer side
    return nn.init.orthogonal_(weight, std * math.sqrt(max(len(weight), weight[0].numel())))


def deviation(weight: Tensor, scheme: Scheme) -> float:
    """Standard deviation that ``scheme`` gives the entries of a weight [fan_out, fan_in, ...]."""
    if weight.ndim < 2:
        raise ValueError(f"a weight needs at least two dimensions, this one has shape {list(weight.shape)}")
    window = weight[0, 0].numel()
    fan_out, fan_in = weight.shape[0] * window, weight.shape[1] * window
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}, got {scheme!r}")
    return math.sqrt({"lecun": 1 / fan_in, "xavier": 2 / (fan_in + fan_out), "he": 2 / fan_in}[scheme])


class _Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor


def to_ntk_(module: nn.Module, scheme: Scheme = "lecun") -> None:
    """Convert every linear layer below ``module`` to the NTK parametrization: the parameter is the weight divided by
    its standard deviation. The function does not change; gradients shrink by that factor, SGD's steps by its square.
    """
    for layer in [one for one in module.modules() if isinstance(one, nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", _Scaled(deviation(layer.weight, scheme)))


@torch.no_grad()
def fixup_(layers: int, inner: list[Tensor], last: Tensor) -> None:
    """Weights of one residual branch of a stack of ``layers`` branches: the ``inner`` ones by He's scheme, smaller by
    layers^(-1 / (2 m - 2)) for a branch of m, the ``last`` one zero (Zhang et al., 2019, arXiv:1901.09321, section 3).
    """
    count = len(inner) + 1
    for weight in inner:
        fill_(weight, "he", gain=layers ** (-1 / (2 * count - 2)))
    last.zero_()
