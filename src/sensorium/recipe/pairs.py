"""What recipes of pictures with captions share."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import nn

from sensorium.abilities import HasTextTower
from sensorium.catalogue import a_run_of
from sensorium.data.pairs.prepare import PairSituation
from sensorium.errors import SensoriumError
from sensorium.networks.formats.clip_text import HF
from sensorium.networks.text import TextSizes, TextTower
from sensorium.published.opening import open_path, part_of
from sensorium.published.registry import formats
from sensorium.recipe.recipe import Settings, machine_of
from sensorium.recipe.trained import ROLE, Checkpoint, Trained, is_run, published_input


def _open(path: str) -> nn.Module:
    whole = (form for form in formats() if issubclass(form.network, HasTextTower))
    network = open_path(part_of(path, "text_encoder"), (HF, *whole))
    return network.text if isinstance(network, HasTextTower) else network


PUBLISHED = Checkpoint(_open, TextSizes)
RunOrTextTower = Annotated[
    str, ROLE, PUBLISHED
]  # or a published CLIP, its text tower alone, or diffusers' folder with one


def pick_text_tower(given_width: int | None, given_depth: int | None, on: PairSituation, s: Settings) -> TextTower:
    """CLIP's text tower for these captions, to be trained from random weights."""
    small, why = machine_of(on)
    width: int = s.pick("text_width", given_width, 128 if small else 512, why)
    depth: int = s.pick("text_depth", given_depth, 3 if small else 8, why)
    heads = max(1, width // (32 if small else 64))
    if width % heads:
        raise SensoriumError(f"--text-width {width} is no multiple of its {heads} heads: try {width // heads * heads}.")
    return TextTower(on.vocab, on.context, width, depth, heads, eot=on.vocab - 1)


def pick_tokens(
    tokenizer: str | None,
    vocab: int | None,
    context: int | None,
    on: PairSituation,
    s: Settings,
    *,
    of: str | None = None,
) -> None:
    """Note how captions become tokens, which the data have settled. of: the trained text tower whose tokenizer it is."""
    learned = tokenizer is None and of is None
    s.pick("tokenizer", tokenizer, of or "byte pairs", "that of --text" if of else "learned from the captions")
    s.pick("vocab", vocab, on.vocab, "what the captions' words come to" if learned else "the tokenizer's")
    s.pick("context", context, on.context, "the longest caption, 77 at most")


def empty_text(on: PairSituation) -> torch.Tensor:
    """Tokens of the empty text: int64 [T]."""
    return torch.tensor([on.start, on.vocab - 1, *[on.pad] * (on.context - 2)])


def trained_text_tower(
    path: str, given_width: int | None, given_depth: int | None, on: PairSituation, s: Settings
) -> TextTower:
    """The text tower of the run or of the published network at ``path``, for these captions and no longer ones.

    Raises SensoriumError if there is none, or if it is another than these settings and tokens say.
    """
    tower: Any = _of_run(path) if is_run(path) else published_input("text", path, PUBLISHED)
    if not isinstance(tower, TextTower):
        raise SensoriumError(
            f"--text {path}: must be {a_run_of('ImageText')}, which has a text tower, or a published CLIP."
        )
    for name, given, own in (("width", given_width, tower.dim), ("depth", given_depth, tower.depth)):
        if given not in (None, own):
            raise SensoriumError(f"--text-{name} {given}: the tower of --text {path} has {own}; leave it out.")
        s.pick(f"text_{name}", None, own, "that of --text")
    if on.vocab > tower.vocab:
        raise SensoriumError(
            f"--text {path}: its tower has {tower.vocab:,} tokens, the tokenizer {on.vocab:,}; leave --tokenizer out."
        )
    if on.context > tower.context:
        raise SensoriumError(
            f"--text {path}: its tower takes {tower.context} tokens, the longest caption has {on.context}; give --context "
            f"{tower.context}."
        )
    return tower.shorten_(on.context)


def _of_run(path: str) -> Any:
    run = Trained(path)
    method = run.method if run.finished else run.recipe.method
    return method.text if isinstance(method, HasTextTower) else None
