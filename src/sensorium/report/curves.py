"""The report's charts: label efficiency, quality against time and images, losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sensorium.base.reading import read_object
from sensorium.base.records import decode
from sensorium.base.table import finite, read_table
from sensorium.errors import SensoriumError
from sensorium.judge.score import Score
from sensorium.report import html as h
from sensorium.report.charts import Axis, Line, bars, line_chart, nice_ticks, time_ticks
from sensorium.report.html import Html, el, number
from sensorium.report.pictures import inside
from sensorium.report.table import samples
from sensorium.runs.results import Results, RunResult
from sensorium.runs.verdict import decided_at, is_reference

Band = tuple[tuple[float, float, float], ...]  # (fraction of the budget, low, high)
MAX_POINTS = 500
GREY = "var(--base)"


def colors_of(results: Results) -> dict[str, str]:
    """One color per run, by its position in the results."""
    return {run.name: f"var(--s{i % 8})" for i, run in enumerate(results.runs)}


def read_losses(folder: Path, name: str) -> list[tuple[float, float, float]]:
    """``folder/<name>/metrics.csv`` as (step, seconds, loss), at most ``MAX_POINTS`` of them, each a mean of its
    neighbors."""
    path = inside(folder, f"{name}/metrics.csv")
    if path is None or not path.is_file():
        return []
    rows = [finite(row) for row in read_table(path).rows]
    found = [(row["step"], row.get("seconds", 0.0), row["loss"]) for row in rows if "loss" in row]
    size = math.ceil(len(found) / MAX_POINTS) or 1
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    return [(part[-1][0], part[-1][1], sum(p[2] for p in part) / len(part)) for part in parts]


def read_band(folder: Path, name: str) -> Band:
    """What other runs of its system reached, of ``folder/<name>/outcome.json``; () if that does not tell."""
    path = inside(folder, f"{name}/outcome.json")
    if path is None or not path.is_file():
        return ()
    with suppress(SensoriumError):
        return decode(Band, read_object(path).get("band", []), str(path), field="band")
    return ()


def losses(results: Results, folder: Path) -> Html | None:
    """One small chart per run, each with its own axis: losses of different methods can't be compared. Shaded: the losses
    that other runs of the system reached."""
    charts, colors = [], colors_of(results)
    for run in results.runs:
        points = read_losses(folder, run.name)
        if len(points) < 2:
            continue
        values = sorted(point[2] for point in points)
        band = [
            (points[0][0] + at * (points[-1][0] - points[0][0]), low, high)
            for at, low, high in read_band(folder, run.name)
        ]
        low, high = values[0], max(values[int(0.99 * (len(values) - 1))], values[0] + 1e-9)
        low, high = min([low, *(one[1] for one in band)]), max([high, *(one[2] for one in band)])
        pad = 0.06 * (high - low)
        y = Axis(low - pad, high + pad, lambda v: f"{v:.4g}")
        x = Axis(points[0][0], points[-1][0], h.short, title="step", kind="count")
        line = Line(run.shown, [(s, min(v, high + pad)) for s, _, v in points], colors[run.name], labelled=False)
        alt = f"Loss of {run.shown} by step: from {points[0][2]:.4g} to {points[-1][2]:.4g}"
        head = el("h3", run.shown, el("small", f"{points[-1][2]:.4g} at step {h.count(points[-1][0])}"))
        chart = line_chart([line], x, y, alt=alt, height=210, small=True, area=band)
        said = el("figcaption", "Shaded: what other runs of this system reached, on other data.") if band else None
        charts.append(el("figure", head, chart, said, cls="small"))
    return el("div", charts, cls="grid") if charts else None


LENGTHS = (  # field, title, number format, logarithmic
    ("bits_per_byte", "bits per byte of held-out text, lower is better", lambda v: f"{v:.3g}", False),
    (
        "tokens_per_second",
        "tokens per second of a training step, with the same number of tokens at every length",
        h.short,
        True,
    ),
    ("kept_mb", "memory kept for the backward pass of that step", h.memory, True),
)


def lengths(results: Results) -> Html | None:
    """Quality and cost of the runs at lengths up to eight times the training length."""
    figures, colors = [], colors_of(results)
    for field, title, written, logarithmic in LENGTHS:
        lines = []
        for run in results.runs:
            pairs = [(float(row.length), getattr(row, field)) for row in run.lengths]
            points = [(a, b) for a, b in pairs if b]
            if points:
                lines.append(Line(run.shown, points, colors[run.name], marker=len(lines)))
        across = sorted({p[0] for line in lines for p in line.points})
        if len(across) < 2:
            continue
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
    """About five ticks between two numbers; fewer than two where these are close."""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    return [2.0**i for i in range(first, last + 1, max(1, (last - first) // 5 + 1))]


def quality(results: Results) -> Html | None:
    """The first score evaluated during training against time and against samples seen; others against time."""
    followed: dict[str, Score] = {}
    for run in results.runs:
        for score in run.scores:
            if score.curve and not score.best_of:
                followed.setdefault(score.curve, score)
    panels = []
    for i, (column, score) in enumerate(followed.items()):
        across = (("by time", "seconds"), (f"by {samples(results)} seen", "seen")) if i == 0 else (
            (f"{score.name} by time", "seconds"),
        )  # fmt: skip
        for name, up in across:
            if lines := _followed(results, up, column):
                panels.append((name, _quality_panel(results, score, lines, up)))
    return h.tabs("quality", panels, "Quality against") if panels else None


def _followed(results: Results, across: str, up: str) -> list[Line]:
    colors, lines = colors_of(results), []
    for i, run in enumerate(results.runs):
        points = [(number(p.get(across)), number(p.get(up))) for p in run.curve]
        known = sorted((a, b) for a, b in points if a is not None and b is not None)
        if known:
            lines.append(Line(run.shown, known, colors[run.name], marker=i if len(known) < 13 else None))
    return lines


def _quality_panel(results: Results, score: Score, lines: list[Line], across: str) -> Html:
    end = max(point[0] for line in lines for point in line.points) or 1.0
    flat = score.baselines.items() if score.decides else ()
    lines = lines + [Line(name, [(0.0, v), (end, v)], GREY, dash=i + 2) for i, (name, v) in enumerate(flat)]
    values = [p[1] for line in lines for p in line.points]
    y = _range(values, share=True) if score.share else axis_of(values, score)
    timed = across == "seconds"
    title = "training time" if timed else f"{samples(results)} seen"
    ticks = time_ticks(0, end) if timed else []
    x = Axis(0.0, end, h.duration if timed else h.short, title=title, ticks=ticks, kind="time" if timed else "count")
    said = f"{score.name} ({score.better} is better), measured on a part of the data during training."
    said += " Dashed: baselines, on all of the data." if flat else ""
    return el(
        "figure", line_chart(lines, x, y, alt=f"{score.name} against {title}, one line per run"), el("figcaption", said)
    )


def tradeoff(results: Results) -> Html | None:
    """The deciding score against its price, one mark per run, if a second score is marked as the price."""
    lines, named, colors = [], None, colors_of(results)
    for run in results.finished:
        price = next((s for s in run.scores[1:] if s.price and s.value is not None), None)
        first = run.scores[0] if run.scores else None
        if first is not None and price is not None and first.value is not None and price.value is not None:
            named = named or (first, price)
            lines.append(Line(run.shown, [(price.value, first.value)], colors[run.name], marker=len(lines)))
    if not named or len(lines) < 2:
        return None
    first, price = named
    x, y = (axis_of([p[i] for line in lines for p in line.points], score) for i, score in ((0, price), (1, first)))
    alt = f"{first.name} against {price.name}, a mark a run"
    x = Axis(x.low, x.high, x.show, title=price.name, ticks=x.ticks)
    said = f"{first.name} ({first.better} is better) against {price.name} ({price.better} is better)."
    return el("figure", line_chart(lines, x, y, alt=alt), el("figcaption", said))


def axis_of(values: Sequence[float], score: Score) -> Axis:
    """An axis around a score's values, in its format."""
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return Axis(low - pad, high + pad, score.show, ticks=nice_ticks(low - pad, high + pad, 6))


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


