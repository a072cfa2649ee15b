"""OadTR: how to train it, and its view of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sensorium.base.draw import Draw, Views
from sensorium.data.rows import reads
from sensorium.data.streams.prepare import StreamSituation
from sensorium.errors import SensoriumError
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw
from sensorium.recipe.recipe import Recipe, Settings, machine_of, pick_heads, refused_by
from sensorium.recipe.streams import note_data
from sensorium.streaming.oadtr.method import OadTR


def oadtr(
    on: StreamSituation,
    *,
    frame: int | None = None,
    length: int | None = None,
    future: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    attention: Literal["full", "causal"] = "full",
    batch_size: int | None = None,
    lr: float | None = None,
    heads: int | None = None,
    decoder_depth: int | None = None,
    dropout: float | None = None,
    noise: float | None = None,
    future_weight: float = 0.5,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
) -> Recipe:
    """OadTR (Wang et al., 2021): online action detection from past frames, with anticipation of future ones.

    Example: sensorium train oadtr --data recordings.npz --budget 3m

    Args:
        frame: samples of a signal per frame; by default a quarter of a second of a signal, else 1.
        length: frames of the window.
        future: frames to anticipate.
        width: channels of a frame.
        depth: layers of the encoder.
        heads: of attention; the decoder has half as many.
        decoder_depth: layers of the decoder.
        dropout: dropout rate.
        noise: standard deviation of the noise added to training frames, relative to that of the frames.
        attention: full is the paper's; causal caches keys and values, so that a step is cheap.
        future_weight: weight of the anticipation loss.
        batch_size: windows per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    _need_labels(on)
    s = Settings()
    small, why = machine_of(on)
    note_data({"frame": frame, "length": length, "future": future}, on, s)
    channels: int = s.pick("width", width, 128 if small else 512, why)
    layers: int = s.pick("depth", depth, 2 if small else 3, why)
    attentive = pick_heads(heads, channels, small, s)
    deep: int = s.pick("decoder_depth", decoder_depth, 2 if small else 5, why)
    hidden, spread = _against_overfitting(dropout, noise, on, s)
    batch = s.pick("batch_size", batch_size, 32 if small else 128, why)
    rate = s.pick("lr", lr, 1e-3 if channels <= 256 else 3e-4, f"width {channels}")
    s.note(attention=attention, future_weight=future_weight, weight_decay=weight_decay, warmup=warmup)
    with refused_by("oadtr"):
        method = OadTR(
            on.features, len(on.classes), width=channels, length=on.length, depth=layers, heads=attentive,
            hidden=channels, future=on.future, decoder_depth=deep, decoder_heads=max(1, attentive // 2),
            decoder_hidden=channels, dropout=hidden, attention=attention, future_weight=future_weight,
        )  # fmt: skip
    optimizer = adamw(rate, weight_decay, (0.9, 0.99))
    return Recipe("oadtr", method, windowed(spread), optimizer, lambda f: warmup_cosine(f, warmup), batch, s)


def _need_labels(on: StreamSituation) -> None:
    if not on.classes:
        raise SensoriumError(
            "'oadtr' learns from labels, and no frame has a label: give them, or train a system that needs none."
        )


def _against_overfitting(
    dropout: float | None, noise: float | None, on: StreamSituation, s: Settings
) -> tuple[float, float]:
    """Dropout's rate, and the deviation of the noise on the frames."""
    few, why = on.windows < 200_000, f"{on.windows:,} windows, which overlap"
    return s.pick("dropout", dropout, 0.2 if few else 0.1, why), s.pick("noise", noise, 0.1 if few else 0.0, why)


def windowed(noise: float = 0.0) -> Views:
    """Windows of :class:`sensorium.data.streams.open.Windows`, with ``noise`` on the frames."""

    @reads("frames", "actions", "future", "missing")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        x = fields["frames"]
        return {**fields, "frames": x + noise * draw.randn(*x.shape[1:]) if noise else x}

    return views
