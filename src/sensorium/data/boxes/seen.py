"""How a detector sees a picture: the one preparation of judging, ``sensorium detect``, Python, the page and exports.

A picture of H x W pixels is resized to floor(H f) x floor(W f), f = min(shorter / min(H, W), longer / max(H, W)), by
Pillow's antialiased bilinear filter on 8 bits, normalized, and placed in the top left corner of a canvas of zeros (the
mean color) whose sides are multiples of a divisor. A detector that was trained here has shorter = longer, and the
divisor is its square's side, so that every picture stands in the same square, alone or in a batch: convolutions see
padding, and the locations of coarse levels depend on the canvas. Training augments before, in the same squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sensorium.data.augment.boxes import collate, to_original
from sensorium.data.images.decode import to_array

_NOTHING: dict[str, Tensor] = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "crowd": torch.zeros(0, dtype=torch.bool),
}


def inner_size(height: int, width: int, shorter: int, longer: int | None = None) -> tuple[int, int]:
    """(height, width) to which a picture is resized; ``longer`` is ``shorter`` by default. At least one pixel each.

    The rule of torchvision's transform, and of transformers' ``max_height`` and ``max_width``, to the bit: an exact
    product may be rounded down to one pixel less.
    """
    factor = min(shorter / min(height, width), (longer or shorter) / max(height, width))
    return max(1, int(height * factor)), max(1, int(width * factor))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``image`` with ``size`` (height, width)."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Sight:
    """How one detector sees pictures. mean, std: in 0..1 scale. sides: pixels of the shorter side, and maximum of the
    longer one. divisor: of the canvas's height and width."""

    mean: Sequence[float]
    std: Sequence[float]
    sides: tuple[int, int]
    divisor: int

    def look(self, image: Image.Image, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """An RGB picture as a sample for :meth:`batch`; ``size``: its (height, width), if ``image`` is a reduced copy."""
        size = size or (image.height, image.width)
        seen = resized(image, inner_size(*size, *self.sides))
        return {"image": torch.from_numpy(to_array(seen)), "original": torch.tensor(size)}

    def batch(self, samples: Sequence[Mapping[str, Any]], device: torch.device | str = "cpu") -> dict[str, Any]:
        """Samples (``image`` uint8 [3, h, w] resized, ``original`` (H, W), and boxes if there are any) -> ``image`` [B, 3,
        S, S], ``sizes`` and ``original`` int64 [B, 2], and the samples' boxes."""
        return collate(
            [_NOTHING | dict(one) for one in samples], self.mean, self.std, divisor=self.divisor, device=device
        )

    @torch.no_grad()
    def find(
        self, method: Any, samples: Sequence[Mapping[str, Any]], threshold: float, device: torch.device | str
    ) -> list[dict[str, Tensor]]:
        """Detections in each sample, in pixels of the original picture and within it: ``boxes`` xyxy [N, 4], ``scores``
        [N], descending, ``labels`` [N], on the CPU."""
        batch = self.batch(samples)
        seen = method.detect(batch["image"].to(device), threshold, sizes=batch["sizes"])
        found = to_original([{name: value.cpu() for name, value in one.items()} for one in seen], batch)
        limits = batch["original"].flip(1).repeat(1, 2)
        return [
            one | {"boxes": torch.minimum(one["boxes"].clamp(min=0), limit.to(one["boxes"]))}
            for one, limit in zip(found, limits, strict=True)
        ]


def squared(images: Tensor, sight: Sight) -> Tensor:
    """uint8 [B, 3, H, W] -> what the detector sees of them, float32 [B, 3, S, S]."""
    pictures = [Image.fromarray(np.ascontiguousarray(one.permute(1, 2, 0).numpy())) for one in images.cpu()]
    return sight.batch([sight.look(one) for one in pictures])["image"]