WAYS = ("Fine-tuned", "Linear probe")  # groups of scores by label fraction, in the order of their tabs


def by_labels(run: RunResult, group: str) -> list[Score]:
    """A run's scores of a group, by label fraction."""
    found = [s for s in run.scores if s.group == group and s.at is not None and s.value is not None]
    return sorted(found, key=lambda score: score.at or 0.0)


def _label_line(run: RunResult, group: str, at: float | None, color: str, marker: int) -> Line:
    points, errors, tips = [], [], []
    for score in by_labels(run, group):
        assert score.at is not None
        assert score.value is not None
        labels = f" ({h.of(score.labels, 'labels')})" if score.labels is not None else ""
        error = f" ± {200 * score.error:.1f}" if score.error is not None else ""
        points.append((score.at, score.value))
        errors.append(None if score.error is None else 2 * score.error)
        tips.append(f"{run.shown}: {100 * score.value:.1f}{error} % at {100 * score.at:g} % of labels{labels}")
    aside = is_reference(run, at)
    name = run.shown + (" (all labels)" if aside else "")
    return Line(name, points, color, errors=errors, tips=tips, marker=marker, faint=aside)


def _baseline_lines(runs: Sequence[RunResult]) -> list[Line]:
    """Baselines at the same label fractions, dashed; in the order in which the runs name them."""
    found: dict[str, dict[float, tuple[float, float | None]]] = {}
    for run in runs:
        for score in (one for group in WAYS for one in by_labels(run, group)):
            for title, value in score.baselines.items():
                assert score.at is not None
                found.setdefault(title, {})[score.at] = (value, score.errors.get(title))
    lines = []
    for i, (title, values) in enumerate(found.items()):
        points = sorted((at, value) for at, (value, _) in values.items())
        errors = [None if (e := values[at][1]) is None else 2 * e for at, _ in points]
        tips = [f"{title}: {100 * value:.1f} % at {100 * at:g} % of labels" for at, value in points]
        lines.append(Line(title, points, GREY, errors=errors, tips=tips, dash=i + 1))
    return lines


