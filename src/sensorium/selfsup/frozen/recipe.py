"""A network as it is: which one, and how it sees pictures."""

from __future__ import annotations

from pathlib import Path

from sensorium.abilities import SeesImages
from sensorium.data.augment.views import supervised_views
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.optim import adamw, pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.frozen.method import Frozen

USUAL = 224  # a published network is used at this size, also where it was trained at a larger one


def frozen(on: Situation, *, backbone: str | None = None, side: int | None = None) -> Recipe:
    """A network as it is: no training, judged like all others.

    Example: sensorium compare frozen:dinov2-small/ simclr supervised --data DIR --budget 10m

    Args:
        backbone: the path of a checkpoint; FROZEN:PATH says the same.
        side: pixels to which pictures are resized before the network sees them; by default the size that it was
            trained at, at most 224. Small sides are faster and worse.
    """
    if backbone is None or not Path(backbone).exists():
        what = "no network is named" if backbone is None else f"there is no '{backbone}'"
        raise SensoriumError(f"'frozen': {what}. Give the path of a checkpoint: frozen:PATH, or --backbone PATH.")
    s = Settings()
    network = build_backbone(backbone, on, s, by="a frozen row")
    own = network.image_size if isinstance(network, SeesImages) else None
    trained = min(own) if isinstance(own, tuple) else own
    if side is not None and side < 8:
        raise SensoriumError(f"--side {side}: must be at least 8 pixels.")
    told = f"it was trained at {trained} px" if trained else "published networks are used at it"
    size = s.pick("side", side, min(trained or USUAL, USUAL), told)
    seen = network.normalization if isinstance(network, SeesImages) else None
    method = Frozen(network, (on.mean, on.std), seen, size)
    views = supervised_views(on.mean, on.std, on.image_size, scale=(1.0, 1.0), jitter=(0.0, 0.0, 0.0, 0.0))
    return Recipe("frozen", method, views, adamw(1e-3, 0.0), lambda share: 1.0, pick_batch_size(None, on, s), s)
