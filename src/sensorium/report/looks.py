"""The report's images: each run's pictures, nearest neighbors, and the map of its embedding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.judge.score import Map
from sensorium.judge.score import Neighbors as Near
from sensorium.report import html as h
from sensorium.report.curves import colors_of
from sensorium.report.html import Html, el
from sensorium.report.pictures import Sheet, inline_file
from sensorium.runs.results import Results

MAX_MAPPED = 600
MAX_QUERIES = 12
MAX_FOUND = 12
CLASS_COLORS = 10


def pictures(results: Results, folder: Path) -> Html | None:
    """Each run's picture files, inlined."""
    blocks, colors = [], colors_of(results)
    for run in results.runs:
        figures = []
        for shown in run.pictures:
            found = inline_file(folder, shown.file)
            caption = el("figcaption", el("b", shown.title or ""), " ", shown.caption or "")
            if found is None:
                lost = el("p", f"{shown.file}: no such picture in the report's folder", cls="note")
                figures.append(el("figure", lost, caption))
                continue
            uri, width, height = found
            small = "pixels" if width < 400 else None
            alt = f"{run.shown}: {shown.title or 'picture'}"
            figures.append(el("figure", el("img", src=uri, alt=alt, width=width, height=height, cls=small), caption))
        if figures:
            head = el("h3", run.shown, style=f"--c:{colors[run.name]}", cls="dot")
            blocks.append(el("div", head, el("div", figures, cls="pictures"), cls="block"))
    return h.join(blocks) if blocks else None


class Names:
    """Labels of the images that results refer to, and the names of the classes."""

    def __init__(self, results: Results, pixels: dict[str, Any]) -> None:
        first = next(iter(pixels.values()), None)
        self.classes = list(results.data.classes or getattr(first, "classes", None) or [])
        self.labels = {split: getattr(part, "labels", None) for split, part in pixels.items()}

    def label(self, split: str, index: int) -> int | None:
        """An image's label, None if unknown."""
        labels = self.labels.get(split)
        if labels is None or not 0 <= index < len(labels) or int(labels[index]) < 0:
            return None
        return int(labels[index])

    def named(self, label: int | None) -> str:
        if label is None or label < 0:
            return "no label"
        return str(self.classes[label]) if label < len(self.classes) else f"class {label}"


def neighbors(results: Results, sheet: Sheet, names: Names) -> Html | None:
    """For some test images the nearest training images, framed by whether they share the label."""
    panels = []
    for run in results.finished:
        found = [entry for entry in run.neighbors if entry.found][:MAX_QUERIES]
        if found:
            panels.append((run.shown, _neighbor_rows(found, sheet, names)))
    return h.tabs("neighbors", panels, "Neighbors by") if panels else None


def _neighbor_rows(found: list[Near], sheet: Sheet, names: Names) -> Html:
    rows, same, judged, shown = [], 0, 0, 0
    for entry in found:
        want = names.label("test", entry.query)
        cells = []
        for index in entry.found[:MAX_FOUND]:
            label = names.label("train", index)
            known = want is not None and label is not None
            kind = ("yes" if label == want else "no") if known else ""
            same, judged, shown = same + (kind == "yes"), judged + known, shown + 1
            cells.append(_thumbnail(sheet, "train", index, names.named(label), kind))
        query = _thumbnail(sheet, "test", entry.query, names.named(want), "query")
        rows.append(
            el(
                "div",
                query,
                el("span", names.named(want) if want is not None else "", cls="what"),
                el("div", cells, cls="found"),
                cls="near",
            )
        )
    said = ""
    if judged:
        every = f"the {h.of(shown, 'neighbors')} shown"
        of = every if judged == shown else f"the {h.of(judged, 'neighbors')} whose label is known, of {every},"
        said = f"{h.percent(same / judged, 0)} of {of} share their query's label."
    frame = (
        " Left: the query; right: its neighbors: ✓ and a green frame for the same label, ✗ and a red one for another."
        if judged
        else " Left: the query; right: the training images nearest to it."
    )
    return el("div", el("p", said, frame, cls="note"), el("div", rows, cls="nears"))


def _thumbnail(sheet: Sheet, split: str, index: int, said: str, kind: str) -> Html:
    title = f"{said} · {split} image {index}"
    picture = sheet.thumbnail(split, index, role="img", aria_label=title) or el("i", f"#{index}", cls="nothing")
    return el("span", picture, cls=f"thumb {kind}".strip(), title=title)


def maps(results: Results, sheet: Sheet, names: Names) -> Html | None:
    """Each run's embedding in two dimensions, by thumbnails framed in their class's color."""
    panels = []
    for run in results.finished:
        points = _points(run.map) if run.map else []
        if points:
            panels.append((run.shown, _map(run.shown, points, sheet, names)))
    return h.tabs("map", panels, "Map of") if panels else None


def _points(given: Map) -> list[tuple[float, float, int | None, int | None]]:
    """(x, y, label, index) with x and y in 0..1, evenly thinned."""
    label, index = given.label or [None] * len(given.x), given.index or [None] * len(given.x)
    every = zip(given.x, given.y, label, index, strict=True)
    known = [(x, y, k, i) for x, y, k, i in every if x is not None and y is not None]
    if not known:
        return []
    kept = [known[int(i)] for i in np.linspace(0, len(known) - 1, min(len(known), MAX_MAPPED))]
    place = np.array([[p[0], p[1]] for p in kept], np.float64)
    place = (place - place.min(0)) / np.maximum(np.ptp(place, 0), 1e-12)
    return [(a, b, p[2], p[3]) for (a, b), p in zip(place.tolist(), kept, strict=True)]


def _map(title: str, points: list[tuple[float, float, int | None, int | None]], sheet: Sheet, names: Names) -> Html:
    common = Counter(p[2] for p in points if p[2] is not None and p[2] >= 0)
    color = {label: i for i, (label, _) in enumerate(sorted(common.most_common(CLASS_COLORS)))}
    marks = []
    for a, b, label, index in points:
        kind = f"k{color[label]}" if label in color else "kx"
        said = names.named(label) + (f" · test image {index}" if index is not None else "")
        style = f"left:{100 * a:.1f}%;top:{100 * (1 - b):.1f}%"
        mark = None if index is None else sheet.thumbnail("test", index, cls=kind, style=style, title=said)
        marks.append(mark or el("i", cls=f"{kind} point", style=style, title=said))
    keys: list[Html] = [
        el("li", el("button", names.named(label), type="button", data_class=f"k{i}", aria_pressed="false", cls=f"k{i}"))
        for label, i in color.items()
    ]
    if len(common) > len(color):
        keys.append(
            el(
                "li",
                el(
                    "button",
                    h.of(len(common) - len(color), "more classes"),
                    type="button",
                    data_class="kx",
                    aria_pressed="false",
                    cls="kx",
                ),
            )
        )
    alt = f"Map of {len(points)} test images by {title}'s features, in two dimensions: nearby images are similar"
    plot = el("div", el("div", marks, cls="inner"), cls="map", role="img", aria_label=alt)
    return el("div", el("ul", keys, cls="legend classes") if keys else "", plot)
