"""CPC of streams: how to train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sensorium.base.draw import Draw
from sensorium.data.rows import reads
from sensorium.data.streams.prepare import SIGNAL, StreamSituation
from sensorium.recipe.ahead import FEWEST, pick_steps
from sensorium.recipe.optim import pick_lr
from sensorium.recipe.ranges import Times
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by
from sensorium.recipe.streams import note_data, unlabeled_recipe
from sensorium.selfsup.cpc_streams.method import StreamCPC
from sensorium.selfsup.predictive import moments

RANGES = {"lr": Times(1 / 4, 4), "batch_size": Times(1 / 4, 4)}


def cpc_streams(
    on: StreamSituation,
    *,
    frame: int | None = None,
    length: int | None = None,
    halvings: int | None = None,
    steps: int | None = None,
    width: int | None = None,
    state: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    depth: int | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
) -> Recipe:
    """CPC (van den Oord et al., 2018) of signals and features: predicts the next moments, among those of all windows.

    Example: sensorium train cpc_streams --data recordings.npz --budget 3m

    Args:
        frame: samples of a signal per frame; by default a quarter of a second of a signal, else 1.
        length: frames of a window.
        halvings: layers of the encoder that halve the number of moments; by default none if a frame is many samples.
        steps: how many moments ahead is predicted, at most.
        width: channels of the encoder.
        state: channels of the recurrent network, whose last state is the feature.
        depth: layers of the encoder.
        batch_size: windows per step; the moments of all are the candidates.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = machine_of(on)
    note_data({"frame": frame, "length": length}, on, s)
    raw = on.frame == 1 and on.features <= SIGNAL
    most = max((n for n in range(6) if moments(on.length, n) >= FEWEST), default=0)
    said = f"{on.length} frames leave {FEWEST} moments" if raw else f"a frame has {on.features} values"
    halved: int = s.pick("halvings", halvings, most if raw else 0, said)
    layers: int = s.pick("depth", depth, max(3 if small else 5, halved), f"{why}; the paper's is 5")
    channels: int = s.pick("width", width, 128 if small else 512, f"{why}; the paper's is 512")
    recurrent: int = s.pick("state", state, 128 if small else 256, f"{why}; the paper's is 256")
    batch: int = s.pick("batch_size", batch_size, 32 if small else 256, f"{why}; the work grows with its square")
    rate = pick_lr(lr, 2e-3, batch, s)
    with refused_by("cpc_streams"):
        ahead = pick_steps(steps, moments(on.length, halved), s)
        method = StreamCPC(on.features, width=channels, state=recurrent, depth=layers, halvings=halved, steps=ahead)
    return unlabeled_recipe("cpc_streams", method, windows, s, batch, rate, weight_decay, warmup)


@reads("frames")
def windows(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
    """``{"frames"}``: windows as they are."""
    return {"frames": fields["frames"]}
