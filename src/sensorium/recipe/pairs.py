"""What recipes of pictures with captions share."""

from __future__ import annotations

from sensorium.data.pairs.prepare import PairSituation
from sensorium.errors import SensoriumError
from sensorium.networks.text import TextTower
from sensorium.recipe.recipe import Settings, machine_of


def pick_text_tower(given_width: int | None, given_depth: int | None, on: PairSituation, s: Settings) -> TextTower:
    """CLIP's text tower for these captions, to be trained from random weights."""
    small, why = machine_of(on)
    width: int = s.pick("text_width", given_width, 128 if small else 512, why)
    depth: int = s.pick("text_depth", given_depth, 3 if small else 8, why)
    heads = max(1, width // (32 if small else 64))
    if width % heads:
        raise SensoriumError(f"--text-width {width} is no multiple of its {heads} heads: try {width // heads * heads}.")
    return TextTower(on.vocab, on.context, width, depth, heads, eot=on.vocab - 1)
