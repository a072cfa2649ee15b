"""Shared by the tabs: a run on the page, uploads, example pictures, and errors as one line."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from html import escape
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch
from PIL import Image

from sensorium.base.reading import printable
from sensorium.base.words import counted
from sensorium.data.boxes.cache import Boxed
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Situation
from sensorium.data.pairs.prepare import Captioned
from sensorium.errors import SensoriumError
from sensorium.pictures.images import enlarged
from sensorium.playground.reader import Readers
from sensorium.runs.run import Run
from sensorium.web.wire import public

EXAMPLES = 8
READERS = Readers()
HIGH = 320  # pixels of an upload on the page


class Played:
    """A run on the page. ``lock``: one visitor at a time uses stateful methods."""

    def __init__(self, run: Run) -> None:
        self.run, self.lock, self.name = run, RLock(), run.name
        self.method: Any = run.method
        steps = f", {counted(run.outcome.steps, 'step')}" if run.finished else ""
        where = printable(str(run.info.data.path)).rstrip("/").rpartition("/")[2]
        self.about = f"{run.name}: {Path(run.info.recipe).name} on {where}{steps}"

    @cached_property
    def ready(self) -> Any:
        """The data it was trained on; SensoriumError if they no longer exist."""
        with self.lock:
            return self.run.data()

    @cached_property
    def pictures(self) -> Pixels:
        """The pictures that it was trained on, each once."""
        train = self.ready.train
        return train.pixels if isinstance(train, Captioned) else train

    @cached_property
    def examples(self) -> list[np.ndarray]:
        """Example pictures, uint8 [3, H, W] each, from the test set if there is one; SensoriumError if the data no longer
        exist."""
        held = self.ready.train if self.ready.test is None else self.ready.test
        if isinstance(held, Boxed):  # original pictures, not padded to squares
            return [held.truth[i]["image"].numpy() for i in _spread(len(held.truth))]
        pixels = held.pixels if isinstance(held, Captioned) else held  # each picture of the pairs once
        return [np.array(pixels.images[i]) for i in _spread(len(pixels))]


def _spread(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(EXAMPLES, count)).astype(int).tolist()


class Upload(NamedTuple):
    """An uploaded file. ``name`` is its original name."""

    path: Path
    name: str


def told(function: Callable) -> Callable:
    """A handler whose errors are one line on the page; unexpected ones are also printed by the server."""

    def line(error: Exception) -> Exception:
        if isinstance(error, gr.Error):
            return error
        if not isinstance(error, SensoriumError):
            traceback.print_exception(error, file=sys.stderr)
            error = SensoriumError(f"this did not work ({type(error).__name__}); the terminal of the page says why.")
        return gr.Error(escape(public(error)), print_exception=False)

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def stream(*given: Any) -> Any:
            try:
                yield from function(*given)
            except Exception as error:
                raise line(error) from None

        return stream

    @wraps(function)
    def once(*given: Any) -> Any:
        try:
            return function(*given)
        except Exception as error:
            raise line(error) from None

    return once


def chooser(runs: Sequence[Played], label: str = "Run") -> gr.Dropdown:
    """A menu of runs; its value is an index."""
    return gr.Dropdown(
        [(run.about, i) for i, run in enumerate(runs)],
        value=0,
        label=label,
        filterable=False,
        interactive=len(runs) > 1,
    )


def picture_input(label: str = "Picture: drop, paste or choose one") -> gr.Image:
    """An input for a picture, which passes on the :class:`Upload` unread: decoding and error messages are ours."""
    image = gr.Image(
        label=label,
        sources=["upload", "clipboard"],
        type="filepath",
        height=HIGH,
        buttons=[],
        format="png",
        elem_classes="given",
    )
    image.preprocess = _upload  # type: ignore[method-assign]
    return image


def _upload(payload: Any) -> Upload | None:
    if payload is None:
        return None
    if not payload.path:
        raise gr.Error("This is not an uploaded file.", print_exception=False)
    return Upload(Path(payload.path), printable(payload.orig_name or Path(payload.path).name))


def decoded(upload: Upload | None, on: Situation) -> Image.Image:
    """The upload as an RGB picture as a run of this situation sees it; SensoriumError if it isn't an image."""
    return Image.fromarray(READERS.picture(*_given(upload), None, on.scale))


def center(upload: Upload | None, on: Situation) -> np.ndarray:
    """The center of the upload, uint8 [3, S, S] of a run's size and scale; SensoriumError if it isn't an image."""
    return READERS.picture(*_given(upload), on.image_size, on.scale)


def _given(upload: Upload | None) -> Upload:
    if upload is None:
        raise SensoriumError("give a picture first: drop it, paste it or choose one below.")
    return upload


def examples(runs: Sequence[Played], which: gr.Dropdown, picture: gr.Image) -> gr.Gallery:
    """Example pictures of the run's data; a click selects one."""

    def offered(index: int) -> list[Any]:
        try:
            shown = [as_image(one) for one in runs[index].examples]
        except SensoriumError as error:
            said = f"There are no examples to choose from: {escape(public(error))}"
            return [said, gr.update(value=None, visible=False)]
        place = "training data" if runs[index].ready.test is None else "test set"
        return [f"Or choose one from its {place}:", gr.update(value=shown, visible=True)]

    def taken(index: int, event: gr.SelectData) -> Image.Image:
        shown = runs[index].examples
        if type(event.index) is not int or not 0 <= event.index < len(shown):
            raise SensoriumError("choose one of the pictures shown.")
        return Image.fromarray(shown[event.index].transpose(1, 2, 0))

    words = gr.Markdown("Or choose one from its data:")
    gallery = gr.Gallery(
        show_label=False, columns=4, height="auto", format="png", allow_preview=False, object_fit="contain", buttons=[],
        interactive=False, elem_classes="examples",
    )  # fmt: skip
    # without triggers: on page load, and when another run is chosen
    gr.on(None, told(offered), [which], [words, gallery], show_progress="hidden", trigger_mode="always_last")
    gallery.select(told(taken), [which], [picture], show_progress="hidden")
    return gallery


def markup(name: str, **heights: Any) -> gr.Markdown:
    """Where HTML of our own is shown, without blank lines. gr.HTML would have the browser evaluate templates, which the
    page's security policy forbids."""
    return gr.Markdown(elem_classes=name, sanitize_html=False, latex_delimiters=[], container=False, **heights)


def found_pictures(title: str, *, visible: bool = True, columns: int = 4) -> tuple[gr.Markdown, gr.Gallery]:
    """A title, and a gallery for pictures that were found or generated, in ``columns`` (2, 3, 4 or 8); not ``visible`` before there are some."""
    words = gr.Markdown(f"**{title}**" if visible else "Nothing to see yet.")
    gallery = gr.Gallery(
        show_label=False, columns=columns, height="auto", format="png", object_fit="contain", buttons=["download"],
        interactive=False, elem_classes=["found", f"in-{columns}"], visible=visible,
    )  # fmt: skip
    return words, gallery


def as_image(pixels: np.ndarray, least: int = 96) -> Image.Image:
    """uint8 [3, H, W] -> a picture enlarged to a height of about ``least``."""
    return enlarged(torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255, least, 12)
