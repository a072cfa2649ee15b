"""Plots of what the benchmarks measure: the report's line charts, one above the other, in an SVG file that stands alone.

A chart of the report takes its colors from the page; here each file brings them and a light background of its own, so
that it reads the same opened alone, on a white page and on a dark one. Colors: Okabe and Ito's palette.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensorium.report.charts import Axis, Format, Line, line_chart
from sensorium.report.html import Html, count, el, join

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5478a", "#c78500", "#3a9bd6", "#7a5c2e", "#4b4f9c")
GREY = "#7d868f"
Curves = dict[str, list[tuple[int, float]]]  # (length, value) of each way to compute the same
WIDTH, MARGIN, HEADING = 1000, 16, 34  # the width is what line_chart draws
STYLE = """
text{font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;fill:#5c656f}
.heading{font-size:15px;font-weight:600;fill:#1c2127}
.end{text-anchor:end}.mid{text-anchor:middle}.name{fill:#434b55}
.label{fill:currentColor;font-size:13px;font-weight:600}.dim{font-weight:400}
.grid{stroke:#eeece6}.axis,.tick{stroke:#7d868f}
.lead{stroke:currentColor;stroke-opacity:.3;fill:none}
.line{fill:none;stroke:currentColor;stroke-width:2.2;stroke-linejoin:round}.base .line{stroke-width:1.5}
.mark{fill:currentColor;stroke:#fff;stroke-width:1.4}
"""


@dataclass(frozen=True)
class Panel:
    """One chart; ``title`` says what goes up and in which unit."""

    title: str
    lines: Sequence[Line]
    x: Axis
    y: Axis
    height: int = 380


def write(path: Path, panels: Sequence[Panel]) -> None:
    """The panels one above the other, as an SVG file."""
    top, parts = MARGIN, []
    for panel in panels:
        parts.append(el("text", panel.title, x=MARGIN, y=top + 15, cls="heading"))
        wide = line_chart(panel.lines, panel.x, panel.y, alt=panel.title, height=panel.height).partition("</svg>")[0]
        place = f'<svg x="{MARGIN}" y="{top + HEADING}" width="{WIDTH}" height="{panel.height}" '
        # Colors as a plain property: not every program that shows SVG knows variables.
        parts.append(Html(wide.replace("<svg ", place, 1).replace('style="--c:', 'style="color:') + "</svg>"))
        top += HEADING + panel.height + MARGIN
    size = {"width": WIDTH + 2 * MARGIN, "height": top}
    ground = el("rect", x=0.5, y=0.5, width=size["width"] - 1, height=top - 1, rx=8, fill="#fff", stroke="#e5e2da")
    box = f"0 0 {size['width']} {top}"
    drawn = el(
        "svg", el("style", Html(STYLE)), ground, join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=box, **size
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn + "\n", encoding="utf-8")


def log_axis(values: Iterable[float], show: Format, *, title: str = "", ticks: Sequence[float] = ()) -> Axis:
    """A logarithmic axis around positive ``values``; if no ticks are given, at the powers of ten, at twice and five times
    these too where they are few."""
    values = [*values, *ticks]
    low, high = min(values), max(values)
    room = (high / low) ** 0.03
    low, high = low / room, high * room
    steps = (1, 2, 5) if high < 100 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    found = [step * 10.0**i for i in decades for step in steps]
    return Axis(low, high, show, log=True, title=title, ticks=ticks or [tick for tick in found if low <= tick <= high])


def power(value: float) -> str:
    """0.001 -> "10⁻³"."""
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def by_length(title: str, across: str, curves: Curves, *, height: int = 380) -> Panel:
    """Both axes logarithmic."""
    lines = [Line(name, points, COLORS[i], marker=i) for i, (name, points) in enumerate(curves.items())]
    points = [point for line in lines for point in line.points]
    lengths = sorted({length for length, _ in points})
    y = log_axis((value for _, value in points), lambda value: f"{value:g}")
    return Panel(title, lines, log_axis(lengths, count, title=across, ticks=lengths), y, height)
