"""Search results: images below their query text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 96
_EDGE, _WORDS = 4, 20
_RIGHT, _PAPER, _INK = (22, 150, 70), (255, 255, 255), (25, 25, 25)
Row = tuple[str, np.ndarray, Sequence[bool]]


def shelf(rows: Sequence[Row], side: int = SIDE) -> Image.Image:
    """One row per query: its text, and below it images uint8 [K, 3, S, S]; marked ones are framed in green."""
    columns = max(len(pictures) for _, pictures, _ in rows)
    cell, high = side + 2 * _EDGE, side + 2 * _EDGE + _WORDS
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (max(columns, 3) * cell, len(rows) * high), _PAPER)
    drawing = ImageDraw.Draw(sheet)
    for row, (words, pictures, marks) in enumerate(rows):
        drawing.text((_EDGE, row * high + 3), _fitted(words, drawing, font, sheet.width - 2 * _EDGE), _INK, font)
        for column, (picture, marked) in enumerate(zip(pictures, marks, strict=True)):
            left, top = column * cell, row * high + _WORDS
            if marked:
                drawing.rectangle((left, top, left + cell - 1, top + cell - 1), _RIGHT)
            smooth = Image.Resampling.NEAREST if picture.shape[-1] < side // 2 else Image.Resampling.BILINEAR
            image = Image.fromarray(picture.transpose(1, 2, 0)).resize((side, side), smooth)
            sheet.paste(image, (left + _EDGE, top + _EDGE))
    return sheet


def _fitted(
    words: str, drawing: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int
) -> str:
    """The text cut to ``wide`` pixels, on one line, with characters that the font has."""
    words = " ".join(words.split())
    if not isinstance(font, ImageFont.FreeTypeFont):
        words = words.encode("latin-1", "replace").decode("latin-1")
    if drawing.textlength(words, font) <= wide:
        return words
    words = words[:400]
    while words and drawing.textlength(words + "...", font) > wide:
        words = words[:-1]
    return words + "..."
