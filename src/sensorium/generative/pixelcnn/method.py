"""Gated PixelCNN: conditional image generation with PixelCNN decoders (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves &
Kavukcuoglu, 2016, arXiv:1606.05328), of black-and-white pictures.

    p(x | y) = prod_d p(x_d | x_<d, y),     L = -log p(x | y)                                                        (eq. 1, 3)
by causal convolutions (``network.py``) in reading order. In a part of the samples the class y is hidden, so that the one model gives
p(x), too; guidance s draws a pixel by s log-odds given the class and 1 - s without (Ho & Salimans, 2022, arXiv:2207.12598).
Shapes: B images, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import ClassConditional
from sensorium.generative.binary import BinaryImages
from sensorium.generative.pixelcnn.network import PixelNetwork


class PixelCNN(BinaryImages, ClassConditional):
    """A distribution over binary images [1, H, W], of one of ``classes`` (0 for none)."""

    def __init__(
        self, height: int, width: int, *, channels: int = 32, layers: int = 7, kernel: int = 5, classes: int = 0
    ) -> None:
        super().__init__((1, height, width))
        self.classes = classes
        self.network = PixelNetwork(
            1, 1, channels=channels, layers=layers, kernel=kernel, classes=classes + 1 if classes else 0
        )

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, 1, H, W], zeros and ones, and with classes ``label`` int64 [B] (-1: unknown or hidden) -> the loss, nats per
        image. Logs ``bits_per_dim``."""
        x, labels = batch["image"], batch["label"] if self.classes else None
        return self.told(self.cost(self.network(x, self._rows(labels, x)), x).mean())

    def logits(self, x: Tensor, which: int = 0, labels: Tensor | None = None) -> Tensor:
        """y: the logit of a one at each pixel, given earlier ones and the class [B], if there is one. [B, 1, H, W] -> the same shape."""
        return self.network(x, self._rows(labels, x))

    def sample(self, n: int, *, seed: int = 0, condition: Tensor | int | None = None, guidance: float = 1.0) -> Tensor:
        """``n`` images of the class ``condition``, by default of all classes in turn; of a model of the classes' probability."""
        unknown = torch.zeros(n, *self.shape)
        if condition is None and self.classes:
            condition = torch.arange(n) % self.classes
        return self.complete(unknown, unknown.bool(), seed=seed, condition=condition, guidance=guidance)

    @torch.no_grad()
    def complete(
        self,
        given: Tensor,
        known: Tensor,
        *,
        seed: int = 0,
        which: int = 0,
        condition: Tensor | int | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """The unknown pixels of ``given`` [n, 1, H, W] drawn in reading order, of an unknown class by default; exact if the known ones are
        the first in it."""
        like = next(self.parameters())
        x, fixed = torch.where(known, given, 0).to(like), known.to(like.device)
        n, _, _height, width = x.shape
        dice = torch.rand(self.inputs, n, generator=torch.Generator().manual_seed(seed)).to(like.device)
        labels = None if condition is None else torch.as_tensor(condition).expand(n)
        walk = self.network.walk(x, self._rows(labels, x))
        free = None if guidance == 1 else self.network.walk(x, self._rows(None, x))
        for d in range(self.inputs):
            at = divmod(d, width)
            y = walk(*at)[:, 0]
            if free is not None:
                y = guidance * y + (1 - guidance) * free(*at)[:, 0]
            drawn = (dice[d] < torch.sigmoid(y)).to(x.dtype)
            x[:, 0, at[0], at[1]] = torch.where(fixed[:, 0, at[0], at[1]], x[:, 0, at[0], at[1]], drawn)
        return x

    def in_turn(self, x: Tensor, which: int = 0, known: Tensor | None = None) -> Any:
        """Reading order, without a class."""
        walk = self.network.walk(x.view(len(x), *self.shape), self._rows(None, x))
        return range(self.inputs), lambda d: walk(*divmod(d, self.shape[-1]))[:, 0]

    def _rows(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Of the class embedding: the last where the class is unknown; None without classes."""
        if not self.classes:
            return None
        if labels is None:
            return torch.full((len(x),), self.classes, device=x.device)
        if bool((labels >= self.classes).any()):
            raise ValueError(f"class {int(labels.max())} must be less than {self.classes}")
        return torch.where(labels < 0, self.classes, labels).to(x.device)
