"""Recurrent language models: how to train them."""

from __future__ import annotations

from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.language.recurrent_lm.method import Cell, RecurrentLM
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.recipe.text import note_text, text_recipe

# Channels of a state for each of the embedding's: two layers of any cell then have about as many weights as four of Llama.
STATE: dict[Cell, float] = {"lstm": 1.75, "gru": 2.0, "rnn": 3.75}


def recurrent_lm(
    on: TextSituation,
    *,
    length: int | None = None,
    cell: Cell = "lstm",
    width: int | None = None,
    depth: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
    batch_size: int | None = None,
    lr: float | None = None,
    vocab: int | None = None,
    hidden: int | None = None,
    clip: float = 1.0,
    weight_decay: float = 0.1,
    warmup: float = 0.05,
) -> Recipe:
    """A recurrent language model (LSTM, GRU or plain): a state of constant size is all that is kept of the text.

    Example: sensorium train recurrent_lm --data book.txt --budget 3m

    Args:
        vocab: tokens of a byte-pair encoding learned from the text; bytes if left out.
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
    small, why = note_text(on, vocab, length, s)
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
    return text_recipe("recurrent_lm", method, on, s, batch, rate, weight_decay, warmup)
