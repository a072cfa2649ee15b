"""The page of `sensorium samplers`: the verdict, a table, the distance by evaluations and by time, and pictures from the same noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.report import html as h
from sensorium.report.charts import Axis, Line, line_chart, nice_ticks
from sensorium.report.html import Html, el, join
from sensorium.report.page import asset, page_of
from sensorium.report.pictures import inline_file

if TYPE_CHECKING:
    from rich.table import Table

NOTE = (
    "The Fréchet distance of drawn pictures to as many training pictures, by the features named above; lower is better, and distances "
    "of other features or numbers of pictures can't be compared with it. ±: a standard error by the bootstrap. Times are of this "
    "machine, and longer where it is busy."
)


def shown(row: Mapping[str, Any]) -> str:
    """ "5.1 ± 0.2"."""
    return f"{row['distance']:.3g} ± {row['error']:.2g}"


def cells(kept: Mapping[str, Any]) -> tuple[list[int], dict[str, list[Mapping[str, Any] | None]]]:
    """The numbers of evaluations, and by sampler the point of each, None where there is none."""
    columns = sorted({row["column"] for row in kept["points"]})
    of = {(row["sampler"], row["column"]): row for row in kept["points"]}
    names = dict.fromkeys(row["sampler"] for row in kept["points"])
    return columns, {name: [of.get((name, column)) for column in columns] for name in names}


def samplers_table(kept: Mapping[str, Any]) -> Table:
    """For the terminal: distance, and milliseconds a picture, by evaluations."""
    from rich.table import Table

    columns, rows = cells(kept)
    table = Table("distance (ms a picture)", *(f"{h.count(column)} evaluations" for column in columns))
    for name, row in rows.items():
        table.add_row(name, *("" if one is None else f"{shown(one)} ({_ms(one)})" for one in row))
    return table


def render(kept: Mapping[str, Any], folder: Path) -> str:
    """The page as text; pictures are read from ``folder``."""
    title = el("h1", "Which sampler draws best with ", el("span", kept["run"], cls="path"), "?")
    usual = kept["usual"]
    facts = [
        kept["system"],
        h.of(kept["n"], "pictures a sampler"),
        kept["features"],
        f"by default {usual['sampler']}, {h.of(usual['steps'], 'steps')}",
        *(["stopped before all was measured"] if kept["stopped"] else []),
    ]
    box = el(
        "div", el("p", kept["said"], cls="first"), el("p", el("code", kept["command"]), cls="second"), cls="verdict", style="--c:var(--s0)"
    )  # fmt: skip
    figures = [figure for one in kept["pictures"] if (figure := _figure(one, folder)) is not None]
    lead = "Each column begins with the same noise; rows are numbers of evaluations, the fewest above. Not selected."
    parts = [
        el("section", box, cls="part"),
        el("section", el("h2", "Distance by evaluations"), el("figure", _curve(kept, "evaluations", "evaluations of the network a picture", 1), el("figcaption", NOTE)), cls="part"),
        el("section", el("h2", "Distance by time"), el("figure", _curve(kept, "seconds", "milliseconds a picture", 1000)), cls="part"),
        el("section", el("h2", "All numbers"), el("div", _table(kept), cls="scroll", tabindex="0"), cls="part"),
        el("section", el("h2", "Pictures"), el("p", lead, cls="lead"), el("div", figures, cls="pictures"), cls="part"),
    ]  # fmt: skip
    body = [
        el("header", el("p", "Sensorium", cls="eyebrow"), title, el("p", [el("span", f) for f in facts], cls="facts-line")),
        el("main", parts),
        el("footer", "Made by Sensorium. The same numbers are in samplers.json beside this file."),
    ]  # fmt: skip
    return page_of(f"Sensorium: samplers of {kept['run']}", asset("report.css"), asset("report.js"), join(body))


def _table(kept: Mapping[str, Any]) -> Html:
    columns, rows = cells(kept)
    head = el("tr", el("th", "evaluations"), [el("th", h.count(column)) for column in columns], cls="names")
    best = kept["take"]
    body = []
    for name, row in rows.items():
        written = []
        for one in row:
            if one is None:
                written.append(el("td", h.MISSING, cls="none"))
                continue
            first = el("b", shown(one)) if (name, one["steps"]) == (best["sampler"], best["steps"]) else shown(one)
            written.append(el("td", first, el("small", f"{_ms(one)} ms, {h.of(one['steps'], 'steps')}")))
        body.append(el("tr", el("th", name, scope="row"), written))
    return el("table", el("thead", head), el("tbody", body))


def _ms(row: Mapping[str, Any]) -> str:
    return f"{1000 * row['seconds']:.3g}"


def _figure(one: Mapping[str, Any], folder: Path) -> Html | None:
    if (picture := inline_file(folder, one["file"])) is None:
        return None
    uri, width, height = picture
    rows = f"{', '.join(map(h.count, one['rows']))} evaluations"
    image = el("img", src=uri, width=width, height=height, alt=f"Pictures by {one['sampler']}, {rows}", loading="lazy")
    return el("figure", el("h3", one["sampler"]), image, el("figcaption", rows))


def _curve(kept: Mapping[str, Any], key: str, title: str, scale: float) -> Html:
    """The distance over ``key`` times ``scale``, a line a sampler, with held-out pictures beside them."""
    _, rows = cells(kept)
    lines = []
    for i, (name, row) in enumerate(rows.items()):
        points = [one for one in row if one is not None]
        lines.append(
            Line(
                name, [(scale * one[key], one["distance"]) for one in points], f"var(--s{i % 8})", [one["error"] for one in points],
                [f"{name}, {h.of(one['steps'], 'steps')}: {shown(one)}, {_ms(one)} ms" for one in points], marker=i,
            )
        )  # fmt: skip
    x = _log_axis([point[0] for line in lines for point in line.points], title)
    if kept["held_out"] is not None:
        across = [(x.low, kept["held_out"]), (x.high, kept["held_out"])]
        lines.append(Line("held-out pictures", across, "var(--base)", dash=1))
    values = [point[1] for line in lines for point in line.points]
    y = _log_axis(values) if 0 < 10 * min(values) < max(values) else _axis(values)
    return line_chart(lines, x, y, alt=f"Fréchet distance by {title}, a line a sampler")


def _axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
    return Axis(low - pad, high + pad, lambda v: f"{v:.3g}", ticks=nice_ticks(low - pad, high + pad))


def _log_axis(values: Sequence[float], title: str = "") -> Axis:
    """An axis with ticks at 1, 2 and 5 times powers of ten; zeros are drawn at its lower end."""
    low = min(value for value in values if value > 0) / 1.15
    high = max(values) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return Axis(low, high, lambda v: f"{v:.3g}", log=True, title=title, ticks=[one for one in ticks if one >= low])
