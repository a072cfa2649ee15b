"""The network of a gated PixelCNN (van den Oord et al., 2016, arXiv:1606.05328, section 2).

Two stacks of causal convolutions without a blind spot. v sees the rows down to its own, h what is before a pixel in its row and, of
v, the rows above:
    v' = conv_{n x k}(v)                            n = (k + 1) / 2 rows, the last of them v's own
    h' = conv_{1 x n}(h) + conv_{1 x 1}(v' of the row above)
    v <- gate(v' + V y)                             gate(a, b) = tanh(a) sigmoid(b), of the channels' halves           (eq. 2, 4)
    h <- h + conv_{1 x 1}(gate(h' + U y))           in the first layer h' is moved right by a pixel, and nothing is added
y is the embedding of the class. Shapes: B images, C channels of a stack, H x W pixels, K classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module):
    """One layer of both stacks; ``first``: it reads the picture. kernel: k, odd."""

    def __init__(self, inputs: int, channels: int, kernel: int, classes: int, *, first: bool = False) -> None:
        super().__init__()
        self.rows, self.side, self.first = (kernel + 1) // 2, kernel // 2, first
        self.vertical = nn.Conv2d(inputs, 2 * channels, (self.rows, kernel))
        self.horizontal = nn.Conv2d(inputs, 2 * channels, (1, self.rows))
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.classes = nn.Embedding(classes, 4 * channels) if classes else None

    def forward(self, v: Tensor, h: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] of both stacks, int64 [B] -> the same of the next layer."""
        down = self.vertical(F.pad(v, (self.side, self.side, self.rows - 1, 0)))
        above = F.pad(down, (0, 0, 1, -1))
        v_class, h_class = self.conditions(classes)
        v = gate(down + v_class)
        return v, self.across(F.pad(h, (self.rows - 1, 0, 0, 0)), h, self.link(above) + h_class)

    def across(self, padded: Tensor, h: Tensor, added: Tensor) -> Tensor:
        """The horizontal stack: h with n - 1 pixels before it, and what is added before the gate."""
        right = self.horizontal(F.pad(padded, (1, -1, 0, 0)) if self.first else padded)
        moved = self.out(gate(right + added))
        return moved if self.first else h + moved

    def conditions(self, classes: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """V y and U y, [B, 2 C, 1, 1] each."""
        if self.classes is None:
            return 0.0, 0.0
        assert classes is not None
        both = self.classes(classes)[..., None, None]
        return both.chunk(2, 1)


class PixelNetwork(nn.Module):
    """``layers`` layers of ``channels``, the first with a ``kernel`` of 7, the others of ``kernel``; [B, inputs, H, W] -> ``outputs``
    numbers a pixel, given those before it. classes: rows of the class embedding, 0 for none."""

    def __init__(
        self, inputs: int, outputs: int, *, channels: int, layers: int, kernel: int = 5, classes: int = 0
    ) -> None:
        super().__init__()
        if layers < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"a PixelCNN of {layers} layers and kernels of {kernel}: at least one layer, and kernels must be odd"
            )
        self.layers = nn.ModuleList(
            Layer(channels if k else inputs, channels, kernel if k else 7, classes, first=not k) for k in range(layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, outputs, 1)
        )

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """[B, inputs, H, W], int64 [B] -> [B, outputs, H, W]."""
        v = h = images
        for layer in self.layers:
            v, h = layer(v, h, classes)
        return self.head(h)

    def walk(self, images: Tensor, classes: Tensor | None = None) -> Walk:
        """To write ``images`` pixel by pixel."""
        return Walk(self, images, classes)


class Walk:
    """The network pixel by pixel, each of its numbers computed once (Ramachandran et al., 2017, arXiv:1704.06001): called with row and
    column in reading order, it gives the outputs [B, outputs] of that pixel, given what ``images`` then has before it.

    Of each layer it keeps the rows of v that the next one reads, the row of h, and what v adds to it.
    """

    def __init__(self, network: PixelNetwork, images: Tensor, classes: Tensor | None) -> None:
        self.network, self.images = network, images
        self.layers = [cast(Layer, layer) for layer in network.layers]
        self.conditions = [layer.conditions(classes) for layer in self.layers]
        count, _, _, width = images.shape
        channels = [images.shape[1], *(layer.out.out_channels for layer in self.layers)]
        # of each layer's input: the last rows of v, padded at the sides, and the row of h, padded before it
        self.above = [
            images.new_zeros(count, c, layer.rows, width + 2 * layer.side)
            for c, layer in zip(channels, self.layers, strict=False)
        ]
        self.row = [
            images.new_zeros(count, c, 1, width + layer.rows - 1 + layer.first)
            for c, layer in zip(channels, self.layers, strict=False)
        ]
        self.added = [images.new_zeros(count, layer.link.out_channels, 1, width) for layer in self.layers]

    def __call__(self, row: int, column: int) -> Tensor:
        if column == 0:
            self._begin(row)
        before = self.images[:, :, row : row + 1, column - 1 : column]
        h = before if column else torch.zeros_like(self.images[:, :, :1, :1])
        for k, layer in enumerate(self.layers):
            kept = self.row[k]  # the first layer's pixel before it is where padding and the move to the right put it
            kept[..., column + layer.rows - 1 : column + layer.rows] = h
            window = kept[..., column : column + layer.rows]
            moved = layer.out(gate(layer.horizontal(window) + self.added[k][..., column : column + 1]))
            h = moved if layer.first else h + moved
        return self.network.head(h)[:, :, 0, 0]

    def _begin(self, row: int) -> None:
        """Of a new row: v of the one above it, layer by layer."""
        v = self.images[:, :, row - 1 : row] if row else None
        for k, layer in enumerate(self.layers):
            self.row[k].zero_()
            if v is None:  # nothing is above the first row: the link sees zeros
                down = self.images.new_zeros(len(self.images), layer.link.in_channels, 1, self.images.shape[-1])
            else:
                self.above[k] = torch.cat([self.above[k][:, :, 1:], F.pad(v, (layer.side, layer.side))], 2)
                down = layer.vertical(self.above[k])
                v = gate(down + self.conditions[k][0])
            self.added[k] = layer.link(down) + self.conditions[k][1]


def gate(both: Tensor) -> Tensor:
    """tanh(a) sigmoid(b) of the halves a, b of the channels."""
    a, b = both.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)
