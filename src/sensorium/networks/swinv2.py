"""Swin Transformer V2: scaling up capacity and resolution (Liu et al., 2021, arXiv:2111.09883).

Swin (networks/swin.py) with what keeps large networks stable and windows exchangeable: norms after each branch, attention
by cosines, and biases from a network of logarithmic distances (parts/attention/window.py). A block (figure 1):
    x = x + LayerNorm(CosineWindowAttention(x))
    x = x + LayerNorm(fc2(gelu(fc1(x))))
    merging:  x = LayerNorm(W [x_00, x_10, x_01, x_11])
The norms of blocks begin at zero, so that a new network is its merging alone, as in the authors' code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sensorium.networks.swin import Init, ShiftedWindows, neighbors, sizes_for
from sensorium.parts.attention.window import CosineWindowAttention
from sensorium.parts.block import Mlp, hidden_channels
from sensorium.parts.drop import DropPath

SWINV2_SIZES: dict[str, tuple[tuple[int, ...], int, int]] = {
    "micro": ((2, 2, 1), 32, 4),
    "tiny": ((2, 2, 6, 2), 96, 8),
    "small": ((2, 2, 18, 2), 96, 8),
    "base": ((2, 2, 18, 2), 128, 8),
    "large": ((2, 2, 18, 2), 192, 12),
}


def swinv2(size: str, image_size: int, **numbers: Any) -> SwinV2:
    """A Swin V2 of a named size, see :func:`sensorium.networks.swin.sizes_for`; of "micro" the norms of blocks begin at
    one. size: a key of ``SWINV2_SIZES``. numbers: arguments of :class:`SwinV2` that override those of the name."""
    return SwinV2(**sizes_for(size, image_size, SWINV2_SIZES) | numbers)


class SwinV2(ShiftedWindows):
    """A Swin Transformer V2 for any image size; arguments and attributes: :class:`ShiftedWindows`.

    references: of each stage the window in which it was first trained, if that was another (appendix A1).
    """

    def __init__(self, *given: Any, references: tuple[int, ...] | None = None, **numbers: Any) -> None:
        self._references = references  # before the blocks are built
        super().__init__(*given, **numbers)

    @property
    def references(self) -> tuple[int, ...]:
        """Of each stage, the window whose distances go to 8."""
        found = self._references or self.windows
        if len(found) != len(self.windows):
            raise ValueError(f"swinv2: references of {found} for windows of {self.windows}")
        return found

    def block(self, stage: int, shift: int, drop_path: float) -> nn.Module:
        """Post-norm, with cosines."""
        width, window, reference = self.channels[stage], self.windows[stage], self.references[stage]
        attention = CosineWindowAttention(
            width, self.heads[stage], (window, window), (shift, shift), qkv_bias=self.qkv_bias,
            reference=(reference, reference),
        )  # fmt: skip
        return PostNormBlock(width, attention, Mlp(width, hidden_channels(width, self.mlp_ratio)), self.eps, drop_path)

    def merging(self, width: int) -> nn.Module:
        """Norm after the reduction."""
        return PostNormMerging(width, self.eps)

    def _initialize(self, init: Init) -> None:
        super()._initialize(init)
        if init == "normal":
            for block in (one for one in self.modules() if isinstance(one, PostNormBlock)):
                nn.init.zeros_(block.norm1.weight)
                nn.init.zeros_(block.norm2.weight)


class PostNormBlock(nn.Module):
    """Attention and Mlp, each normed before it is added: [B, H, W, width] -> the same."""

    def __init__(self, width: int, attention: nn.Module, mlp: nn.Module, eps: float, drop_path: float) -> None:
        super().__init__()
        self.attn, self.norm1 = attention, nn.LayerNorm(width, eps=eps)
        self.mlp, self.norm2 = mlp, nn.LayerNorm(width, eps=eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.norm1(self.attn(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PostNormMerging(nn.Module):
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C] of 2x2 neighbors: ``reduction``, then norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(neighbors(x)))
