"""Watch: a stream plays, and the run predicts the action of each frame."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from sensorium.abilities import OnlineDetector
from sensorium.base.reading import printable
from sensorium.base.words import counted
from sensorium.data.streams.files import UNKNOWN
from sensorium.data.streams.open import AnyStream, Framed, Scaled, Stream
from sensorium.errors import SensoriumError
from sensorium.playground.common import READERS, Played, chooser, markup, public, told
from sensorium.playground.timeline import timeline
from sensorium.use.watch import channels, step_rate

TITLE = "Watch"
ABILITY = OnlineDetector
LISTED = 200  # recordings to choose from
LONGEST = 20_000  # maximum frames that are played
TICKS = 60  # updates of the plot


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown(
        "Play a recording: the run predicts the action of each frame from the frames so far, without future ones."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            names, said = listed(runs[0])
            recording = gr.Dropdown(names, label="Test recording", visible=bool(names))
            lost = gr.Markdown(said, visible=not names)
            file = gr.File(
                label="Or one of yours: .npz or .npy", file_types=[".npz", ".npy"], type="filepath", height=170
            )
            seconds = gr.Slider(0, 30, 8, step=1, label="Seconds to play it in")
            with gr.Row():
                start = gr.Button("Play", variant="primary", min_width=80)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=5, min_width=420):
            drawn = markup("timeline", min_height=340)

    def changed(index: int) -> list[Any]:
        names, said = listed(runs[index])
        first = names[0][1] if names else None
        shown = gr.update(choices=names, value=first, visible=bool(names))
        return [shown, gr.update(value=said, visible=not names), None, ""]

    def played(index: int, chosen: int | None, path: str | None, seconds: float) -> Iterator[str]:
        run = runs[index]
        stream = opened(run, Path(path)) if path else held_out(run, chosen)
        frames = stream.frames(0, LONGEST)
        truth = stream.labels_of(0, len(frames))
        with run.lock:
            chances = run.method.predict(torch.from_numpy(frames)).float().cpu().numpy()
        on = run.run.situation
        for stop in np.unique(np.linspace(1, len(frames), TICKS).astype(int)).tolist():
            begun = time.monotonic()
            yield timeline(
                chances[:stop], len(frames), on.classes, truth if (truth != UNKNOWN).any() else None, on.rate
            )
            time.sleep(max(0.0, seconds / TICKS - (time.monotonic() - begun)))

    which.input(told(changed), [which], [recording, lost, file, drawn], show_progress="hidden")
    going = start.click(  # another click is not lost: it plays when this is over
        told(played), [which, recording, file, seconds], [drawn], show_progress="minimal", trigger_mode="always_last"
    )
    stop.click(None, cancels=[going])


def listed(run: Played) -> tuple[list[tuple[str, int]], str]:
    """The names of held-out recordings with their indices, and why there are none: the data no longer exist."""
    try:
        streams = run.ready.test
    except SensoriumError as error:
        return [], f"There are no test recordings to choose from: {escape(public(error))}"
    names = [(f"{stream.name} ({counted(len(stream), 'frame')})", i) for i, stream in enumerate(streams[:LISTED])]
    return names, "" if names else "There are no test recordings to choose from."


def held_out(run: Played, chosen: int | None) -> AnyStream:
    """One of the recordings to choose from."""
    if chosen is None:
        raise SensoriumError("choose a recording first, or upload one.")
    streams = run.ready.test
    if not 0 <= chosen < min(len(streams), LISTED):
        raise SensoriumError("choose one of the recordings of this run.")
    return streams[chosen]


def opened(run: Played, path: Path) -> AnyStream:
    """An uploaded recording (the first of the file) in the frames and units of the training data."""
    on, name = run.run.situation, printable(path.name)
    values = READERS.recording(path, name, step_rate(on), LONGEST * on.frame)
    try:
        stream = Stream(name, values, np.full(len(values), UNKNOWN))
    except ValueError as error:
        raise SensoriumError(f"{name}: {error}.") from None
    if stream.width != channels(on):
        raise SensoriumError(
            f"{name}: {stream.width} values per step, but {run.run.name} was trained on {channels(on)}."
        )
    if len(stream) < on.frame:
        raise SensoriumError(f"{name}: {counted(len(stream), 'step')}, but a frame needs {on.frame}.")
    return Scaled(Framed(stream, on.frame) if on.frame > 1 else stream, np.array(on.mean), np.array(on.std))
