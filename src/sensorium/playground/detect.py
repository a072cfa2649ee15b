"""Detect: the objects of a picture, drawn as boxes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from sensorium.abilities import Detector
from sensorium.base.words import counted
from sensorium.pictures.boxes import class_name, enlarged, with_boxes
from sensorium.playground.common import Played, Upload, chooser, decoded, examples, markup, picture_input, told
from sensorium.use.detect import open_finder

TITLE = "Detect"
ABILITY = Detector
LONGER = 900  # longer side in pixels of the shown picture
LISTED = 100  # objects in the table


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown("Give a picture: detected objects are drawn into it; move the threshold to see more or fewer.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            picture = picture_input()
            threshold = gr.Slider(0.01, 1, 0.3, step=0.01, label="Minimum score")
            examples(runs, which, picture)
        with gr.Column(scale=3, min_width=360):
            said = gr.Markdown("Nothing to see yet.")
            drawn = gr.Image(
                show_label=False,
                format="png",
                buttons=["download", "fullscreen"],
                interactive=False,
                elem_classes="whole",
            )
            table = markup("objects", max_height=340)

    def shown(index: int, upload: Upload | None, threshold: float) -> list[Any]:
        if upload is None:
            return ["Nothing to see yet.", None, ""]
        played = runs[index]
        image = decoded(upload, played.run.situation)
        found, classes = seen(played, image, threshold)
        boxes, labels, scores = (found[name].tolist() for name in ("boxes", "labels", "scores"))
        large, there = enlarged(image, boxes, LONGER) if max(image.size) < LONGER else (image, boxes)
        words = f"{counted(len(boxes), 'object')} with a score of {threshold:.2f} or more."
        marked = with_boxes(large, there, labels, classes, scores)
        return [words, marked, listing(boxes, labels, scores, classes)]

    given = [which, picture, threshold]
    changes = [picture.change, which.input, threshold.change]
    gr.on(changes, told(shown), given, [said, drawn, table], trigger_mode="always_last", show_progress="minimal")


def seen(played: Played, image: Image.Image, threshold: float) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Detections of a run in a picture, in its pixels, and the names of the classes."""
    with played.lock:
        finder = open_finder(played.run)
        return finder.find(image, threshold), finder.classes


def listing(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float], classes: Sequence[str]
) -> str:
    """Detections as a table: names, scores, and edges in the picture's own pixels."""
    if not boxes:
        return ""
    rows = [
        [escape(class_name(classes, label)), f"{score:.3f}", *(f"{edge:.0f}" for edge in box)]
        for box, label, score in list(zip(boxes, labels, scores, strict=True))[:LISTED]
    ]
    head = "".join(f"<th>{name}</th>" for name in ("object", "score", "left", "top", "right", "bottom"))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
