"""MAE of text: how to train it, and its view of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.rows import reads
from sensorium.data.text.prepare import TextSituation
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_lr
from sensorium.recipe.ranges import Times, Uniform
from sensorium.recipe.recipe import Recipe, Settings, pick_heads, refused_by
from sensorium.recipe.text import note_text
from sensorium.selfsup.mae_text.method import Positions, TextMAE

RANGES = {"lr": Times(1 / 4, 4), "batch_size": Times(1 / 4, 4), "mask_ratio": Uniform(0.1, 0.5)}


def mae_text(
    on: TextSituation,
    *,
    length: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    mask_ratio: float = 0.15,
    batch_size: int | None = None,
    lr: float | None = None,
    vocab: int | None = None,
    positions: Positions = "rotary",
    heads: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
) -> Recipe:
    """MAE (He et al., 2021) of text: mask some of a row's tokens and predict them from the others.

    Example: sensorium train mae_text --data book.txt --budget 3m

    Args:
        vocab: size of a byte-pair vocabulary learned from the text; bytes by default.
        length: tokens per row.
        width: channels of a token embedding.
        depth: layers of the encoder.
        heads: of attention.
        positions: rotary ones are learned faster than a table of sinusoids.
        mask_ratio: fraction of the tokens that is masked.
        decoder_width: channels of the decoder.
        decoder_depth: layers of the decoder.
        batch_size: rows per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = note_text(on, vocab, length, s)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    layers: int = s.pick("depth", depth, 4 if small else 8, why)
    attentive = pick_heads(heads, channels, small, s)
    narrow: int = s.pick("decoder_width", decoder_width, channels, "the encoder's, as the decoder has to tell tokens")
    deep: int = s.pick("decoder_depth", decoder_depth, 1 if small else 4, why)
    batch: int = s.pick("batch_size", batch_size, 8 if small else 256, f"{why}; few rows, so that there are many steps")
    rate = pick_lr(lr, 1.2e-2 if small else 1.5e-3, batch, s)
    s.note(mask_ratio=mask_ratio, positions=positions, weight_decay=weight_decay, warmup=warmup)
    with refused_by("mae_text"):
        method = TextMAE(
            on.vocab, on.length, channels, layers, attentive, decoder_width=narrow, decoder_depth=deep,
            decoder_heads=max(1, narrow // 32), mask_ratio=mask_ratio, positions=positions,
        )  # fmt: skip
        if method.kept(on.length) == on.length:
            raise ValueError(f"mask_ratio {mask_ratio} masks none of {on.length} tokens: mask at least 1")
    optimizer = adamw(rate, weight_decay)
    return Recipe("mae_text", method, masked_rows(on.length), optimizer, lambda f: warmup_cosine(f, warmup), batch, s)


def masked_rows(length: int) -> Views:
    """``{"tokens", "noise"}``: the first ``length`` tokens of each row, and which are kept (the smallest noise)."""

    @reads("tokens")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {"tokens": fields["tokens"][:, :length].to(torch.int64), "noise": draw.rand(length)}

    return views
