"""The feature space of the Fréchet Inception distance (Heusel et al., 2017, arXiv:1706.08500).

It is the last pooling layer of Inception v3 (Szegedy et al., 2015, arXiv:1512.00567) with the TensorFlow weights of
December 2015. The user provides the file: ``pt_inception-2015-12-05-6726825d.pth``, in pytorch-fid's format. The
network is torchvision's except for its pooling: averages exclude padding, and the last block takes the maximum. Images
are resized to 299 px and scaled to -1..1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3
from torchvision.models.inception import InceptionE

from sensorium.abilities import Encoder
from sensorium.errors import SensoriumError
from sensorium.published.files import read_weights, unwrap

CLASSES, SIDE = 1008, 299
AVERAGING = (
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b",
)  # fmt: skip


class Inception(nn.Module, Encoder):
    """Images in 0..1, [B, 3, H, W] of any size -> [B, 2048].

    path: the weights' file. Raises SensoriumError if it holds other weights.
    """

    dim = 2048

    def __init__(self, path: Path) -> None:
        super().__init__()
        state = next(unwrap(read_weights(path)), {})
        classes = len(state.get("fc.weight", ()))
        if classes != CLASSES:
            raise SensoriumError(
                f"{path}: {f'Inception weights of {classes} classes' if classes else 'no Inception weights'}; published "
                f"FIDs use those of {CLASSES} classes (pytorch-fid's pt_inception-2015-12-05-6726825d.pth)."
            )
        net: Any = Inception3(CLASSES, aux_logits=False, init_weights=False)
        net.Mixed_7c = _Last(2048)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise SensoriumError(f"{path}: {' '.join(str(error).split())[:300]}") from None
        for name in AVERAGING:
            block = net.get_submodule(name)
            block.branch_pool = nn.Sequential(_WithoutPadding(), block.branch_pool)
        net.fc = nn.Identity()
        self.net: nn.Module = net.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """See the class."""
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.net(2 * images - 1)


class _WithoutPadding(nn.Module):
    """Convert averages over 3 x 3 windows that count padding as zeros to averages that exclude padding."""

    def forward(self, x: Tensor) -> Tensor:
        return x / F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, 1, 1)


class _Last(InceptionE):
    """The last block, with max pooling in place of average pooling."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        short, deep = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(short), self.branch3x3_2b(short)], 1),
            torch.cat([self.branch3x3dbl_3a(deep), self.branch3x3dbl_3b(deep)], 1),
            self.branch_pool(F.max_pool2d(x, 3, 1, 1)),
        ]
