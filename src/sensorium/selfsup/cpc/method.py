"""CPC: representation learning with contrastive predictive coding (van den Oord, Li & Vinyals, 2018, arXiv:1807.03748), of
pictures (section 3.2; Henaff et al., 2019, arXiv:1905.09272, whose context network and loss these are).

A picture is a grid of overlapping patches. Each is encoded alone; a context network sees the rows down to one; and from the
context the vectors of patches k rows further down are predicted, told from those of all other patches of the batch:
    z = E(patch)                                c[i, j] = g(z[0..i, :]), by convolutions that see no row below i
    t = W_t z,   p_k[i, j] = scale W_k c[i, j]                                                       (eq. 3)
    L_k = mean over i, j of -log( exp(p_k[i, j] . t[i + k, j]) / sum over the K patches of all pictures of exp(p_k[i, j] . t) )
    L = mean over k of L_k                                                                           (eq. 4)
log K - L bounds the mutual information of a context and a patch. The nearest rows overlap and are skipped, as by Henaff et
al., who sum over k. W_t is of their code; the first paper has t = z. Features are the mean of a picture's z, which both probe.
Shapes: B pictures of this process, N of all, h x w patches, D channels of z and c, E of t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import BoundsInformation, Encoder, HasBackbone, require
from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.gather import world_size
from sensorium.parts.learning.ahead import contrast
from sensorium.parts.moe.layer import update_biases


class CPC(Method, HasBackbone, BoundsInformation, Encoder):
    """Contrastive prediction of patches down the rows.

    backbone: an Encoder, of patches. patch, stride: of the grid, in pixels. steps: the largest k. skip: rows that are not
    predicted. context_width, context_depth: of the context network. targets: E. scale: of the predictions.
    """

    least_batch = 2

    def __init__(
        self,
        backbone: nn.Module,
        patch: int,
        stride: int,
        *,
        steps: int = 3,
        skip: int = 1,
        context_width: int = 256,
        context_depth: int = 5,
        targets: int = 64,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        require(backbone, Encoder, by="CPC", choices="a ResNet, a ConvNeXt or a ViT")
        if not 1 <= stride <= patch or not 0 <= skip < steps:
            raise ValueError(f"needs 1 <= stride {stride} <= patch {patch} and 0 <= skip {skip} < steps {steps}")
        self.backbone: Any = backbone
        self.dim: int = self.backbone.dim
        self.patch, self.stride, self.skip, self.scale = patch, stride, skip, scale
        self.context = Context(self.dim, context_width, context_depth)
        self.target = nn.Conv2d(self.dim, targets, 1)
        self.predict = nn.ModuleList(nn.Conv2d(self.dim, targets, 1) for _ in range(steps - skip))  # W_k, of k > skip

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 3, H, W] -> the loss.

        Logs ``information`` (log K - loss), its ``ceiling`` log K, and ``contrast_top1``, how often the patch that is
        predicted best is the right one. Raises ValueError for pictures with too few rows of patches.
        """
        z = self.vectors(batch["image"])
        c = self.context(z)
        with torch.autocast(z.device.type, enabled=False):
            t = self.target(precise(z))
            losses, right = [], []
            for k, layer in enumerate(self.predict, self.skip + 1):
                p = self.scale * layer(precise(c[:, :, :-k]))
                loss, found = contrast(p, t, k)
                losses.append(loss)
                right.append(found)
            loss = torch.stack(losses).mean()
            ceiling = loss.new_full((), math.log(len(t) * world_size() * t[0, 0].numel()))
        told = {"information": ceiling - loss.detach(), "ceiling": ceiling}
        return {"loss": loss, "contrast_top1": torch.stack(right).mean(), **told}

    def vectors(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> z [B, D, h, w]."""
        grid = patches(images, self.patch, self.stride)
        if self.training and grid.shape[1] <= self.skip + len(self.predict):
            raise ValueError(
                f"CPC: {grid.shape[1]} rows of patches; predicting {self.skip + len(self.predict)} rows ahead needs more"
            )
        return self.backbone.features(grid.flatten(0, 2)).unflatten(0, grid.shape[:3]).movedim(-1, 1)

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]: the mean of the patches' vectors."""
        return self.vectors(images).mean((2, 3))


class Context(nn.Module):
    """Residual blocks of row-causal convolutions (Henaff et al., appendix A): [B, D, h, w] -> [B, D, h, w].

    A block sees the row above and the columns beside: conv 1x1, relu, conv 1x3 in the row, conv 2x1 of this row and the one
    above, relu, conv 1x1.
    """

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, width, 1), nn.ReLU(), nn.Conv2d(width, width, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)), nn.Conv2d(width, width, (2, 1)), nn.ReLU(), nn.Conv2d(width, dim, 1),
            )
            for _ in range(depth)
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = z + block(z)
        return F.relu(z)


def patches(images: Tensor, size: int, stride: int) -> Tensor:
    """[B, C, H, W] -> [B, h, w, C, size, size], h = (H - size) // stride + 1; the rest at the right and bottom is left out.

    Raises ValueError for pictures smaller than a patch.
    """
    if min(images.shape[-2:]) < size:
        raise ValueError(f"a picture of {images.shape[-2]}x{images.shape[-1]} pixels is smaller than a patch of {size}")
    return images.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5)
