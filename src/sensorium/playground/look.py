"""Look: a run's reconstruction, attention or prediction of a picture, and the most similar pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Classifier, Encoder
from sensorium.base.precision import device_name
from sensorium.errors import SensoriumError
from sensorium.judge.encode import encode
from sensorium.pictures.images import enlarged, looks
from sensorium.playground.common import (
    Played,
    Upload,
    as_image,
    center,
    chooser,
    examples,
    found_pictures,
    picture_input,
    public,
    told,
)
from sensorium.use import class_of, most_similar

TITLE = "Look"
ABILITY = Encoder
SEARCHED = 10_000  # pictures: encoding them takes a minute or so on a small machine, once
FOUND = 8
WAYS = 2
SIMILAR = "Most similar training pictures"


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown(
        "Give a picture to see the network's reconstruction, attention or prediction, and the most similar training pictures."
    )
    banks: dict[int, tuple[Any, Tensor]] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            picture = picture_input()
            examples(runs, which, picture)
        with gr.Column(scale=3, min_width=360):
            label = gr.Label(label="Class", num_top_classes=5, visible=False)
            ways = [part for _ in range(WAYS) for part in way()]
            similar = found_pictures(SIMILAR, visible=False)

    def shown(index: int, upload: Upload | None, progress: gr.Progress = gr.Progress()) -> list[Any]:
        hidden = gr.update(value=None, visible=False)
        if upload is None:
            return [hidden, *[hidden] * 2 * WAYS, "Nothing to see yet.", gr.update(value=None, visible=False)]
        played = runs[index]
        query = center(upload, played.run.situation)
        with played.lock:
            said = classes(played, query)
            seen = []
            for look in looks(played.run, torch.from_numpy(query)[None])[:WAYS]:
                seen.append(gr.update(value=f"**{look.title}.** {look.caption}", visible=True))
                seen.append(gr.update(value=enlarged(look.panels[0], 256, 12), visible=True))
            alike, words = [], f"**{SIMILAR}**"
            try:
                if index not in banks:
                    banks[index] = bank(played, progress)
                pixels, features = banks[index]
                nearest = most_similar(played.method, pixels, query, min(FOUND, len(pixels)), features)
                alike = [(as_image(np.array(pixels.images[one.index]), 128), caption(pixels, one)) for one in nearest]
            except SensoriumError as error:  # the data no longer exist: show the rest
                words += f": {escape(public(error))}"
        return [
            gr.update(value=said, visible=True) if said else hidden,
            *seen,
            *[hidden] * (2 * WAYS - len(seen)),
            words,
            gr.update(value=alike, visible=bool(alike)),
        ]

    gr.on(
        [picture.change, which.input],
        told(shown),
        [which, picture],
        [label, *ways, *similar],
        trigger_mode="always_last",
    )


def way() -> tuple[gr.Markdown, gr.Image]:
    """Where one way of looking at the picture will stand: what it is called, and what is seen."""
    title = gr.Markdown(visible=False)
    seen = gr.Image(
        show_label=False, visible=False, format="png", buttons=["download"], height=230, elem_classes="crisp"
    )
    return title, seen


def bank(played: Played, progress: Any) -> tuple[Any, Tensor]:
    """The training pictures, at most ``SEARCHED`` of them, and their features [N, D]."""
    pixels = played.pictures
    if len(pixels) > SEARCHED:
        pixels = pixels.subset(np.linspace(0, len(pixels) - 1, SEARCHED).astype(int))

    def advance(done: int, total: int) -> None:
        progress((done, total), desc="encoding the training pictures, once")

    return pixels, encode(played.method, pixels, device=device_name(), on_progress=advance)


def classes(played: Played, query: np.ndarray) -> dict[str, float]:
    """Class names with their probabilities, of uint8 [3, S, S]; empty if the method isn't a classifier."""
    names = played.run.situation.classes
    if not names or not isinstance(played.method, Classifier):
        return {}
    with torch.no_grad():
        images = played.run.prepare_images(torch.from_numpy(query)[None])
        chances = played.method.logits(images).float().softmax(1)[0].tolist()
    return dict(zip(names, chances, strict=True))


def caption(pixels: Any, one: Any) -> str:
    """The caption of a picture that was found."""
    words = [class_of(pixels, one.index), f"{one.similarity:.2f}", "exact duplicate" if one.same else ""]
    return " · ".join(word for word in words if word)
