"""What the tabs share that draw pictures: controls of which a run has some, and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from sensorium.abilities import ClassConditional, IterativeGenerator
from sensorium.errors import SensoriumError
from sensorium.playground.common import Played, told

ANY = "any class"
MOST_SEED, MOST_STEPS = 2**31, 100


def seed_input(value: int = 0, label: str = "Seed") -> gr.Number:
    """An input for a seed; :func:`seed_of` takes what it gives."""
    return gr.Number(value, label=label, precision=0, minimum=0, maximum=MOST_SEED, min_width=100)


def seed_of(value: int | None, label: str = "Seed") -> int:
    """The seed; SensoriumError if the input is empty, as it is where no number was typed."""
    if value is None:
        raise SensoriumError(f"{label}: give a whole number from 0 to {MOST_SEED}.")
    return int(value)


def controls(runs: Sequence[Played], which: gr.Dropdown) -> list[Any]:
    """Inputs for steps, class and guidance, shown as far as the chosen run has them. :func:`settings` takes what they give."""
    now = _offered(runs[0])
    steps = gr.Slider(1, MOST_STEPS, now["steps"], step=1, label="Steps from noise to picture", visible=now["iterates"])
    label = gr.Dropdown(now["classes"], value=ANY, label="Class", filterable=False, visible=len(now["classes"]) > 1)
    guidance = gr.Slider(0, 8, 1, step=0.5, label="Guidance scale (1: none)", visible=now["guided"])

    def changed(index: int) -> list[Any]:
        now = _offered(runs[index])
        return [
            gr.update(value=now["steps"], visible=now["iterates"]),
            gr.update(choices=now["classes"], value=ANY, visible=len(now["classes"]) > 1),
            gr.update(value=1, visible=now["guided"]),
        ]

    which.input(told(changed), [which], [steps, label, guidance], show_progress="hidden")
    return [steps, label, guidance]


def settings(run: Played, steps: int, label: str | None, guidance: float) -> dict[str, Any]:
    """What the controls say, as :func:`sensorium.use.sampling.draw` takes it: what the run has not is left out."""
    now, chosen = _offered(run), None if label == ANY else label
    return {
        "steps": int(steps) if now["iterates"] else None,
        "label": chosen,
        "guidance": guidance if now["guided"] else 1.0,
    }


def _offered(run: Played) -> dict[str, Any]:
    method = run.method
    iterates = isinstance(method, IterativeGenerator)
    labelled = isinstance(method, ClassConditional) and bool(method.classes)
    return {
        "iterates": iterates,
        "steps": min(method.usual_steps, MOST_STEPS) if iterates else 1,
        "classes": [ANY, *run.run.situation.classes] if labelled else [ANY],
        "guided": labelled and method.guided,
    }