def efficiency(results: Results) -> Html | None:
    """Top-1 by label fraction: fine-tuned and linear probe, baselines dashed; bars if there is only one fraction."""
    runs, colors = results.finished, colors_of(results)
    shares = sorted({s.at or 0.0 for run in runs for group in WAYS for s in by_labels(run, group)})
    if not shares:
        return None
    base, panels = _baseline_lines(runs), []
    kinds: Mapping[str, list[Line]] = {
        group: [
            _label_line(run, group, decided_at(results), colors[run.name], results.runs.index(run))
            for run in runs
            if by_labels(run, group)
        ]
        for group in WAYS
    }
    values = [point[1] for lines in [*kinds.values(), base] for line in lines for point in line.points]
    y = _range(values, share=True)
    low, high = shares[0] * 0.85, max(shares[-1] * 1.15, shares[0] * 2)
    title = "label fraction (log scale)"
    x = Axis(low, high, lambda v: f"{100 * v:g} %", log=True, title=title, ticks=shares, kind="percent")
    for group, lines in kinds.items():
        if lines and len(shares) == 1:
            panels.append((group, _one_share([*lines, *base])))
        elif lines:
            alt = f"{group}: top-1 against the label fraction, one line per method, baselines dashed"
            note = "Bars are ± two standard errors (of the test images and of the label subsets). Dashed: baselines."
            figure = line_chart([*base, *lines], x, y, alt=alt, height=420)
            panels.append((group, el("figure", figure, el("figcaption", note))))
    return h.tabs("efficiency", panels, "Labels used for")


def _one_share(lines: list[Line]) -> Html:
    """Bars, best first: the methods, and the baselines with the same labels."""
    found: list[tuple[str, float, str, str]] = []
    for line in lines:
        (_, top1), error = line.points[0], line.errors[0]
        written = h.percent(top1) + (f" ± {100 * error:.1f}" if error else "")
        found.append((line.name, top1, written, line.color))
    return bars(sorted(found, key=lambda row: -row[1]), high=1.0)
