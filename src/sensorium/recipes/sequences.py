"""Recipes of language models without softmax attention: gated attention units, and recurrent networks.

They learn from the same rows of text as :func:`sensorium.recipes.language.causal_lm`, with about as many weights, so that
`sensorium compare causal_lm flash recurrent_lm` asks which network reads best.
"""

from __future__ import annotations

from typing import Literal

from sensorium.errors import SensoriumError
from sensorium.language.flash import FlashLM
from sensorium.language.recurrent import Cell, RecurrentLM
from sensorium.method import Method
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.recipes.language import TextSituation, packed

# Channels of a state for each of the embedding's: two layers of any cell then have about as many weights as four of Llama.
STATE: dict[Cell, float] = {"lstm": 1.75, "gru": 2.0, "rnn": 3.75}


def flash(
    on: TextSituation,
    *,
    vocab: int | None = None,
    length: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    mixed: bool = True,
    chunk: int | None = None,
    expansion: float = 2.0,
    shared: int | None = None,
    norm: Literal["layer", "scale"] = "layer",
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """FLASH and FLASH-Quad (Hua et al., 2022): attention and feed-forward in one gated unit, without softmax.

    Example: sensorium train flash --data book.txt --budget 3m

    Args:
        vocab: tokens of a byte-pair encoding learnt from the text; bytes if left out.
        length: tokens a row, the longest memory that is trained.
        width: channels of a token.
        depth: units, about two for each layer of a transformer.
        mixed: attend within chunks and sum up those before, at a cost that grows with the length alone; without it, all
            tokens before.
        chunk: tokens that attend to each other, where mixed.
        expansion: channels of the values, as a multiple of the width.
        shared: channels of queries and keys.
        norm: what is normalised.
        batch_size: rows a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
    """
    s = Settings()
    small, why = _begun(on, vocab, length, s)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    units: int = s.pick("depth", depth, 8 if small else 16, "two for each layer of causal_lm")
    s.note(mixed=mixed)
    tokens = on.length
    if mixed:
        quarter = max(1, min(256, on.length // 4))
        tokens = s.pick("chunk", chunk, quarter, "a quarter of a row, 256 (the paper's) at most")
    elif chunk is not None:
        raise SensoriumError("flash: --chunk is for --mixed; FLASH-Quad attends to the whole row.")
    s.note(expansion=expansion)
    keys: int = s.pick("shared", shared, 64 if small else 128, why)
    s.note(norm=norm)
    if min(channels, units, keys) < 1 or channels * expansion < 1:
        raise SensoriumError(
            f"flash: --width {channels}, --depth {units}, --expansion {expansion:g}, --shared {keys}: want one unit or more, "
            "and one channel or more of each."
        )
    try:
        method = FlashLM(on.vocab, channels, units, tokens, mixed=mixed, expansion=expansion, shared=keys, kind=norm)
    except ValueError as error:
        raise SensoriumError(f"flash: {error}.") from None
    batch = s.pick("batch_size", batch_size, 16 if small else 64, why)
    rate = s.pick("lr", lr, 6e-3 if channels <= 256 else 1e-3, f"width {channels}")
    return _recipe("flash", method, on, s, batch, rate, weight_decay, warmup)


def recurrent_lm(
    on: TextSituation,
    *,
    vocab: int | None = None,
    length: int | None = None,
    cell: Cell = "lstm",
    width: int | None = None,
    hidden: int | None = None,
    depth: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
    clip: float = 1.0,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """A recurrent language model (LSTM, GRU or plain): a state of constant size is all that is kept of the text.

    Example: sensorium train recurrent_lm --data book.txt --budget 3m

    Args:
        vocab: tokens of a byte-pair encoding learnt from the text; bytes if left out.
        length: tokens a row, over which gradients flow back; each begins from a state of zeros.
        cell: how a token changes the state.
        width: channels of a token.
        hidden: channels of a layer's state.
        depth: layers.
        dropout: share of what enters and leaves a layer that is hidden while training.
        tied: predict with the weights of the embedding.
        clip: most norm of the gradients, 0 for any.
        batch_size: rows a step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: share of the budget over which the learning rate rises.
    """
    s = Settings()
    small, why = _begun(on, vocab, length, s)
    s.note(cell=cell)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    state = round(channels * STATE.get(cell, 1.0))
    kept: int = s.pick("hidden", hidden, state, f"as many weights as other cells, width {channels}")
    layers: int = s.pick("depth", depth, 2 if small else 3, why)
    s.note(dropout=dropout, tied=tied, clip=clip)
    if min(channels, kept, layers) < 1:
        raise SensoriumError(
            f"recurrent_lm: --width {channels}, --hidden {kept}, --depth {layers}: want one or more of each."
        )
    try:
        method = RecurrentLM(on.vocab, channels, layers, cell=cell, hidden=kept, dropout=dropout, tied=tied, clip=clip)
    except ValueError as error:
        raise SensoriumError(f"recurrent_lm: {error}.") from None
    batch = s.pick("batch_size", batch_size, 16 if small else 64, why)
    rate = s.pick("lr", lr, 3e-3 if channels <= 256 else 1e-3, f"width {channels}")
    return _recipe("recurrent_lm", method, on, s, batch, rate, weight_decay, warmup)


def _begun(on: TextSituation, vocab: int | None, length: int | None, s: Settings) -> tuple[bool, str]:
    """Note what the text decides; whether the machine is small, and its name as a reason."""
    small = on.device == "cpu"
    why = f"{on.cores}-core CPU" if small else on.device
    s.pick("vocab", vocab, on.vocab, "bytes and a boundary")
    s.pick("length", length, on.length, why)
    return small, why


def _recipe(
    name: str, method: Method, on: TextSituation, s: Settings, batch: int, lr: float, weight_decay: float, warmup: float
) -> Recipe:
    s.note(weight_decay=weight_decay, warmup=warmup)
    optimizer = adamw(lr, weight_decay, (0.9, 0.99))
    return Recipe(name, method, packed(on.vocab - 1), optimizer, lambda f: warmup_cosine(f, warmup, 0.1), batch, s)
