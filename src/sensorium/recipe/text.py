"""Shared by recipes of language models: views, and settings that depend on the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.rows import reads
from sensorium.data.text.prepare import TextSituation
from sensorium.method import Method
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw
from sensorium.recipe.recipe import Recipe, Settings, machine_of


def packed(boundary: int) -> Views:
    """Rows of tokens [B, L], documents ended by ``boundary`` -> ``tokens`` [B, L] and, if a row holds more than one
    document, the ``documents`` of the tokens [B, L]: without them no mask is needed."""

    @reads("tokens")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        tokens = fields["tokens"].to(torch.int64)
        ends = tokens == boundary
        return {"tokens": tokens} | ({"documents": ends.cumsum(1)} if bool(ends[:, 1:].any()) else {})

    return views


def note_text(on: TextSituation, vocab: int | None, length: int | None, s: Settings) -> tuple[bool, str]:
    """Note what the text decides; whether the machine is small, and its name as a reason."""
    small, why = machine_of(on)
    s.pick("vocab", vocab, on.vocab, "bytes and a boundary")
    s.pick("length", length, on.length, why)
    return small, why


def text_recipe(
    name: str, method: Method, on: TextSituation, s: Settings, batch: int, lr: float, weight_decay: float, warmup: float
) -> Recipe:
    s.note(weight_decay=weight_decay, warmup=warmup)
    optimizer = adamw(lr, weight_decay, (0.9, 0.99))
    return Recipe(name, method, packed(on.vocab - 1), optimizer, lambda f: warmup_cosine(f, warmup, 0.1), batch, s)
