"""Recurrent language models: how to train them."""

from __future__ import annotations

from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.language.recurrent_lm.method import Cell, RecurrentLM
from sensorium.recipe.recipe import Recipe, Settings, refused_by
from sensorium.recipe.text import note_text, text_recipe

# State channels per embedding channel: two layers of any cell then have about as many weights as four of Llama.
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
    """A recurrent language model (LSTM, GRU or plain): the text is summarized in a state of constant size.

    Example: sensorium train recurrent_lm --data book.txt --budget 3m

    Args:
        vocab: size of a byte-pair vocabulary learned from the text; bytes by default.
        length: tokens per row, over which gradients are backpropagated; each row starts from a zero state.
        cell: kind of recurrent cell.
        width: channels of a token embedding.
        hidden: channels of a layer's state.
        depth: layers.
        dropout: dropout rate of a layer's inputs and outputs.
        tied: the output head shares the embedding's weights.
        clip: maximum norm of the gradients, 0 for none.
        batch_size: rows per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
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
    with refused_by("recurrent_lm"):
        method = RecurrentLM(on.vocab, channels, layers, cell=cell, hidden=kept, dropout=dropout, tied=tied, clip=clip)
    batch = s.pick("batch_size", batch_size, 16 if small else 64, why)
    rate = s.pick("lr", lr, 3e-3 if channels <= 256 else 1e-3, f"width {channels}")
    return text_recipe("recurrent_lm", method, on, s, batch, rate, weight_decay, warmup)
