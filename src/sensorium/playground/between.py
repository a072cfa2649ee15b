"""Between: the pictures between those of two seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sensorium.abilities import FromNoise
from sensorium.base.words import counted
from sensorium.playground.common import Played, as_image, chooser, found_pictures, told
from sensorium.playground.drawing import controls, seed_input, seed_of, settings
from sensorium.use.sampling import BETWEEN, drawn_between

TITLE = "Between"
ABILITY = FromNoise
MOST = 30
FIRST, LAST = "First seed", "Last seed"


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown("Go from the picture of one seed to that of another: the noise of each is turned a little more.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            with gr.Row():
                seeds = [seed_input(0, FIRST), seed_input(1, LAST)]
            n = gr.Slider(1, MOST, BETWEEN, step=1, label="Pictures between")
            how = controls(runs, which)
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=360):
            said, drawn = found_pictures("Drawn")

    def shown(index: int, first: int | None, last: int | None, n: int, *how: Any) -> list[Any]:
        played, ends = runs[index], (seed_of(first, FIRST), seed_of(last, LAST))
        with played.lock:
            found = drawn_between(played.run, ends, int(n), **settings(played, *how))
        pictures = [as_image(one.numpy(), 128) for one in played.method.to_pixels(found.cpu())]
        words = f"**From seed {ends[0]} to seed {ends[1]}**, with {counted(int(n), 'picture')} between"
        return [words, pictures]

    which.input(told(lambda _: ["**Drawn**", None]), [which], [said, drawn], show_progress="hidden")
    button.click(told(shown), [which, *seeds, n, *how], [said, drawn], show_progress_on=drawn)
