"""Normalization, its placement, and scaling of residual branches.

    layer   (x - mean x) / std x * g + b                        Ba et al., 2016, arXiv:1607.06450
    rms     x / sqrt(mean x^2 + eps) * g                        Zhang & Sennrich, 2019, arXiv:1910.07467
    scale   g x / |x|, one g for all channels                   Nguyen & Salazar, 2019, arXiv:1910.05895, eq. 5
    batch   statistics over all tokens of the batch             Ioffe & Szegedy, 2015, arXiv:1502.03167
A layer f joins the residual stream in one of these ways:
    pre       x + f(norm(x))                                    Xiong et al., 2020, arXiv:2002.04745
    post      norm(x + f(x))                                    Vaswani et al., 2017, arXiv:1706.03762
    deepnorm  norm(alpha x + f(x)), f's initial weights scaled by beta        Wang et al., 2022, arXiv:2203.00555
    rezero    x + a f(x), a learned, initially 0, no norm        Bachlechner et al., 2020, arXiv:2003.04887
    fixup     x + a f(x + b) + c, no norm; f initially zero     Zhang et al., 2019, arXiv:1901.09321
Shapes: D width, the last dimension.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Norm = Literal["layer", "rms", "scale", "batch", "none"]
Placement = Literal["pre", "post", "deepnorm", "rezero", "fixup"]


class ScaleNorm(nn.Module):
    """[..., D] -> the same direction with a learned length, initially sqrt(D)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.tensor(width**0.5)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Lengths are computed in float32 or better, with minimum ``eps``."""
        length = x.to(torch.promote_types(x.dtype, torch.float32)).norm(dim=-1, keepdim=True)
        return x * (self.weight / length.clamp_min(self.eps)).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """Equal to torch's, which on a CPU makes a dozen passes over its input and its gradient; this makes a few."""

    def forward(self, x: Tensor) -> Tensor:
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype and not torch.is_autocast_enabled("cpu")
        if not plain or self.eps is None:
            return super().forward(x)
        if torch.is_grad_enabled():
            return _RMS.apply(x, self.weight, self.eps)
        return (x * _inverse_rms(x, self.eps)).mul_(self.weight)


class _RMS(torch.autograd.Function):
    """Layer norm of mean zero, of whose gradient by x, r (h - mean h - n mean h n) with h = g w and n = x r, the second
    term is taken back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, r, weight)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, r, weight = ctx.saved_tensors
        width = x.shape[-1]
        dx, dw, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, (width,), torch.zeros_like(r), r, weight, None, [True, True, False]
        )
        return dx.add_((g @ weight).div_(width).unsqueeze(-1).mul_(r)), dw, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """[..., D] -> [..., 1]."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class TokenBatchNorm(nn.BatchNorm1d):
    """[..., D] with the statistics of every token of the batch. Padding counts; keep it out, or choose another norm."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).view_as(input)


def norm(kind: Norm, width: int, eps: float = 1e-5) -> nn.Module:
    """A norm by name, over ``width`` channels. Raises ValueError for another name."""
    if kind not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {kind!r}")
    if kind == "none":
        return nn.Identity()
    made = {"layer": nn.LayerNorm, "rms": RMSNorm, "scale": ScaleNorm, "batch": TokenBatchNorm}[kind]
    return made(width, eps=eps)


class Residual(nn.Module):
    """How one layer joins the residual stream: ``x = after(x, f(before(x)))``, with any shape-preserving f.

    alpha: of deepnorm (see :func:`deepnorm`).
    """

    def __init__(
        self, width: int, placement: Placement = "pre", kind: Norm = "layer", *, alpha: float = 1.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if placement not in get_args(Placement):
            raise ValueError(f"placement must be one of {', '.join(get_args(Placement))}, got {placement!r}")
        self.placement, self.alpha = placement, alpha
        bare = placement in ("rezero", "fixup")
        self.norm = nn.Identity() if bare else norm(kind, width, eps)
        self.gain = nn.Parameter(torch.tensor(0.0 if placement == "rezero" else 1.0)) if bare else None
        self.shift = nn.Parameter(torch.zeros(2)) if placement == "fixup" else None

    def before(self, x: Tensor) -> Tensor:
        """The layer's input."""
        if self.placement == "pre":
            return self.norm(x)
        return x if self.shift is None else x + self.shift[0]

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream after the layer, whose output is ``y``."""
        if self.placement == "pre":
            return x + y
        if self.gain is not None:
            y = self.gain * y
            return x + y if self.shift is None else x + y + self.shift[1]
        return self.norm(x + y if self.alpha == 1.0 else self.alpha * x + y)


def deepnorm(layers: int, *, other: int = 0, decoder: bool = False) -> tuple[float, float]:
    """alpha and beta (table 1) of a stack of ``layers``, alone, or as the encoder or ``decoder`` with ``other`` layers
    of the other one. beta is a gain of the initial weights of feed-forward layers, values and output projections."""
    if layers < 1 or other < 0:
        raise ValueError(f"deepnorm needs at least one layer, got {layers} and {other}")
    if not other:
        return (2 * layers) ** 0.25, (8 * layers) ** -0.25
    if decoder:
        return (3 * layers) ** 0.25, (12 * layers) ** -0.25
    both = layers**4 * other
    return 0.81 * both ** (1 / 16), 0.87 * both ** (-1 / 16)


def qk_norm(q: Tensor, k: Tensor, weight_q: Tensor, weight_k: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """RMS norms of queries and keys [B, h, T, d] over the channels of a head, with weights [d]: scores stay bounded
    (Henry et al., 2020, arXiv:2010.04245; in this form Dehghani et al., 2023, arXiv:2302.05442)."""
    return F.rms_norm(q, q.shape[-1:], weight_q, eps), F.rms_norm(k, k.shape[-1:], weight_k, eps)
