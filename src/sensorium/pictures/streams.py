"""Ground truth and predictions of a recording over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_ROW, _LEFT, _TOP, _WIDE = 22, 180, 28, 960
_INK, _PAPER, _FAINT = (28, 30, 36), (255, 255, 255), (228, 230, 235)
_TRUE, _LIKELY = (16, 16, 20), np.array((214, 92, 34), np.float64)


def timeline(
    scores: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    rate: float | None = None,
    joints: Sequence[int] = (),
) -> Image.Image:
    """One row per class: the deeper the color, the higher its probability; a black line below marks where it is true.

    scores: probabilities [N, K]. labels: integers [N], -1 unknown. rate: frames per second, for the time axis.
    joints: frames at which another recording begins. Classes that are neither true nor likely anywhere are omitted.
    """
    count = len(scores)
    shown = [k for k in range(len(classes)) if (labels == k).any() or (scores[:, k] > 0.3).any()]
    picture = Image.new("RGB", (_LEFT + _WIDE + 16, _TOP + _ROW * len(shown) + 30), _PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    pen.text((_LEFT, 7), "probability of each class; black line: ground truth", _INK, font=font)
    edges = np.linspace(0, count, _WIDE + 1)
    columns = np.minimum(edges[:-1].astype(int), count - 1)
    for row, k in enumerate(shown):
        top = _TOP + row * _ROW
        name = _fitting(classes[k], font)
        pen.text((_LEFT - 8, top + _ROW / 2), name, _INK, font=font, anchor="rm")
        likely = scores[columns, k][:, None]
        colours = (255 + likely * (_LIKELY - 255)).round().astype(np.uint8)
        band = np.broadcast_to(colours, (_ROW - 8, _WIDE, 3))
        picture.paste(Image.fromarray(np.ascontiguousarray(band)), (_LEFT, top + 1))
        for start, stop in _runs(labels == k):
            x = [_LEFT + round(_WIDE * at / count) for at in (start, stop)]
            pen.rectangle((x[0], top + _ROW - 6, max(x[0], x[1] - 1), top + _ROW - 3), _TRUE)
    bottom = _TOP + _ROW * len(shown)
    for at in joints:
        x = _LEFT + round(_WIDE * at / count)
        pen.line((x, _TOP, x, bottom), _INK)
    for at, said in _ticks(count, rate):
        x = _LEFT + round(_WIDE * at / count)
        pen.line((x, bottom, x, bottom + 5), _INK)
        pen.text((x, bottom + 7), said, _INK, font=font, anchor="mt" if at else "lt")
    pen.line((_LEFT, bottom, _LEFT + _WIDE, bottom), _FAINT)
    return picture


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A name cut to the available width."""
    short = name
    while short and font.getlength(short + "…" * (short != name)) > _LEFT - 16:
        short = short[:-1]
    return short if short == name else short + "…"


def _runs(true: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(true.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _ticks(count: int, rate: float | None) -> list[tuple[float, str]]:
    """(frame, tick label): seconds if the rate is known, else frames; at most eight."""
    length = count / rate if rate else count
    rough = length / 8
    step = 10.0 ** np.floor(np.log10(rough))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= rough - 1e-9)
    marks = np.arange(0, length + step / 1e6, step)
    return [(mark * rate if rate else mark, f"{mark:g} s" if rate else f"{mark:g}") for mark in marks]
