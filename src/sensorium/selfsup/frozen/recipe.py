"""A network as it is: which one, and how it sees pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sensorium.data.augment.views import supervised_views
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.networks.preprocess import usual_side
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.frozen.method import Frozen


def frozen(on: Situation, *, backbone: str | None = None, side: int | None = None) -> Recipe:
    """A network as it is: no training, judged like all others.

    Example: sensorium train frozen --backbone dinov2-small/ --data DIR --judge

    Args:
        backbone: the path of a checkpoint, or a name, whose weights are then random. In a comparison: frozen:PATH.
        side: pixels to which pictures are resized before the network sees them; by default the size that it was
            trained at, at most 224. Small sides are faster and worse.
    """
    if backbone is None:
        raise SensoriumError("'frozen': no network is named. Give a checkpoint: --backbone PATH, or frozen:PATH.")
    if side is not None and side < 8:
        raise SensoriumError(f"--side {side}: must be at least 8 pixels.")
    s = Settings()
    network: Any = build_backbone(backbone, on, s, by="a frozen row")
    if Path(backbone).exists():
        size = s.pick("side", side, *usual_side(network))
    else:
        size = s.pick("side", side, on.image_size, "the size of the pictures")
    method = Frozen(network, (on.mean, on.std), network.normalization, size)
    views = supervised_views(on.mean, on.std, on.image_size, scale=(1.0, 1.0), jitter=(0.0, 0.0, 0.0, 0.0))
    return Recipe("frozen", method, views, _idle, lambda share: 1.0, pick_batch_size(None, on, s), s)


def _idle(method: Method) -> torch.optim.Optimizer:
    """An optimizer of nothing: a recipe has one."""
    return torch.optim.SGD([torch.zeros(())], lr=0.0)
