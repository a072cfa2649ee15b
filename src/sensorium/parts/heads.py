"""Heads: small networks between a backbone's features and a self-supervised loss; discarded after training.

``ProjectionHead``: SimCLR's (Chen et al., 2020, arXiv:2002.05709, section 2.1 and the authors' code).
``DINOHead``: DINO's (Caron et al., 2021, arXiv:2104.14294, appendix C), its parameters named as in the authors' code.
Shapes: B batch, D features, K outputs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """[B, dim] -> [B, out]: ``layers`` linear layers, each normalized over the batch, with ReLU between them.

    As in the authors' code the last normalization scales and doesn't shift; ``norm=False`` is the plain MLP of the
    paper's text.
    """

    def __init__(self, dim: int, hidden: int, out: int = 128, *, layers: int = 2, norm: bool = True):
        super().__init__()
        self.in_features, self.out_features = dim, out
        parts: list[nn.Module] = []
        for i in range(layers):
            last = i == layers - 1
            width = out if last else hidden
            parts.append(nn.Linear(dim if i == 0 else hidden, width, bias=not norm and not last))
            if norm:
                parts.append(nn.BatchNorm1d(width))
            if not last:
                parts.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*parts)
        if norm:
            self.layers[-1].register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def mlp_head(
    *widths: int, norm: bool = True, standardized: bool = False, bias: bool = False, last_bias: bool = True
) -> nn.Sequential:
    """[B, widths[0]] -> [B, widths[-1]]: linear layers, batch normalization (``norm``) and ReLU between them, as the
    projectors and predictors of MoCo, BYOL, SwAV, SimSiam, Barlow Twins and VICReg are.

    standardized: batch normalization without scale and shift at the end; the last layer then has no bias. bias: of the
    other layers; without ``norm`` they have one.
    """
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        if i < len(widths) - 2:
            parts.append(nn.Linear(before, after, bias=bias or not norm))
            parts += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        else:
            parts.append(nn.Linear(before, after, bias=last_bias and not standardized))
    if standardized:
        parts.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*parts)


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows have the lengths ``weight_g``: y = x (g v / |v|)^T. [B, D] -> [B, K].

    weight_v: [K, D] directions; weight_g: [K, 1] lengths, initially ones (Salimans & Kingma, 2016, arXiv:1602.07868).
    """

    def __init__(self, in_features: int, out_features: int, *, learn_lengths: bool = False):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=learn_lengths)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))
        return F.linear(x, weight)


class DINOHead(nn.Module):
    """MLP, then a cosine against each of K prototypes: [B, in_features] -> logits [B, out_features] in [-1, 1].

    norm: batch normalization inside the MLP (for convolutional backbones). norm_last_layer: keep the prototypes at
    length 1, which is more stable; if False their lengths are learned and logits may leave [-1, 1].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        norm: bool = False,
        norm_last_layer: bool = True,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        parts: list[nn.Module] = []
        for i in range(layers - 1):
            parts.append(nn.Linear(in_features if i == 0 else hidden, hidden))
            if norm:
                parts.append(nn.BatchNorm1d(hidden))
            parts.append(nn.GELU())
        parts.append(nn.Linear(hidden if layers > 1 else in_features, bottleneck))
        self.mlp = nn.Sequential(*parts)
        self.last_layer = WeightNormLinear(bottleneck, out_features, learn_lengths=not norm_last_layer)
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        return self.last_layer(F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1))
