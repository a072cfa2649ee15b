"""Complete: the rest of a picture of which a half is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import gradio as gr
import torch

from sensorium.abilities import Completer
from sensorium.errors import SensoriumError
from sensorium.playground.common import (
    Played,
    Upload,
    as_image,
    center,
    chooser,
    examples,
    found_pictures,
    picture_input,
    told,
)
from sensorium.playground.drawing import seed_input, seed_of
from sensorium.use.complete import Half, completed

TITLE = "Complete"
ABILITY = Completer
MOST, USUAL = 14, 6


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown("Give a picture, keep one half of it, and see what the run draws in place of the other.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            picture = picture_input()
            with gr.Row():
                half = gr.Dropdown(
                    list(get_args(Half)), value="top", label="Known half", filterable=False, min_width=100
                )
                seed = seed_input()
            n = gr.Slider(1, MOST, USUAL, step=1, label="Completions")
            button = gr.Button("Complete", variant="primary")
            examples(runs, which, picture)
        with gr.Column(scale=3, min_width=360):
            _, drawn = found_pictures("Completed")

    def shown(index: int, upload: Upload | None, half: Half | None, n: int, seed: int | None) -> list[Any]:
        played, begin = runs[index], seed_of(seed)
        if half is None:
            raise SensoriumError("choose which half is known.")
        given = torch.from_numpy(center(upload, played.run.situation))[None]
        with played.lock:
            found = completed(played.run, given, int(n), keep=half, seed=begin)
        titles = ["given", f"known: {half}", *(f"completion {k + 1}" for k in range(int(n)))]
        return [(as_image(one.numpy(), 128), title) for one, title in zip(found, titles, strict=True)]

    which.input(told(lambda _: None), [which], [drawn], show_progress="hidden")
    button.click(told(shown), [which, picture, half, n, seed], [drawn])
