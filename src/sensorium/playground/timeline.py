"""A growing plot of a stream's probabilities: SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np

COLOURS = (
    "#3a9bd6", "#e06c1b", "#1fae82", "#c65f9f", "#d99a17", "#8a7be0", "#a0783c", "#4fa8a0", "#d0555f", "#7f8c3a",
    "#4a55b5", "#b0306f", "#5f9e2f", "#c38fe0", "#7c4a3a", "#1f6f86",
)  # fmt: skip
RESTING = "#8b939c"
LINES = len(COLOURS)  # maximum curves
LISTED = 48  # maximum names below them
BAR = 16  # height of a bar of classes


class Size(NamedTuple):
    """Units of one drawing: ``left`` of its curves, ``high`` these are, ``points`` each has at most."""

    name: str
    wide: int
    left: int
    high: int
    points: int


SIZES = Size("wide", 1000, 60, 220, 400), Size("narrow", 366, 58, 190, 180)  # one is shown, by the window's width


def timeline(
    chances: np.ndarray, total: int, classes: Sequence[str], truth: np.ndarray | None = None, rate: float | None = None
) -> str:
    """Probabilities so far [n, K] of a stream of ``total`` frames, with the true classes [total] (-1 unknown) above them.

    ``rate``: frames per second. Of more classes than colors, those predicted or true most often have curves. Every class
    that is drawn, as a curve or in a bar, is in the legend; names are escaped.
    """
    n = len(chances)
    said = chances.argmax(1)
    seen = np.bincount(said, minlength=len(classes)) + (
        0 if truth is None else np.bincount(truth[:n][truth[:n] >= 0], minlength=len(classes))
    )
    order = np.argsort(-seen, kind="stable").tolist()
    shown = sorted(order[:LINES])
    named = sorted({*shown, *(k for k in order if seen[k])})
    colour = {k: RESTING if classes[k] == "background" else _colour(k) for k in range(len(classes))}
    bars = [("said", said)] if truth is None else [("true", truth[:n]), ("said", said)]
    drawn = "".join(_drawn(size, chances, total, shown, bars, colour, rate) for size in SIZES)
    legend = "".join(
        f'<span><i style="background:{colour[k]}"></i>{escape(str(classes[k]))}</span>' for k in named[:LISTED]
    )
    more = f"<span>and {len(named) - LISTED:,} more</span>" if len(named) > LISTED else ""
    return f'{_now(chances[-1], n, classes, truth, rate)}{drawn}<div class="keys">{legend}{more}</div>'


def _colour(k: int) -> str:
    """A color for class ``k``, another for every other."""
    return COLOURS[k] if k < len(COLOURS) else f"hsl({137.508 * k % 360:.0f} {45 + k % 3 * 15}% {42 + k % 5 * 6}%)"


def _drawn(
    size: Size, chances: np.ndarray, total: int, shown: Sequence[int], bars: Sequence[tuple[str, np.ndarray]],
    colour: dict[int, str], rate: float | None,
) -> str:  # fmt: skip
    """The bars of classes and the curves below them, at one size."""
    n, parts = len(chances), []

    def x(frame: float) -> float:
        return size.left + (size.wide - size.left) * frame / total

    for row, (name, values) in enumerate(bars):
        y = 8 + row * (BAR + 6)
        parts.append(_text(size.left - 8, y + BAR - 3, name, "end"))
        parts += [
            f'<rect x="{x(a):.1f}" y="{y}" width="{max(x(b) - x(a), 0.5):.1f}" height="{BAR}" fill="{colour[k]}"/>'
            for a, b, k in _runs(values)
            if k >= 0
        ]
    top = 8 + len(bars) * (BAR + 6) + 8
    for share in (0, 0.5, 1):
        y = top + size.high * (1 - share)
        line = f'x1="{size.left}" x2="{size.wide}" y1="{y}" y2="{y}"'
        parts.append(f'<line {line} stroke="currentColor" stroke-opacity=".18"/>')
        parts.append(_text(size.left - 8, y + 5, f"{100 * share:.0f} %", "end"))
    at = np.append(np.arange(0, n, max(1, -(-total // size.points))), n - 1).tolist()
    for k in shown:
        points = " ".join(f"{x(i + 0.5):.1f},{top + size.high * (1 - chances[i, k]):.1f}" for i in at)
        look = f'fill="none" stroke="{colour[k]}" stroke-width="2.2" stroke-linejoin="round"'
        parts.append(f'<polyline points="{points}" {look}/>')
    now = f'x1="{x(n):.1f}" x2="{x(n):.1f}" y1="8" y2="{top + size.high}"'
    parts.append(f'<line {now} stroke="currentColor" stroke-opacity=".6"/>')
    for share in (0, 0.25, 0.5, 0.75, 1) if size.wide > 600 else (0, 0.5, 1):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        parts.append(_text(x(share * total), top + size.high + 20, when(share * total, rate), anchor))
    return (
        f'<svg class="{size.name}" viewBox="0 0 {size.wide} {top + size.high + 28}" role="img" '
        f'aria-label="probabilities over time">{"".join(parts)}</svg>'
    )


def when(frame: float, rate: float | None) -> str:
    """A position in a stream, in seconds if its rate is known."""
    return f"{frame / rate:.1f} s" if rate else f"frame {frame:,.0f}"


def _now(chances: np.ndarray, n: int, classes: Sequence[str], truth: np.ndarray | None, rate: float | None) -> str:
    best = int(chances.argmax())
    told = "" if truth is None or truth[n - 1] < 0 else f" &nbsp;·&nbsp; true: {escape(str(classes[truth[n - 1]]))}"
    return (
        f'<div class="now" style="font-size:1.25em;margin-bottom:.4em"><b>{escape(str(classes[best]))}</b> '
        f'{100 * chances[best]:.0f} %<span style="opacity:.7"> &nbsp;·&nbsp; {when(n, rate)}{told}</span></div>'
    )


def _runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, stop, value) of each run of equal values."""
    edges = np.flatnonzero(np.diff(values, prepend=np.nan, append=np.nan) != 0) if len(values) else np.zeros(0, int)
    return [(int(a), int(b), int(values[a])) for a, b in pairwise(edges)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="15" fill="currentColor" fill-opacity=".75" text-anchor="{anchor}">{escape(words)}</text>'
