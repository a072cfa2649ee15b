"""The table of a comparison, for the page and the terminal: runs first, baselines below, the best of each column bold.

A run that learned from every label is in the table, but does not compete in columns with fewer labels: see
:mod:`sensorium.runs.verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sensorium.errors import SensoriumError
from sensorium.judge.score import Score
from sensorium.report import html as h
from sensorium.report.html import Html, el, join, number
from sensorium.runs.results import Results, RunResult
from sensorium.runs.verdict import decided_at, is_reference
from sensorium.training.budget import Budget

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A score of this name, or a cost; ``better`` is "" if no value is best."""

    group: str
    title: str
    value: Callable[[RunResult], Any]
    show: Callable[[Any], str]
    better: str = ""
    score: Score | None = None

    @property
    def at(self) -> float | None:
        return self.score.at if self.score else None

    def deviation(self, off: float) -> str:
        """The number after ±; two digits, where the value isn't a share."""
        return self.show(off) if self.score is None or self.score.share else f"{off:.2g}"


COSTS = (
    Column("Training", "time", lambda run: run.seconds, h.duration, "lower"),
    Column("Training", "{}/s", lambda run: run.per_second, h.count, "higher"),
    Column("Training", "memory", lambda run: run.peak_memory_mb, h.memory, "lower"),
    Column("Network", "params", lambda run: run.parameters, h.short, "lower"),
    Column("Network", "FLOPs", lambda run: run.flops_per_image, h.short, "lower"),
    Column("Network", "precision", lambda run: run.precision, str),
)


def samples(results: Results) -> str:
    """What the runs count of the data: images, tokens, pairs, frames."""
    units = {run.unit for run in results.finished if run.unit}
    return (
        units.pop()
        if len(units) == 1
        else "samples"
        if units
        else (results.data.unit or "images").split(" ")[0].rstrip(",")
    )


def equal_times(results: Results) -> bool:
    """Whether the budget of each run is a time: what a run took is then nobody's merit."""
    try:
        return (
            results.asked.budget is not None
            and not results.asked.search
            and Budget.parse(results.asked.budget).kind == "seconds"
        )
    except SensoriumError:
        return False


def each_score(runs: Sequence[RunResult]) -> list[Score]:
    """One score of each name, in the order of the first run that has it; without the best of several."""
    found: dict[str, Score] = {}
    for run in runs:
        for score in run.scores:
            if score.value is not None and not score.best_of:
                found.setdefault(score.name, score)
    return list(found.values())


def simple_models(runs: Sequence[RunResult]) -> dict[str, dict[str, float]]:
    """Baselines and references of the data: title -> score's name -> value; the same for all runs on the same data."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        for score in run.scores:
            if not score.best_of:
                for title, value in {**score.baselines, **score.references}.items():
                    found.setdefault(title, {}).setdefault(score.name, value)
    return found


def columns(results: Results) -> list[Column]:
    """The columns with a value for at least one run: scores in their groups, then costs."""
    runs = results.finished
    made = []
    for score in each_score(runs):
        title = f"{100 * score.at:g} %" if score.group and score.at is not None else score.name
        made.append(Column(score.group, title, _value_of(score.name), _shown(score), score.better, score))
    groups = list(dict.fromkeys(column.group for column in made))
    # scores that may decide, in their groups; then hints
    made.sort(
        key=lambda one: (not (one.score and one.score.decides), bool(one.group), groups.index(one.group), one.at or 0)
    )
    for cost in COSTS:
        title = cost.title.format(samples(results))
        better = "" if cost.title == "time" and equal_times(results) else cost.better
        made.append(Column(cost.group, title, cost.value, cost.show, better))
    return [column for column in made if any(column.value(run) is not None for run in runs)]


def _value_of(name: str) -> Callable[[RunResult], float | None]:
    def value(run: RunResult) -> float | None:
        score = run.score(name)
        return score.value if score else None

    return value


def _shown(score: Score) -> Callable[[float], str]:
    return (lambda value: f"{100 * value:.1f}") if score.share else (lambda value: f"{value:.4g}")


def best_of(column: Column, runs: Sequence[RunResult]) -> float | None:
    """The best value among at least two runs that compete in this column; None if there is none, or all read the same."""
    if not column.better:
        return None
    fair = [run for run in runs if not is_reference(run, column.at)]
    values = [v for v in (number(column.value(run)) for run in fair) if v is not None]
    best = max if column.better == "higher" else min
    return best(values) if len({column.show(value) for value in values}) > 1 else None


def is_best(column: Column, run: RunResult, best: float | None) -> bool:
    """Whether a run's value is bold: the best, or one that reads the same."""
    value = number(column.value(run))
    if best is None or value is None or is_reference(run, column.at):
        return False
    return column.show(value) == column.show(best)


