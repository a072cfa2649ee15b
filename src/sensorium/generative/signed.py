"""Pictures in -1..1, as most generators see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sensorium.base.draw import Draw, Views
from sensorium.data.augment.images import flip as flipped
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads


def signed(pixels: Tensor, draw: Draw, flip: bool) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 in -1..1, with ``flip`` half of them mirrored."""
    image = pixels.float() / 127.5 - 1
    return flipped(image, draw) if flip else image


def signed_views(flip: bool = False) -> Views:
    """``{"image" [B, 3, S, S] in -1..1}``."""

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"image": signed(fields["image"], draw, flip)}

    return views


def deviation(on: Situation) -> float:
    """Of the data's values in -1..1, all channels together."""
    return 2 * (sum(one**2 for one in on.std) / 3) ** 0.5
