"""Pixels for the report: picture files and sprite sheets, as data URIs.

Thumbnails of one kind share one JPEG sheet, written once into the page's style; an element shows its own cell by its
column and row (``--x``, ``--y``). A file is only inlined when it lies inside the report's folder and decodes as an image.
"""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.report.html import Html, el

MAX_FILE = 200_000  # maximum bytes of a picture file that is inlined unchanged
RECODED = ((1200, 88), (1000, 75), (700, 60), (500, 50))  # width and JPEG quality, tried in order until it fits
SAFE_TYPES = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def inside(folder: Path, name: str) -> Path | None:
    """``folder/name``, or None if that is outside the folder."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None


def inline_file(folder: Path, name: str) -> tuple[str, int, int] | None:
    """Data URI, width and height of a picture file; large ones are re-encoded. None if it is missing or not an
    image."""
    path = inside(folder, name)
    if path is None or not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            kind, (width, height) = SAFE_TYPES.get(image.format or ""), image.size
            if kind and path.stat().st_size <= MAX_FILE:
                image.load()
                return data_uri(path.read_bytes(), kind), width, height
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    content = b""
    for side, quality in RECODED:
        small.thumbnail((side, 2 * side))
        content = _jpeg(small, quality)
        if len(content) <= MAX_FILE:
            break
    return data_uri(content, "jpeg"), small.width, small.height


class Sheet:
    """A sprite sheet, filled as thumbnails are requested.

    ``pixels`` maps a split's name to an object with ``.images`` uint8 [N, 3, S, S] and optionally ``.labels`` and
    ``.classes``; ``size``: side of a cell in pixels; ``limit``: maximum number of cells.
    """

    def __init__(self, name: str, pixels: dict[str, Any], *, size: int, limit: int) -> None:
        self.name, self.pixels, self.size, self.limit = name, pixels, size, limit
        self.cells: dict[tuple[str, int], int] = {}

    def thumbnail(self, split: str, index: int, **attributes: Any) -> Html | None:
        """An element that shows one image; None if there is no such image, or the sheet is full."""
        source = self.pixels.get(split)
        key = (split, int(index))
        if source is None or not 0 <= key[1] < len(source.images):
            return None
        if key not in self.cells:
            if len(self.cells) >= self.limit:
                return None
            self.cells[key] = len(self.cells)
        y, x = divmod(self.cells[key], self.columns)
        style = f"--x:{x};--y:{y};" + attributes.pop("style", "")
        return el("i", cls=f"{attributes.pop('cls', '')} s-{self.name}".strip(), style=style, **attributes)

    @property
    def columns(self) -> int:
        return max(2, math.isqrt(self.limit))

    def css(self) -> str:
        """The CSS rule with the sheet; empty if no thumbnail was requested."""
        if not self.cells:
            return ""
        rows = max(2, math.ceil(len(self.cells) / self.columns))
        sheet = Image.new("RGB", (self.columns * self.size, rows * self.size))
        for (split, index), cell in self.cells.items():
            pixels = np.ascontiguousarray(np.moveaxis(np.asarray(self.pixels[split].images[index], np.uint8), 0, -1))
            image = Image.fromarray(pixels)
            if image.size != (self.size, self.size):
                image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
            y, x = divmod(cell, self.columns)
            sheet.paste(image, (x * self.size, y * self.size))
        place = f"calc(var(--x)*{100 / (self.columns - 1):.6f}%) calc(var(--y)*{100 / (rows - 1):.6f}%)"
        uri = data_uri(_jpeg(sheet, 82), "jpeg")
        return f".s-{self.name}{{background:url({uri}) {place}/{100 * self.columns}% {100 * rows}%}}"


def splits(pixels: Any) -> dict[str, Any]:
    """``pixels`` as {"train": ..., "test": ...}; a single object is the test set."""
    if pixels is None:
        return {}
    return (
        {name: part for name, part in pixels.items() if part is not None}
        if isinstance(pixels, dict)
        else {"test": pixels}
    )


def cell_size(pixels: dict[str, Any], most: int) -> int:
    """A cell's side: the images' own if that is small enough."""
    return min([most, *(int(part.images.shape[-1]) for part in pixels.values())])
