"""Models of black-and-white pictures, pixel by pixel: what FVSBN, NADE, MADE and others have in common.

    p(x) = prod_d p(x_d | x_<d),     p(x_d = 1 | x_<d) = sigmoid(y_d),     L = -log p(x)
A system of this kind gives the logits y of all pixels in one pass, each of those before it in the order of the model.
Shapes: B pictures, D pixels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import Completer, Likelihood, Reconstructor
from sensorium.base.draw import Draw, Views
from sensorium.base.precision import precise
from sensorium.data.rows import reads
from sensorium.method import Method
from sensorium.parts.density.pixels import binarise, black_and_white, shown


def binary_views(stochastic: bool) -> Views:
    """``{"image" [B, 1, S, S] zeros and ones}``: gray pictures by threshold, or by chance as bright as they are."""

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        grey = fields["image"].float().mean(1, keepdim=True) / 255
        chance = draw.rand(*grey.shape[1:]).to(grey.device) if stochastic else None
        return {"image": binarise(grey, chance)}

    return views


class BinaryImages(Method, Completer, Likelihood, Reconstructor):
    """A distribution over binary images or vectors of a ``shape``, without the batch."""

    panels = ("original", "probability of a one at each pixel, given earlier ones")

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.inputs = math.prod(self.shape)

    @abstractmethod
    def logits(self, x: Tensor, which: int = 0) -> Tensor:
        """y of zeros and ones [B, ...], by one of ``members`` -> the same shape."""

    @abstractmethod
    def in_turn(
        self, x: Tensor, which: int = 0, known: Tensor | None = None
    ) -> tuple[Sequence[int], Callable[[int], Tensor]]:
        """The order of the member ``which``, and a function that is called with each d of it in turn: y_d [n] of the pixels that
        ``x`` [n, D] then has before d. known: bool [D], pixels that come first where any order will do."""

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """``n`` samples [n, *shape], drawn pixel by pixel."""
        unknown = torch.zeros(n, *self.shape)
        return self.complete(unknown, unknown.bool(), seed=seed)

    @torch.no_grad()
    def complete(self, given: Tensor, known: Tensor, *, seed: int = 0, which: int = 0) -> Tensor:
        """The unknown pixels of ``given``, zeros and ones [n, *shape], drawn one by one in the order of the member ``which``.

        A pixel is drawn given those before it: if the known ones are the first in the order, it is a draw of p(unknown | known); those
        that come later are not heeded before.
        """
        like = next(self.parameters())
        x, fixed = given.to(like).flatten(1), known.to(like.device).flatten(1)
        x = torch.where(fixed, x, 0)
        dice = torch.rand(self.inputs, len(x), generator=torch.Generator().manual_seed(seed)).to(like.device)
        order, logit = self.in_turn(x, which, fixed.all(0))
        for d in order:
            drawn = (dice[d] < torch.sigmoid(logit(d))).to(x.dtype)
            x[:, d] = torch.where(fixed[:, d], x[:, d], drawn)
        return x.view(len(x), *self.shape)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, ...], zeros and ones -> the loss, nats per image. Logs ``bits_per_dim``."""
        return self.told(self.nats(batch["image"]).mean())

    def told(self, loss: Tensor) -> dict[str, Tensor]:
        """What ``forward`` gives of a loss in nats per image."""
        return {"loss": loss, "bits_per_dim": loss.detach() / (self.inputs * math.log(2))}

    def nats(self, x: Tensor) -> Tensor:
        """-log p(x) of zeros and ones [B, ...] -> [B], float32 or better, as the loss counts it."""
        return self.cost(self.logits(x), x)

    @staticmethod
    def cost(y: Tensor, x: Tensor) -> Tensor:
        """Logits and zeros and ones [B, ...] -> -log p [B]."""
        y = precise(y.flatten(1))
        return F.binary_cross_entropy_with_logits(y, x.flatten(1).to(y.dtype), reduction="none").sum(1)

    def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
        """Zeros and ones [B, ...] -> [B] nats, averaged in probability over the first ``ensemble`` of ``members``.

        Raises ValueError for other values.
        """
        if not 1 <= ensemble <= self.members:
            raise ValueError(f"ensemble must be between 1 and the {self.members} members, got {ensemble}")
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"{type(self).__name__} gives the probability of zeros and ones only: binarise the images")
        each = torch.stack([-self.cost(self.logits(x, which), x) for which in range(ensemble)])
        return each.logsumexp(0) - math.log(ensemble)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> zeros and ones [B, 1, H, W], gray by threshold."""
        return black_and_white(pixels)

    def to_pixels(self, samples: Tensor) -> Tensor:
        """Zeros and ones [B, 1, H, W] -> uint8 [B, 3, H, W], black and white."""
        return shown(samples)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """Side by side: image | probability of a one at each pixel, given earlier ones, [B, 3, H, 2 W]. No sampling."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"panels are of images [B, 1 or 3, H, W], not {list(images.shape)}")
        both = torch.cat([images, torch.sigmoid(self.logits(images)).to(images.dtype)], dim=-1)
        return both.expand(-1, 3, -1, -1)
