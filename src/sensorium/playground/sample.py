"""Sample: new pictures, and their trajectories from noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sensorium.abilities import ClassConditional, Generator, IterativeGenerator
from sensorium.pictures.images import enlarged
from sensorium.playground.common import Played, as_image, chooser, found_pictures, told
from sensorium.use import draw, ways

TITLE = "Sample"
ABILITY = Generator
ANY = "any class"
MOST = 64
MOST_STEPS = 100
SHOWN_WAYS = 4


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown(
        "Generate new pictures: the same seed gives the same ones; higher guidance follows the class more closely."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            n = gr.Slider(1, MOST, 16, step=1, label="Pictures")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
            first = _controls(runs[0])
            steps = gr.Slider(
                1, MOST_STEPS, first["steps"], step=1, label="Steps from noise to picture", visible=first["way"]
            )
            label = gr.Dropdown(
                first["classes"] or [ANY], value=ANY, label="Class", filterable=False, visible=bool(first["classes"])
            )
            guidance = gr.Slider(0, 8, 1, step=0.5, label="Guidance scale (1: none)", visible=bool(first["classes"]))
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=360):
            _, drawn = found_pictures("Drawn")
            title = gr.Markdown("**Trajectories**, from noise on the left", visible=first["way"])
            way = gr.Image(
                show_label=False, visible=first["way"], format="png", buttons=["download", "fullscreen"],
                interactive=False, elem_classes="crisp",
            )  # fmt: skip

    def changed(index: int) -> list[Any]:
        now = _controls(runs[index])
        labelled = bool(now["classes"])
        return [
            gr.update(value=now["steps"], visible=now["way"]),
            gr.update(choices=now["classes"] or [ANY], value=ANY, visible=labelled),
            gr.update(value=1, visible=labelled),
            None,
            gr.update(visible=now["way"]),
            gr.update(value=None, visible=now["way"]),
        ]

    def shown(index: int, n: int, seed: int, steps: int, label: str, guidance: float) -> list[Any]:
        played = runs[index]
        method = played.method
        trace = isinstance(method, IterativeGenerator)
        chosen = None if label == ANY else label
        with played.lock:
            found = draw(
                played.run, int(n), steps=int(steps) if trace else None, label=chosen, seed=int(seed or 0), trace=trace,
                guidance=guidance if chosen is not None else 1.0,
            )  # fmt: skip
        pictures = [as_image(one.numpy(), 128) for one in method.to_pixels(found[-1] if trace else found).cpu()]
        return [pictures, enlarged(ways(method, found[:, :SHOWN_WAYS]), 256, 12) if trace else None]

    which.input(told(changed), [which], [steps, label, guidance, drawn, title, way], show_progress="hidden")
    button.click(told(shown), [which, n, seed, steps, label, guidance], [drawn, way])


def _controls(run: Played) -> dict[str, Any]:
    """The options of a run: whether it samples in steps, the default number of steps, its classes."""
    method = run.method
    way = isinstance(method, IterativeGenerator)
    labelled = isinstance(method, ClassConditional) and method.classes
    classes = [ANY, *run.run.situation.classes] if labelled else []
    return {"way": way, "steps": method.usual_steps if way else 1, "classes": classes}
