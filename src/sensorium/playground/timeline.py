"""A growing plot of a stream's probabilities: SVG for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

COLOURS = (
    "#3a9bd6", "#e06c1b", "#1fae82", "#c65f9f", "#d99a17", "#8a7be0", "#a0783c", "#4fa8a0", "#d0555f", "#7f8c3a",
    "#4a55b5", "#b0306f", "#5f9e2f", "#c38fe0", "#7c4a3a", "#1f6f86",
)  # fmt: skip
RESTING = "#8b939c"
SHOWN = 8  # lines
COLUMNS = 400  # maximum points of a line
WIDE, HIGH, STRIP, LEFT, TOP = 1000, 220, 16, 60, 8


def timeline(
    chances: np.ndarray, total: int, classes: Sequence[str], truth: np.ndarray | None = None, rate: float | None = None
) -> str:
    """Probabilities so far [n, K] of a stream of ``total`` frames, with the true classes [total] (-1 unknown) above them.

    ``rate``: frames per second. Shows the classes with the highest peak probability; names are escaped.
    """
    n = len(chances)
    said = chances.argmax(1)
    seen = np.bincount(said, minlength=len(classes)) + (
        0 if truth is None else np.bincount(truth[:n][truth[:n] >= 0], minlength=len(classes))
    )
    shown = sorted(np.argsort(-seen, kind="stable")[:SHOWN][np.sort(-seen)[:SHOWN] < 0].tolist())
    colour = {k: RESTING if classes[k] == "background" else COLOURS[k % len(COLOURS)] for k in range(len(classes))}
    strips = [("said", said)] if truth is None else [("true", truth[:n]), ("said", said)]
    parts = []
    for row, (name, values) in enumerate(strips):
        y = TOP + row * (STRIP + 6)
        parts.append(_text(LEFT - 8, y + STRIP - 3, name, "end"))
        parts += [
            f'<rect x="{_x(a, total):.1f}" y="{y}" width="{max(_x(b, total) - _x(a, total), 0.5):.1f}" height="{STRIP}" fill="{colour[k]}"/>'
            for a, b, k in _runs(values)
            if k >= 0
        ]
    top = TOP + len(strips) * (STRIP + 6) + 8
    for share in (0, 0.5, 1):
        y = top + HIGH * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{WIDE}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity=".18"/>')
        parts.append(_text(LEFT - 8, y + 5, f"{100 * share:.0f} %", "end"))
    step = max(1, -(-total // COLUMNS))
    at = np.append(np.arange(0, n, step), n - 1)
    for k in shown:
        points = " ".join(f"{_x(i + 0.5, total):.1f},{top + HIGH * (1 - chances[i, k]):.1f}" for i in at.tolist())
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour[k]}" stroke-width="2.2" stroke-linejoin="round"/>'
        )
    x = _x(n, total)
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{top + HIGH}" stroke="currentColor" stroke-opacity=".6"/>'
    )
    for share in (0, 0.25, 0.5, 0.75, 1):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        parts.append(_text(LEFT + share * (WIDE - LEFT), top + HIGH + 20, when(share * total, rate), anchor))
    legend = "".join(
        f'<span style="white-space:nowrap;margin-right:1.1em"><i style="display:inline-block;width:.8em;height:.8em;'
        f'border-radius:2px;margin-right:.4em;background:{colour[k]}"></i>{escape(str(classes[k]))}</span>'
        for k in shown
    )
    svg = (
        f'<svg viewBox="0 0 {WIDE} {top + HIGH + 28}" style="width:100%;color:var(--body-text-color)" role="img" '
        f'aria-label="probabilities over time">{"".join(parts)}</svg>'
    )
    return f'{_now(chances[-1], n, classes, truth, rate)}{svg}<div style="line-height:1.9">{legend}</div>'


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


def _x(frame: float, total: int) -> float:
    return LEFT + (WIDE - LEFT) * frame / total


def _runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """(start, stop, value) of each run of equal values."""
    edges = np.flatnonzero(np.diff(values, prepend=np.nan, append=np.nan) != 0) if len(values) else np.zeros(0, int)
    return [(int(a), int(b), int(values[a])) for a, b in pairwise(edges)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="15" fill="currentColor" fill-opacity=".75" text-anchor="{anchor}">{escape(words)}</text>'
