"""Feature pyramid networks for object detection (Lin et al., 2016, arXiv:1612.03144).

A network's feature maps become coarser and more semantic with depth. A top-down pathway adds semantic features to the
fine maps. From the coarsest map C_n of the body:
    M_n = lateral_n(C_n),   M_i = lateral_i(C_i) + up(M_{i+1})    1x1 convolutions; up: nearest, to the size of C_i
    P_i = smooth_i(M_i)                                           3x3 convolutions
Detectors of large objects add levels by 3x3 convolutions of stride 2 (P6 and P7 of RetinaNet, arXiv:1708.02002):
    P_{n+1} = extra_1(P_n),   P_{n+2} = extra_2(relu(P_{n+1})), ...
Shapes: B images, C_i, H_i, W_i channels, height and width of a map of the body, D width of the pyramid.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sensorium.abilities import HasBody, MapEncoder, require


class FPN(nn.Module, HasBody, MapEncoder):
    """The last ``levels`` maps of ``body`` as a pyramid of ``width`` channels, and
    ``extra`` coarser levels.

    frozen_norms: the body's batch norms keep their statistics and weights, as is usual with small batches and a
    pretrained body.
    Attributes: ``channels`` and ``strides`` of the maps, finest first; ``dim``, that of the body's features.
    Raises ValueError if the body has fewer maps than ``levels``.
    """

    def __init__(
        self, body: MapEncoder, *, levels: int = 3, width: int = 256, extra: int = 2, frozen_norms: bool = False
    ) -> None:
        super().__init__()
        require(body, MapEncoder, by="FPN", choices="a ResNet, or a ViT (whose pyramid begins at its patches)")
        channels, strides = body.channels, body.strides
        if not 1 <= levels <= len(channels):
            raise ValueError(f"levels must be 1 to {len(channels)}, the maps of {type(body).__name__}; got {levels}")
        self.body, self.dim, self.levels, self.frozen_norms = body, body.dim, levels, frozen_norms
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[-levels:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(levels))
        self.extra = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(extra))
        self.channels = (width,) * (levels + extra)
        self.strides = (*strides[-levels:], *(strides[-1] * 2 ** (i + 1) for i in range(extra)))
        for layer in (*self.lateral, *self.smooth, *self.extra):
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if frozen_norms:
            for norm in self._norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def _norms(self) -> list[nn.Module]:
        body = cast(nn.Module, self.body)
        return [module for module in body.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> FPN:
        """Set the mode; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> each level [B, D, H_i, W_i], finest first; each level is half the previous one, rounded
        up."""
        found = self.body.maps(images)[-self.levels :]
        merged = self.lateral[-1](found[-1])
        pyramid = [self.smooth[-1](merged)]
        for i in range(self.levels - 2, -1, -1):
            merged = self.lateral[i](found[i]) + F.interpolate(merged, found[i].shape[-2:], mode="nearest")
            pyramid.insert(0, self.smooth[i](merged))
        for i, extra in enumerate(self.extra):
            pyramid.append(extra(F.relu(pyramid[-1]) if i else pyramid[-1]))
        return pyramid

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the body's."""
        return self.body.features(images)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The same as ``maps``."""
        return self.maps(images)
