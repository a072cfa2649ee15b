"""FLASH: how to train it."""

from __future__ import annotations

from typing import Literal

from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.language.flash.method import FlashLM
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.recipe.text import note_text, text_recipe


def flash(
    on: TextSituation,
    *,
    length: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    mixed: bool = True,
    chunk: int | None = None,
    expansion: float = 2.0,
    batch_size: int | None = None,
    lr: float | None = None,
    vocab: int | None = None,
    shared: int | None = None,
    norm: Literal["layer", "scale"] = "layer",
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """FLASH and FLASH-Quad (Hua et al., 2022): attention and feed-forward in one gated unit, without softmax.

    Example: sensorium train flash --data book.txt --budget 3m

    Args:
        vocab: size of a byte-pair vocabulary learned from the text; bytes by default.
        length: tokens per row, the maximum context in training.
        width: channels of a token embedding.
        depth: units, about two for each layer of a transformer.
        mixed: attend within chunks, and by linear attention to earlier ones, at a cost linear in the length; without
            it, attend to all earlier tokens.
        chunk: tokens of a chunk, if mixed.
        expansion: channels of the values, as a multiple of the width.
        shared: channels of queries and keys.
        norm: kind of normalization.
        batch_size: rows per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = note_text(on, vocab, length, s)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    units: int = s.pick("depth", depth, 8 if small else 16, "two for each layer of a Llama")
    s.note(mixed=mixed)
    tokens = _together(chunk, on, mixed, s)
    s.note(expansion=expansion)
    keys: int = s.pick("shared", shared, 64 if small else 128, why)
    s.note(norm=norm)
    if min(channels, units, keys) < 1 or channels * expansion < 1:
        raise SensoriumError(
            f"flash: --width {channels}, --depth {units}, --expansion {expansion:g}, --shared {keys}: want one unit or more, "
            "and one channel or more of each."
        )
    with refused_by("flash"):
        method = FlashLM(on.vocab, channels, units, tokens, mixed=mixed, expansion=expansion, shared=keys, kind=norm)
    batch = s.pick("batch_size", batch_size, 16 if small else 64, why)
    rate = s.pick("lr", lr, 6e-3 if channels <= 256 else 1e-3, f"width {channels}")
    return text_recipe("flash", method, on, s, batch, rate, weight_decay, warmup)


def _together(chunk: int | None, on: TextSituation, mixed: bool, s: Settings) -> int:
    """How many tokens attend to each other: those of a chunk, or of the whole row."""
    if mixed:
        quarter = max(1, min(256, on.length // 4))
        return s.pick("chunk", chunk, quarter, "a quarter of a row, 256 (the paper's) at most")
    if chunk is not None:
        raise SensoriumError("flash: --chunk is for --mixed; FLASH-Quad attends to the whole row.")
    return on.length
