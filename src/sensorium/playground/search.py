"""Search: pictures by a text, or by a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from sensorium.abilities import ImageText
from sensorium.data.images.decode import BadImage
from sensorium.data.pairs.prepare import kept_tokens
from sensorium.errors import SensoriumError
from sensorium.playground.common import Played, Upload, center, chooser, examples, found_pictures, picture_input, told
from sensorium.use.search import Album, Looker, open_album

TITLE = "Search"
ABILITY = ImageText
FOUND = 12
SIDE = 160  # pixels of a found picture
LONGEST = 1000  # characters


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown("Describe a picture, or give one: the most similar pictures of the run's data come first.")
    albums: dict[int, Album] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            text = gr.Textbox(label="Description", max_length=LONGEST, submit_btn="Search", elem_classes="ask")
            picture = picture_input("Or a picture: drop, paste or choose one")
            examples(runs, which, picture)
        with gr.Column(scale=3, min_width=360):
            _, found = found_pictures("Found, best first")

    def album(index: int) -> Album:
        if index not in albums:
            looker = looker_of(runs[index])
            albums[index] = open_album(looker, runs[index].run.folder, None)
        return albums[index]

    def by_text(index: int, words: str) -> list[tuple[Image.Image, str]]:
        if not (words or "").strip():
            raise SensoriumError("give a query.")
        with runs[index].lock:
            pictures = album(index)
            return shown(pictures, pictures.looker.of_text(words[:LONGEST]))

    def by_picture(index: int, upload: Upload | None) -> Any:
        if upload is None:
            return gr.skip()
        query = center(upload, runs[index].run.situation)
        with runs[index].lock:
            pictures = album(index)
            return shown(pictures, pictures.looker.of_picture(query))

    text.submit(told(by_text), [which, text], [found])
    picture.change(told(by_picture), [which, picture], [found], trigger_mode="always_last")


def looker_of(played: Played) -> Looker:
    """A searcher from a loaded run."""
    run, on = played.run, played.run.situation
    tokens = kept_tokens(run.folder)
    statistics = (on.mean, on.std)
    return Looker(run.method, on.image_size, statistics, tokens, on.context, run.folder, run.cache, on.scale)


def shown(album: Album, vector: np.ndarray) -> list[tuple[Image.Image, str]]:
    """The pictures most similar to a vector [E], with captions; those whose files no longer exist are omitted."""
    found = []
    for hit in album.near(vector, FOUND):
        try:
            pixels = album.picture(hit, SIDE)
        except BadImage:
            continue
        found.append((Image.fromarray(pixels.transpose(1, 2, 0)), f"{hit.similarity:.2f} · {hit.caption or hit.name}"))
    return found