def _off(score: Score | None) -> float | None:
    """The number after ±: the standard error over seeds if there are several, the spread over label subsets, else the
    standard error unless it is just the binomial one; None if it reads as zero, or one subset was drawn."""
    if score is None:
        return None
    spread = score.spread if score.subsets > 1 and not score.seeds else None
    off = spread or (None if score.at is not None and not score.seeds else score.error)
    return off if off and score.visible(off) else None


def _tip(score: Score | None) -> str | None:
    if score is None or score.value is None or not score.n:
        return None
    if not score.share or score.at is None:
        return h.of(score.n, score.counted)
    said = f"{h.count(round(score.value * score.n))} of {h.of(score.n, score.counted)} right"
    if score.labels is not None:
        said += f", learned from {h.of(score.labels, 'labels')}"
    return said + (
        f", mean of {score.subsets} subsets" if score.subsets > 1 else ", one subset" if score.labels else ""
    )


def _cell(column: Column, run: RunResult, best: float | None, high: float) -> Html:
    value = column.value(run)
    figure = number(value)
    if value is None or (figure is None and column.better):
        return el("td", h.MISSING, cls="none")
    score = run.score(column.score) if column.score else None
    written = column.show(value)
    shown: list[Any] = [el("b", written) if is_best(column, run, best) else written]
    if score is not None and (off := _off(score)):
        shown.append(el("small", f"±\u202f{column.deviation(off)}"))
    bar = f"--v:{100 * figure / high:.1f}%" if score and score.share and figure is not None and high else None
    sort = f"{figure:.10g}" if figure is not None else str(value)
    return el("td", shown, cls="share" if bar else None, style=bar, title=_tip(score), data_sort=sort)


def _counts(column: Column, runs: Sequence[RunResult]) -> str:
    """ "n 10,000" if all of a column's scores have the same sample count."""
    if column.score is None or not column.score.share:
        return ""
    scores = [run.score(column.score.name) for run in runs]
    found = {score.n for score in scores if score and score.n}
    return f"n {h.count(found.pop())}" if len(found) == 1 else "n differs" if found else ""


def _head(shown: list[Column], runs: Sequence[RunResult]) -> Html:
    groups, i = [el("th", cls="corner")], 0
    while i < len(shown):
        span = 1
        while i + span < len(shown) and shown[i].group and shown[i + span].group == shown[i].group:
            span += 1
        groups.append(el("th", shown[i].group, colspan=span, scope="colgroup", cls="group" if shown[i].group else None))
        i += span
    names = [el("th", el("button", "Run", type="button"), scope="col", aria_sort="none")]
    for column in shown:
        inside = [el("button", column.title, type="button"), el("small", _counts(column, runs))]
        names.append(el("th", inside, scope="col", aria_sort="none"))
    return el("thead", el("tr", groups), el("tr", names, cls="names"))


def table(results: Results, colors: Mapping[str, str]) -> Html:
    """The page's table; ``colors`` by a run's name."""
    runs, shown = results.finished, columns(results)
    bests = [best_of(column, runs) for column in shown]
    high = max((c.value(run) or 0.0 for c in shown if c.score and c.score.share for run in runs), default=0.0)
    body = []
    for run in runs:
        said: list[Any] = [el("span", run.shown, cls="name")]
        said.append(el("small", "reference: every label") if is_reference(run, decided_at(results)) else "")
        said.append(el("small", run.backbone) if run.backbone else "")
        name = el("th", said, scope="row", style=f"--c:{colors[run.name]}", data_sort=run.shown)
        cells = [_cell(column, run, best, high) for column, best in zip(shown, bests, strict=True)]
        won = results.winner is not None and run.name == results.winner.name
        body.append(el("tr", name, cells, cls="winner run" if won else "run"))
    body += [_simple_row(title, values, shown) for title, values in simple_models(runs).items()]
    for run in results.runs:
        if not run.finished:
            name = el("th", el("span", run.shown, cls="name"), scope="row", style=f"--c:{colors[run.name]}")
            why = f"{run.status}: {run.error or 'no reason given'}"
            body.append(el("tr", name, el("td", why, colspan=len(shown), cls="said"), cls="lost"))
    whole = el("table", _head(shown, runs), el("tbody", body))
    scroll = el("div", whole, cls="scroll", tabindex=0, role="region", aria_label="Table of results")
    return join([scroll, _note(results, shown)])


