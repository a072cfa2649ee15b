"""Shared by recipes of streams: what the data were prepared with, and how what learns without labels is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from sensorium.base.draw import Views
from sensorium.data.rows import Rows
from sensorium.data.streams.open import Windows
from sensorium.data.streams.prepare import StreamSituation
from sensorium.method import Method
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw
from sensorium.recipe.recipe import Recipe, Settings


def note_data(given: Mapping[str, int | None], on: StreamSituation, s: Settings) -> None:
    """What the data were prepared with; the same flags shaped them, so another value is a mistake of the program."""
    for name, one in given.items():
        value: int = getattr(on, name)
        if one is not None and one != value:
            raise ValueError(f"{name} {one}, but the data were prepared with {value}")
        s.pick(name, one, value, "the data")


def unlabeled_recipe(
    name: str, method: Method, views: Views, s: Settings, batch: int, lr: float, weight_decay: float, warmup: float
) -> Recipe:
    """AdamW, with a cosine after the warm-up; windows end at every frame, labeled or not."""
    s.note(weight_decay=weight_decay, warmup=warmup)
    optimizer = adamw(lr, weight_decay)
    return Recipe(name, method, views, optimizer, lambda f: warmup_cosine(f, warmup), batch, s, derive=_everywhere)


def _everywhere(rows: Rows, cache: Path, progress: bool) -> Rows:
    return cast(Windows, rows).everywhere()
