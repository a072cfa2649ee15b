"""Sample: new pictures, and the way of the first from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import torch
from torch import Tensor

from sensorium.abilities import Generator, IterativeGenerator
from sensorium.playground.common import Played, as_image, chooser, found_pictures, told
from sensorium.playground.drawing import controls, seed_input, seed_of, settings
from sensorium.use.sampling import draw

TITLE = "Sample"
ABILITY = Generator
MOST = 64
STATIONS = 8
WAY = "The first picture, from noise to the end"


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown(
        "Generate new pictures: the same seed gives the same ones; higher guidance follows the class more closely."
    )
    iterates = isinstance(runs[0].method, IterativeGenerator)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            n = gr.Slider(1, MOST, 16, step=1, label="Pictures")
            seed = seed_input()
            how = controls(runs, which)
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=360):
            _, drawn = found_pictures("Drawn")
            with gr.Column(visible=iterates) as steps:
                _, way = found_pictures(WAY, columns=STATIONS)

    def changed(index: int) -> list[Any]:
        iterates = isinstance(runs[index].method, IterativeGenerator)
        return [None, gr.update(visible=iterates), None]

    def shown(index: int, n: int, seed: int | None, *how: Any) -> list[Any]:
        played, begin = runs[index], seed_of(seed)
        method = played.method
        trace = isinstance(method, IterativeGenerator)
        with played.lock:
            found = draw(played.run, int(n), seed=begin, trace=trace, **settings(played, *how))
        pictures = [as_image(one.numpy(), 128) for one in method.to_pixels(found[-1] if trace else found).cpu()]
        return [pictures, stations(method, found[:, 0]) if trace else None]

    which.input(told(changed), [which], [drawn, steps, way], show_progress="hidden")
    button.click(told(shown), [which, n, seed, *how], [drawn, way])


def stations(method: Generator, path: Tensor) -> list[tuple[Any, str]]:
    """The trajectory of a sample [S + 1, *shape] as at most ``STATIONS`` pictures with their steps."""
    at = torch.linspace(0, len(path) - 1, min(STATIONS, len(path))).round().long()
    shown = [as_image(one.numpy(), 128) for one in method.to_pixels(path[at]).cpu()]
    return [(one, f"step {k}" if k else "noise") for one, k in zip(shown, at.tolist(), strict=True)]
