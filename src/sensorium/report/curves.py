"""The report's charts: label efficiency, quality against time and images, losses."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from sensorium.report import html as h
from sensorium.report.charts import Axis, Line, bars, line_chart, nice_ticks, time_ticks
from sensorium.report.html import Html, el, number, run_title
from sensorium.report.pictures import inside
from sensorium.report.verdict import is_reference, label_fractions, standard_error

MAX_POINTS = 500
GREY = "var(--base)"


def color_of(results: dict[str, Any], run: dict[str, Any]) -> str:
    """One colour a run, by its place in the results."""
    names = [other.get("name") for other in results.get("runs") or []]
    return f"var(--s{(names.index(run['name']) if run.get('name') in names else 0) % 8})"


def _marker_of(results: dict[str, Any], run: dict[str, Any]) -> int:
    return [other.get("name") for other in results["runs"]].index(run["name"])


def read_losses(folder: Path, name: str) -> list[tuple[float, float, float]]:
    """``folder/<name>/metrics.csv`` as (step, seconds, loss), at most ``MAX_POINTS`` of them, each a mean of its neighbours."""
    path = inside(folder, f"{name}/metrics.csv")
    if path is None or not path.is_file():
        return []
    found: list[tuple[float, float, float]] = []
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                step, loss = number(row.get("step")), number(row.get("loss"))
                if step is not None and loss is not None:
                    found.append((step, number(row.get("seconds")) or 0.0, loss))
    except (OSError, csv.Error):
        return []
    size = math.ceil(len(found) / MAX_POINTS) or 1
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    return [(part[-1][0], part[-1][1], sum(p[2] for p in part) / len(part)) for part in parts]


def losses(results: dict[str, Any], folder: Path) -> Html | None:
    """One small chart a run, each with its own axis: losses of different methods can't be compared."""
    charts = []
    for run in results["runs"]:
        points = read_losses(folder, run["name"])
        if len(points) < 2:
            continue
        values = sorted(point[2] for point in points)
        low, high = values[0], max(values[int(0.99 * (len(values) - 1))], values[0] + 1e-9)
        pad = 0.06 * (high - low)
        y = Axis(low - pad, high + pad, lambda v: f"{v:.4g}")
        x = Axis(points[0][0], points[-1][0], h.short, title="step", kind="count")
        line = Line(
            run_title(run), [(s, min(v, high + pad)) for s, _, v in points], color_of(results, run), labelled=False
        )
        alt = f"Loss of {run_title(run)} by step: from {points[0][2]:.4g} to {points[-1][2]:.4g}"
        head = el("h3", run_title(run), el("small", f"{points[-1][2]:.4g} at step {h.count(points[-1][0])}"))
        charts.append(el("figure", head, line_chart([line], x, y, alt=alt, height=210, small=True), cls="small"))
    return el("div", charts, cls="grid") if charts else None


LENGTHS = (  # field, title, how its numbers read, logarithmic
    ("bits_per_byte", "bits per byte of held-out text, lower is better", lambda v: f"{v:.3g}", False),
    ("tokens_per_second", "tokens a second of a training step, as many tokens at every length", h.short, True),
    ("kept_mb", "memory kept for the backward pass of that step", h.memory, True),
)


def lengths(results: dict[str, Any], colors: dict[str, str]) -> Html | None:
    """What runs say and cost at lengths up to eight times the trained one, the first on the left."""
    figures = []
    for field, title, written, logarithmic in LENGTHS:
        lines = []
        for run in results["runs"]:
            pairs = [(number(row.get("length")), number(row.get(field))) for row in run.get("lengths") or []]
            points = [(a, b) for a, b in pairs if a is not None and b is not None and b > 0]
            if points:
                lines.append(Line(run_title(run), points, colors[run["name"]], marker=len(lines)))
        if not lines:
            continue
        across = sorted({p[0] for line in lines for p in line.points})
        values = [p[1] for line in lines for p in line.points]
        low, high = min(values), max(values)
        pad = 0.06 * (high - low) or 0.1 * high
        ends = (low / 1.15, high * 1.15) if logarithmic else (low - pad, high + pad)
        ticks = _powers_of_two(*ends) if logarithmic else nice_ticks(*ends)
        y = Axis(*ends, written, log=logarithmic, ticks=ticks)
        x = Axis(across[0], max(across[-1], across[0] * 1.01), h.count, log=True, title="length", ticks=across)
        figures.append(el("figure", line_chart(lines, x, y, alt=f"{title} by length"), el("figcaption", title)))
    return el("div", figures) if figures else None