def _simple_row(title: str, values: Mapping[str, float], shown: Sequence[Column]) -> Html:
    cells = []
    for column in shown:
        value = values.get(column.score.name) if column.score else None
        known = value is not None
        cells.append(
            el("td", column.show(value) if known else h.MISSING, cls=None if known else "none", data_sort=f"{value:.10g}" if known else None)
        )  # fmt: skip
    return el("tr", el("th", el("span", title, cls="name"), scope="row", data_sort=title), cells, cls="base")


def _note(results: Results, shown: Sequence[Column]) -> Html:
    """The meaning of the columns, in one paragraph."""
    scores = [column.score for column in shown if column.score]
    by_label, others = ([s for s in scores if (s.at is not None) == labeled] for labeled in (True, False))
    told = ["Fractions are in percent of n."] if any(s.share for s in scores) else []
    if any(score.seeds for score in scores):
        told.append("± is the standard error over the seeds.")
    elif any(score.spread and score.subsets > 1 for score in by_label):
        one = any(score.subsets == 1 for score in by_label if score.at)
        told.append("± is the spread over label subsets" + ("; where there is none, one was drawn." if one else "."))
    elif by_label:
        told.append("One subset of the labels was drawn at each fraction.")
    if counted := "; ".join(f"{s.name}, {h.of(s.n, s.counted)}" for s in others):
        told.append(f"Each score's n: {counted}.")
    told += ["Bold is the best run of a column, where they differ."] if shown else []
    if any(column.title == "FLOPs" for column in shown):
        told.append("FLOPs are for a forward pass of one image.")
    if any(is_reference(run, decided_at(results)) for run in results.finished):
        told.append("A run that learned from every label competes only in columns with all labels.")
    return el("p", " ".join(told), cls="note")


TERMINAL = (
    "precision",
    "params",
    "FLOPs",
    "LiDAR",
    "alpha-ReQ",
)  # left out: with groups, too wide for most terminals; the page has them


def results_table(results: Results) -> Table:
    """The table for the terminal (rich)."""
    from rich.table import Table
    from rich.text import Text

    runs, every = results.finished, columns(results)
    grouped = any(column.score and column.group for column in every)
    shown = [column for column in every if not grouped or column.title not in TERMINAL]
    spread = any(score.spread and score.subsets > 1 for run in runs for score in run.scores)
    seeds = any(score.seeds for run in runs for score in run.scores)
    title = "in %, ± standard error over seeds" if seeds else "in %, ± spread over label subsets" if spread else "in %"
    drawn = Table(title=title if grouped else None, title_justify="left", pad_edge=False)
    drawn.add_column("run", no_wrap=True)
    for column in shown:
        group = f"{column.group}\n" if column.group and column.score else ""
        drawn.add_column(group + column.title, justify="right", vertical="bottom")
    for run in runs:
        cells = []
        for column in shown:
            value, score = column.value(run), run.score(column.score) if column.score else None
            bold = is_best(column, run, best_of(column, runs))
            cell = Text("" if value is None else column.show(value), "bold" if bold else "")
            off = _off(score)
            cells.append(cell.append(f" ±{column.deviation(off)}", "dim") if off else cell)
        name = Text(run.shown, "bold")
        drawn.add_row(name.append(f" {run.backbone}", "not bold dim") if run.backbone else name, *cells)
    for title, values in simple_models(runs).items():
        known = [values.get(column.score.name) if column.score else None for column in shown]
        cells = ["" if v is None else c.show(v) for v, c in zip(known, shown, strict=True)]
        drawn.add_row(Text(title, "dim"), *(Text(cell, "dim") for cell in cells))
    for run in results.runs:
        if not run.finished:
            drawn.add_row(Text(f"{run.shown}: {run.status}", style="red"))
    return drawn
