"""Images with boxes drawn into them, with names and scores, large enough to read."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LONGER = 480  # pixels of a panel's longer side
CROP, LEAST_CROP, AROUND = (
    192,
    32.0,
    1.8,
)  # pixels of a crop's side; least of the picture that it shows; its side over that of its boxes
GIVEN, FOUND = (255, 150, 30), (90, 200, 255)
_GAP, _WORDS = 6, 20
_PAPER, _INK = (255, 255, 255), (25, 25, 25)
Colour = tuple[int, int, int]
Edges = Sequence[Sequence[float]]


def colour_of(label: int) -> Colour:
    """A color for a class: consecutive labels are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + label * 0.381966) % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def with_boxes(
    image: Image.Image,
    boxes: Edges,
    labels: Sequence[int],
    classes: Sequence[str],
    scores: Sequence[float] | None = None,
    marked: Sequence[int] = (),
) -> Image.Image:
    """A copy of ``image`` (RGB) with boxes xyxy [N, 4], each in its class's color with name and score above it.

    marked: boxes that get a white frame around theirs.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    longer = max(image.size)
    line, font = max(1, round(longer / 320)), ImageFont.load_default(max(10, round(longer / 42)))
    # The highest score last, so that it is on top.
    order = range(len(boxes)) if scores is None else sorted(range(len(boxes)), key=lambda i: scores[i])
    for i in order:
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        colour = colour_of(int(labels[i]))
        if i in marked:
            pen.rectangle((x1 - 2 * line, y1 - 2 * line, x2 + 2 * line, y2 + 2 * line), outline=_PAPER, width=line)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
    for i in order:
        name = class_name(classes, int(labels[i]))
        words = name if scores is None else f"{name} {100 * float(scores[i]):.0f}"
        _tag(pen, words, (float(boxes[i][0]), float(boxes[i][1])), colour_of(int(labels[i])), font, drawn.size)
    return drawn


def crop_with(
    image: Image.Image, given: Sequence[float] | None, found: Sequence[float] | None, side: int = CROP
) -> Image.Image:
    """A square of ``side`` pixels around two boxes xyxy of an RGB image, or one: the given one orange, the found one blue,
    each on a dark line so that it is seen on any ground."""
    boxes = [list(map(float, box)) for box in (given, found) if box is not None]
    left, top = (min(box[k] for box in boxes) for k in (0, 1))
    right, bottom = (max(box[k] for box in boxes) for k in (2, 3))
    wide = min(max(AROUND * max(right - left, bottom - top), LEAST_CROP), float(max(image.size)))
    x, y = (left + right - wide) / 2, (top + bottom - wide) / 2
    x, y = (min(max(at, 0), max(0, size - wide)) for at, size in zip((x, y), image.size, strict=True))
    scale = side / wide
    crop = image.transform((side, side), Image.Transform.EXTENT, (x, y, x + wide, y + wide), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(crop)
    for box, colour in ((given, GIVEN), (found, FOUND)):
        if box is not None:
            edges = [(float(edge) - at) * scale for edge, at in zip(box, (x, y, x, y), strict=True)]
            low, high = [max(0.0, edge) for edge in edges[:2]], [min(side - 1.0, edge) for edge in edges[2:]]
            high = [max(pair) for pair in zip(low, high, strict=True)]
            pen.rectangle((*(edge - 1 for edge in low), *(edge + 1 for edge in high)), outline=_INK, width=4)
            pen.rectangle((*low, *high), outline=colour, width=2)
    return crop


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class; its number if it has none."""
    return classes[label] if 0 <= label < len(classes) else f"class {label}"


def enlarged(image: Image.Image, boxes: Edges, longer: int = LONGER) -> tuple[Image.Image, list[list[float]]]:
    """An image resized so that its longer side is ``longer``, and its boxes."""
    times = longer / max(image.size)
    size = (max(1, round(image.width * times)), max(1, round(image.height * times)))
    way = Image.Resampling.NEAREST if times >= 3 else Image.Resampling.BILINEAR
    across, down = size[0] / image.width, size[1] / image.height
    return image.resize(size, way), [[x1 * across, y1 * down, x2 * across, y2 * down] for x1, y1, x2, y2 in boxes]


def beside(left: Image.Image, right: Image.Image, words: str) -> Image.Image:
    """Two images of one size side by side, with the caption ``words`` above them."""
    panel = Image.new("RGB", (left.width + right.width + _GAP, left.height + _WORDS), _PAPER)
    panel.paste(left, (0, _WORDS))
    panel.paste(right, (left.width + _GAP, _WORDS))
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    pen.text((2, 2), _fitted(words, pen, font, panel.width - 4), _INK, font=font)
    return panel


def sheet(panels: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Panels in rows of ``columns``, on white."""
    columns = min(columns, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    wide = max(panel.width for panel in panels)
    high = [max(panel.height for panel in row) for row in rows]
    whole = Image.new("RGB", (columns * (wide + 2 * _GAP) - 2 * _GAP, sum(high) + _GAP * (len(rows) - 1)), _PAPER)
    top = 0
    for row, height in zip(rows, high, strict=True):
        for column, panel in enumerate(row):
            whole.paste(panel, (column * (wide + 2 * _GAP), top))
        top += height + _GAP
    return whole


def _tag(
    pen: ImageDraw.ImageDraw,
    words: str,
    at: tuple[float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A name on its color, above the corner ``at`` if there is room, else below it, and within the image."""
    words = _known(words[:60], font)
    left, top, right, bottom = pen.textbbox((0, 0), words, font=font)
    wide, high = right - left + 4, bottom - top + 4
    x = min(max(at[0], 0), max(0, size[0] - wide))
    y = at[1] - high if at[1] >= high else min(at[1], size[1] - high)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.rectangle((x, y, x + wide, y + high), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), words, (0, 0, 0) if bright else (255, 255, 255), font=font)


def _known(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """On one line, with characters that the font has."""
    words = " ".join(words.split())
    return words if isinstance(font, ImageFont.FreeTypeFont) else words.encode("latin-1", "replace").decode("latin-1")


def _fitted(words: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, wide: int) -> str:
    words = _known(words[:400], font)
    if pen.textlength(words, font) <= wide:
        return words
    while words and pen.textlength(words + "...", font) > wide:
        words = words[:-1]
    return words + "..."
