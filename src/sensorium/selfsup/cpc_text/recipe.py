"""CPC of text: how to train it, and its view of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.rows import reads
from sensorium.data.text.prepare import TextSituation
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.ahead import FEWEST, pick_steps
from sensorium.recipe.optim import adamw, pick_lr
from sensorium.recipe.ranges import Times
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.recipe.text import note_text
from sensorium.selfsup.cpc_text.method import TextCPC
from sensorium.selfsup.predictive import moments

RANGES = {"lr": Times(1 / 4, 4), "batch_size": Times(1 / 4, 4)}


def cpc_text(
    on: TextSituation,
    *,
    length: int | None = None,
    halvings: int | None = None,
    steps: int | None = None,
    width: int | None = None,
    state: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    vocab: int | None = None,
    depth: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
) -> Recipe:
    """CPC (van den Oord et al., 2018) of text: predicts what comes next, among all places of all rows.

    Example: sensorium train cpc_text --data book.txt --budget 3m

    Args:
        vocab: size of a byte-pair vocabulary learned from the text; bytes by default.
        length: tokens per row.
        halvings: layers of the encoder that halve the number of moments; two make a moment of ten tokens, one every four.
        steps: how many moments ahead is predicted, at most.
        width: channels of the embedding and the encoder.
        state: channels of the recurrent network, whose last state is the feature.
        depth: layers of the encoder.
        batch_size: rows per step; the moments of all are the candidates.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = note_text(on, vocab, length, s)
    most = max((n for n in range(3) if moments(on.length, n) >= FEWEST), default=0)
    halved: int = s.pick("halvings", halvings, most, f"{on.length} tokens leave {FEWEST} moments; at most 2")
    layers: int = s.pick("depth", depth, max(3 if small else 5, halved), f"{why}; the paper's is 5")
    channels: int = s.pick("width", width, 128 if small else 512, why)
    recurrent: int = s.pick("state", state, 256 if small else 2400, f"{why}; the paper's is 2,400")
    batch: int = s.pick("batch_size", batch_size, 32 if small else 128, why)
    rate = pick_lr(lr, 2e-3, batch, s)
    s.note(weight_decay=weight_decay, warmup=warmup)
    with refused_by("cpc_text"):
        ahead = pick_steps(steps, moments(on.length, halved), s)
        method = TextCPC(
            on.vocab, on.length, width=channels, state=recurrent, depth=layers, halvings=halved, steps=ahead
        )  # fmt: skip
    optimizer = adamw(rate, weight_decay)
    return Recipe("cpc_text", method, rows_of(on.length), optimizer, lambda f: warmup_cosine(f, warmup), batch, s)


def rows_of(length: int) -> Views:
    """``{"tokens"}``: the first ``length`` tokens of each row."""

    @reads("tokens")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"tokens": fields["tokens"][:, :length].to(torch.int64)}

    return views
