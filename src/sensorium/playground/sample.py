"""Sample: new pictures, and their trajectories from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sensorium.abilities import Generator, IterativeGenerator
from sensorium.pictures.images import enlarged
from sensorium.playground.common import Played, as_image, chooser, found_pictures, told
from sensorium.playground.drawing import controls, seed_input, seed_of, settings
from sensorium.use import draw, ways

TITLE = "Sample"
ABILITY = Generator
MOST = 64
SHOWN_WAYS = 4


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
            title = gr.Markdown("**The way from noise**, on the left, to the first pictures", visible=iterates)
            way = gr.Image(
                show_label=False, visible=iterates, format="png", buttons=["download", "fullscreen"],
                interactive=False, elem_classes="crisp",
            )  # fmt: skip

    def changed(index: int) -> list[Any]:
        iterates = isinstance(runs[index].method, IterativeGenerator)
        return [None, gr.update(visible=iterates), gr.update(value=None, visible=iterates)]

    def shown(index: int, n: int, seed: int | None, *how: Any) -> list[Any]:
        played, begin = runs[index], seed_of(seed)
        method = played.method
        trace = isinstance(method, IterativeGenerator)
        with played.lock:
            found = draw(played.run, int(n), seed=begin, trace=trace, **settings(played, *how))
        pictures = [as_image(one.numpy(), 128) for one in method.to_pixels(found[-1] if trace else found).cpu()]
        return [pictures, enlarged(ways(method, found[:, :SHOWN_WAYS]), 256, 12) if trace else None]

    which.input(told(changed), [which], [drawn, title, way], show_progress="hidden")
    button.click(told(shown), [which, n, seed, *how], [drawn, way])