def _powers_of_two(low: float, high: float) -> list[float]:
    """About five of them between two numbers."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    return [2.0**i for i in range(first, last + 1, max(1, (last - first) // 5 + 1))] or [low]


def quality(results: dict[str, Any]) -> Html | None:
    """Online kNN against time and against images seen, and the rank of the features (what a collapse shows in)."""
    panels = []
    for name, across, up in (
        ("by time", "seconds", "knn_top1"),
        ("by images seen", "images", "knn_top1"),
        ("feature rank by time", "seconds", "rank"),
    ):
        lines = []
        for run in results["runs"]:
            points = [(number(p.get(across)), number(p.get(up))) for p in run.get("curve") or []]
            known = sorted((a, b) for a, b in points if a is not None and b is not None)
            if known:
                lines.append(
                    Line(
                        run_title(run),
                        known,
                        color_of(results, run),
                        marker=_marker_of(results, run) if len(known) < 13 else None,
                    )
                )
        if lines:
            panels.append((name, _quality_panel(results, lines, across, up)))
    return h.tabs("quality", panels, "Quality against") if panels else None


def _quality_panel(results: dict[str, Any], lines: list[Line], across: str, up: str) -> Html:
    end = max(point[0] for line in lines for point in line.points) or 1.0
    given = results.get("baselines") or {}
    if up == "knn_top1":
        floor = [("raw pixels", (given.get("pixels") or {}).get("knn"))]
        floor += [(f"random {b}", (s or {}).get("knn")) for b, s in (given.get("random") or {}).items()]
        flat = [(name, number((score or {}).get("top1"))) for name, score in floor]
        lines = lines + [
            Line(name, [(0.0, v), (end, v)], GREY, dash=i + 2) for i, (name, v) in enumerate(flat) if v is not None
        ]
    y = _range([p[1] for line in lines for p in line.points], share=up == "knn_top1")
    timed = across == "seconds"
    ticks = time_ticks(0, end) if timed else []
    title = "training time" if timed else "images seen"
    x = Axis(0.0, end, h.duration if timed else h.short, title=title, ticks=ticks, kind="time" if timed else "count")
    what = "kNN top-1" if up == "knn_top1" else "rank of the features"
    alt = f"{what} against {title}, one line a method"
    caption = (
        "kNN top-1 on a sample of the test images, measured during training"
        if up == "knn_top1"
        else "Effective rank of the features; a line that falls to 1 is a collapse"
    )
    return el(
        "figure",
        line_chart(lines, x, y, alt=alt),
        el("figcaption", caption + ". Dashed: without any training." * (up == "knn_top1")),
    )


def _range(values: list[float], *, share: bool) -> Axis:
    """An axis around the values, ending on round numbers."""
    low, high = min(values), max(values)
    pad = max(0.04 * (high - low), 0.01 if share else 1e-9)
    low, high = (max(low - pad, 0.0), min(high + pad, 1.0)) if share else (max(low - pad, 0.0), high + pad)
    ticks = nice_ticks(low, high, 7)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    low = max(math.floor(low / step + 1e-9) * step, 0.0)
    high = math.ceil(high / step - 1e-9) * step
    ticks = [low + i * step for i in range(round((high - low) / step) + 1)]
    if share:
        return Axis(low, high, lambda v: f"{100 * v:.4g} %", kind="percent", ticks=ticks)
    return Axis(low, high, h.count, kind="count", ticks=ticks)


def _scores_line(name: str, scores: dict[str, Any] | None, color: str, **style: Any) -> Line:
    found = []
    for key, score in (scores or {}).items():
        top1 = number((score or {}).get("top1"))
        if top1 is not None:
            found.append((h.fraction(key), top1, standard_error(score), score))
    found.sort(key=lambda item: item[0])
    tips = []
    for at, top1, se, score in found:
        labels = f" ({h.count(score['labels'])} labels)" if number(score.get("labels")) is not None else ""
        error = f" ± {200 * se:.1f}" if se is not None else ""
        tips.append(f"{name}: {100 * top1:.1f}{error} % at {100 * at:g} % of labels{labels}")
    errors = [2 * se if se is not None else None for _, _, se, _ in found]
    return Line(name, [(at, top1) for at, top1, _, _ in found], color, errors=errors, tips=tips, **style)


def _baseline_lines(results: dict[str, Any], low: float, high: float) -> list[Line]:
    given, lines = results.get("baselines") or {}, []
    scratch, random = (given.get(name) or {} for name in ("scratch", "random"))
    for i, (backbone, scores) in enumerate(scratch.items()):
        named = "from scratch" + (f", {backbone}" if len(scratch) > 1 else "")
        lines.append(_scores_line(named, scores, GREY, dash=1, marker=i))
    if given.get("pixels"):
        lines.append(_scores_line("raw pixels, linear", given["pixels"].get("linear"), GREY, dash=2))
    for backbone, scores in random.items():
        named = "random weights, linear" if len(random) < 2 else f"random {backbone}, linear"
        lines.append(_scores_line(named, (scores or {}).get("linear"), GREY, dash=3))
    major = number((given.get("majority") or {}).get("top1"))
    if major is not None:
        lines.append(Line("commonest class", [(low, major), (high, major)], GREY, dash=4))
    return [line for line in lines if line.points]


def efficiency(results: dict[str, Any]) -> Html | None:
    """Top-1 by share of labels: fine-tuned and linear probe, the baselines dashed; bars where there is one share only."""
    runs = h.finished(results)
    fractions = label_fractions(runs)
    if not fractions:
        return None
    low, high = fractions[0] * 0.85, max(fractions[-1] * 1.15, fractions[0] * 2)
    base = _baseline_lines(results, low, high)
    kinds = {}
    for way, title in (("finetune", "Fine-tuned"), ("linear", "Linear probe")):
        lines = [
            _scores_line(
                run_title(run) + (" (all labels)" if is_reference(run) and fractions[0] < 1 else ""),
                run.get(way),
                color_of(results, run),
                marker=_marker_of(results, run),
                faint=is_reference(run) and fractions[0] < 1,
            )
            for run in runs
        ]
        if any(line.points for line in lines):
            kinds[title] = [line for line in lines if line.points]
    if len(fractions) == 1:
        return h.tabs(
            "efficiency",
            [(title, _one_share(lines, base, fractions[0])) for title, lines in kinds.items()],
            "Labels used for",
        )
    values = [point[1] for lines in [*kinds.values(), base] for line in lines for point in line.points]
    y = _range(values, share=True)
    x = Axis(
        low,
        high,
        lambda v: f"{100 * v:g} %",
        log=True,
        title="share of the labels (log scale)",
        ticks=fractions,
        kind="percent",
    )
    panels = []
    for title, lines in kinds.items():
        alt = f"{title}: top-1 against the share of labels, one line a method, baselines dashed"
        note = "Bars are ± two standard errors (test images counted, and spread over label subsets). Dashed: baselines."
        figure = el("figure", line_chart([*base, *lines], x, y, alt=alt, height=420), el("figcaption", note))
        panels.append((title, figure))
    return h.tabs("efficiency", panels, "Labels used for")


def _one_share(lines: list[Line], base: list[Line], at: float) -> Html:
    """Bars, best first: the methods, and those baselines that had as many labels."""
    found = []
    for line in [*lines, *base]:
        for i, (share, top1) in enumerate(line.points):
            anywhere = not line.errors  # the commonest class needs no labels
            if math.isclose(share, at) or (anywhere and i == 0):
                error = line.errors[i] if line.errors else None
                written = h.percent(top1) + (f" ± {100 * error:.1f}" if error else "")
                found.append((line.name, top1, written, line.color))
    return bars(sorted(found, key=lambda row: -row[1]), high=1.0)
