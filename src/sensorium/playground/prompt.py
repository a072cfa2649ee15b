"""Prompt: pictures of what a text says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import gradio as gr

from sensorium.abilities import TextConditional
from sensorium.abilities.generators import Prompted
from sensorium.base.reading import printable
from sensorium.data.pairs.prepare import kept_tokens
from sensorium.errors import SensoriumError
from sensorium.playground.common import as_image, chooser, found_pictures, told
from sensorium.playground.drawing import MOST_STEPS, seed_input, seed_of
from sensorium.use.prompted import each_drawn, open_pipeline

TITLE = "Prompt"
ABILITY = TextConditional
LONGEST = 1000  # characters; the text tower tells how many tokens it takes
MOST = 4


class Pipeline:
    """A published pipeline on the page. ``lock``: one visitor at a time."""

    def __init__(self, folder: Path) -> None:
        self.lock, self.name = RLock(), printable(folder.resolve().name)
        self.method: Any = open_pipeline(folder)
        height, width = self.method.size
        self.about = f"{self.name}: diffusers pipeline, {width} x {height} pixels"


def fits(method: Any) -> bool:
    """Whether the tab can show a method."""
    return isinstance(method, Prompted | TextConditional)


def drawer(played: Any) -> Prompted:
    """What draws the prompts of a pipeline or a run."""
    method = played.method
    return method if isinstance(method, Prompted) else method.prompted(kept_tokens(played.run.folder))


def tab(runs: Sequence[Any]) -> None:
    """Draw the tab."""
    gr.Markdown("Say what to draw, and what not: a higher guidance scale follows the prompt more closely.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs, "Drawn by")
            prompt = gr.Textbox(label="Prompt", lines=2, max_length=LONGEST, placeholder="a red apple on a table")
            negative = gr.Textbox(label="Negative prompt: what not to draw", max_length=LONGEST)
            usual = drawer(runs[0])
            name, some = "Steps from noise to picture", usual.steps is not None
            steps = gr.Slider(1, MOST_STEPS, usual.steps or 1, step=1, label=name, visible=some)
            guidance = gr.Slider(1, 20, usual.guidance, step=0.5, label="Guidance scale (1: none)")
            with gr.Row():
                seed = seed_input()
                n = gr.Slider(1, MOST, 1, step=1, label="Pictures", min_width=160)
            with gr.Row():
                start = gr.Button("Draw", variant="primary", min_width=80)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=3, min_width=360):
            said, drawn = found_pictures("Drawn", columns=2)

    def changed(index: int) -> list[Any]:
        now = drawer(runs[index])
        return [None, gr.update(value=now.steps or 1, visible=now.steps is not None), now.guidance]

    def shown(
        index: int, prompt: str, negative: str, steps: int, guidance: float, seed: int | None, n: int,
        progress: gr.Progress = gr.Progress(),
    ) -> Iterator[list[Any]]:  # fmt: skip
        played, begin, pictures = runs[index], seed_of(seed), []
        how = {"negative": negative or "", "guidance": guidance, "seed": begin}
        how["steps"] = None if drawer(played).steps is None else int(steps)
        for one in draw(played, prompt, int(n), progress, **how):
            pictures.append((one, f"seed {begin + len(pictures)}"))
            yield [f"**Drawn**: {len(pictures)} of {int(n)}", list(pictures)]

    which.input(told(changed), [which], [drawn, steps, guidance], show_progress="hidden")
    asked = [which, prompt, negative, steps, guidance, seed, n]
    going = gr.on([start.click, prompt.submit], told(shown), asked, [said, drawn], show_progress_on=drawn)
    stop.click(None, cancels=[going])


def draw(played: Any, prompt: str, n: int, progress: Any, **how: Any) -> Iterator[Any]:
    """Pictures of a prompt as the page shows them, one after the other: the one place that knows what draws them."""
    if not (prompt or "").strip():
        raise SensoriumError("Prompt: say what to draw.")
    report = lambda done, total: progress((done, total), desc="drawing", unit="steps")  # noqa: E731
    pictures = each_drawn(drawer(played), prompt.strip(), n, on_step=report, **how)
    for _ in range(n):
        with played.lock:  # others may draw between two pictures
            one = next(pictures)
        yield as_image(one.numpy(), 128)
