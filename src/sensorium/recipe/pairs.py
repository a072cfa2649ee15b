"""What recipes of pictures with captions share."""

from __future__ import annotations

import torch

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


def pick_tokens(tokenizer: str | None, vocab: int | None, context: int | None, on: PairSituation, s: Settings) -> None:
    """Note how captions become tokens, which the data have settled."""
    s.pick("tokenizer", tokenizer, "byte pairs", "learned from the captions")
    s.pick("vocab", vocab, on.vocab, "what the captions' words come to" if tokenizer is None else "the tokenizer's")
    s.pick("context", context, on.context, "the longest caption, 77 at most")


def empty_text(on: PairSituation) -> torch.Tensor:
    """Tokens of the empty text: int64 [T]."""
    return torch.tensor([on.start, on.vocab - 1, *[on.pad] * (on.context - 2)])
