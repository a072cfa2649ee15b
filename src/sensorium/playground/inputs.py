"""What visitors send, checked before anything reads it: by the limits of the component that it is meant for.

A visitor may send any JSON for any component, so that a slider's limits on the page say nothing. Of a file only its
path is taken, and only one in the page's own folder: any other path, existing or not, gets the same answer.
"""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import PurePath
from typing import Any

import gradio as gr
import gradio.blocks

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError
from sensorium.playground.folder import Folder

_FOLDER: ContextVar[str | None] = ContextVar("folder", default=None)  # of the page whose event is answered
_elsewhere = gradio.blocks.get_upload_folder  # pyright: ignore[reportPrivateImportUsage]
# An update makes a component anew, whose files would be where those of no page are, neither shown nor bounded.
gradio.blocks.get_upload_folder = lambda: _FOLDER.get() or _elsewhere()  # pyright: ignore[reportPrivateImportUsage]

NOT_UPLOADED = "this is not an uploaded file: upload it on this page first (uploads are kept for an hour)."


class CheckedBlocks(gr.Blocks):
    """The page, which checks the inputs of every event. ``folder``: where uploads are."""

    folder: Folder | None = None

    async def preprocess_data(self, block_fn: Any, inputs: Any, state: Any, explicit_call: bool = False) -> Any:
        """The inputs of an event as its function takes them. Raises gr.Error of one line for any that are wrong."""
        try:
            if not isinstance(inputs, list) or len(inputs) != len(block_fn.inputs):
                raise SensoriumError("this is not what the page sends; reload it.")
            known = [state[b._id] if state is not None and b._id in state else b for b in block_fn.inputs]
            checked = [clean(block, value, self.folder) for block, value in zip(known, inputs, strict=True)]
        except SensoriumError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return await super().preprocess_data(block_fn, checked, state, explicit_call)

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """What an event gives, with its files in the page's folder."""
        token = _FOLDER.set(None if self.folder is None else str(self.folder.path))
        try:
            return await super().postprocess_data(block_fn, predictions, state)
        finally:
            _FOLDER.reset(token)


def clean(block: Any, value: Any, folder: Folder | None) -> Any:
    """The value as the component can have it. Raises SensoriumError that names the component."""
    what = block.label or type(block).__name__
    if isinstance(block, (gr.Slider, gr.Number)):
        return _number(block, value, what)
    if isinstance(block, gr.Dropdown):
        offered = [choice for _, choice in block.choices]
        if value is None or (
            type(value) in (str, int) and any(value == one and type(value) is type(one) for one in offered)
        ):
            return value
        raise SensoriumError(f"{what}: not one of those to choose from.")
    if isinstance(block, gr.Textbox):
        if value is not None and not isinstance(value, str):
            raise SensoriumError(f"{what}: must be text.")
        if value is not None and block.max_length is not None and len(value) > block.max_length:
            raise SensoriumError(f"{what}: at most {block.max_length:,} characters.")
        return None if value is None else value.encode("utf-8", "replace").decode()  # lone surrogates are no text
    if isinstance(block, (gr.Image, gr.File)):
        return None if value is None else _file(value, folder)
    raise SensoriumError(f"{what}: takes nothing from the page.")


def _number(block: Any, value: Any, what: str) -> float | int | None:
    low: float | None = block.minimum
    high: float | None = block.maximum
    if value is None and isinstance(block, gr.Number):
        return None
    limits = " ".join(
        [*([f"from {low:g}"] if low is not None else []), *([f"to {high:g}"] if high is not None else [])]
    )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:  # NaN isn't
        raise SensoriumError(f"{what}: must be a number {limits}.".replace(" .", "."))
    if (low is not None and value < low) or (high is not None and value > high):
        raise SensoriumError(f"{what}: must be {limits}.")
    whole = (isinstance(block, gr.Slider) and float(block.step or 0.5).is_integer()) or block.precision == 0
    return round(value) if whole else value


def _file(value: Any, folder: Folder | None) -> dict[str, Any]:
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or (folder is not None and folder.holds(path) is None):
        raise SensoriumError(NOT_UPLOADED)
    name = value.get("orig_name")
    name = PurePath(name[:200].replace("\\", "/")).name if isinstance(name, str) else ""
    return {
        "path": path,
        "orig_name": printable(name) or PurePath(path).name,
        "meta": {"_type": "gradio.FileData"},
    }
