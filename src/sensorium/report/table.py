"""The table of a comparison, for the page and for the terminal: runs first, baselines below, best of each column bold.

A run that learnt from every label is in the table but out of the competition for the quality columns where fewer
labels are asked: see :mod:`sensorium.report.verdict`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sensorium.report import html as h
from sensorium.report.html import Html, el, join, number
from sensorium.report.verdict import at_fraction, is_reference, label_fractions

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """``score`` gives {"top1", ...} for shares; ``value`` a plain number; ``best`` max, min or nothing."""

    group: str
    title: str
    value: Callable[[Row], Any]
    show: Callable[[Any], str]
    best: Callable[..., float] | None = None
    score: Callable[[Row], Any] | None = None
    at: float = 0.0


def _share(group: str, title: str, get: Callable[[Row], Any], at: float) -> Column:
    def score(row: Row) -> Any:
        return get(row) or row.get("any")

    return Column(group, title, lambda row: (score(row) or {}).get("top1"), lambda v: h.percent(v)[:-2], max, score, at)


def _at(way: str, at: float) -> Callable[[Row], Any]:
    return lambda row: at_fraction(row.get(way), at)


def _get(name: str) -> Callable[[Row], Any]:
    return lambda row: row.get(name)


def rows(results: dict[str, Any]) -> tuple[list[Row], list[Row]]:
    """Finished runs, and the baselines in the same words."""
    given, base = results.get("baselines") or {}, []
    if given.get("majority"):
        base.append({"title": "Commonest class", "any": given["majority"]})
    if given.get("pixels"):
        base.append({**given["pixels"], "title": "Raw pixels"})
    base += [
        {**(scores or {}), "title": "Random weights", "backbone": b}
        for b, scores in (given.get("random") or {}).items()
    ]
    base += [
        {"finetune": scores, "title": "From scratch", "backbone": b}
        for b, scores in (given.get("scratch") or {}).items()
    ]
    return [{**run, "title": h.run_title(run)} for run in h.finished(results)], base


def columns(results: dict[str, Any]) -> list[Column]:
    """Those that at least one row fills."""
    runs, base = rows(results)
    fractions = label_fractions([*runs, *base])
    made = [_share("", "kNN", _get("knn"), 0.0)]
    for way, group in (("linear", "Linear probe"), ("finetune", "Fine-tuned")):
        made += [_share(group, f"{100 * at:g} %", _at(way, at), at) for at in fractions]
    made.append(Column("", "RankMe", _get("rankme"), h.count, max))
    made += [
        Column("Training", "time", _get("seconds"), h.duration, min),
        Column("Training", "images/s", _get("images_per_second"), h.count, max),
        Column("Training", "memory", _get("peak_memory_mb"), h.memory, min),
        Column("Network", "params", _get("parameters"), h.short, min),
        Column("Network", "FLOPs", _get("flops_per_image"), h.short, min),
        Column("Network", "precision", _get("precision"), lambda v: str(v) if v else h.MISSING),
    ]
    judged = [*runs, *(row for row in base if "any" not in row)]
    return [c for c in made if any(c.value(row) is not None for row in judged)]


def best_of(column: Column, runs: list[Row]) -> float | None:
    """The best value among the runs that compete in this column, at least two of them; None where nothing is best."""
    if column.best is None:
        return None
    fair = [r for r in runs if not (column.score and column.at < 1 and is_reference(r))]
    values = [v for v in (number(column.value(row)) for row in fair) if v is not None]
    return column.best(values) if len(values) > 1 and len(set(values)) > 1 else None


def _counts(column: Column, every: list[Row]) -> str:
    """ "n 10,000" where all of a column's scores were counted on as many images."""
    found = (
        {score["n"] for score in map(column.score, every) if score and number(score.get("n"))}
        if column.score
        else set()
    )
    return f"n {h.count(found.pop())}" if len(found) == 1 else "n differs" if found else ""


def _tip(score: dict[str, Any] | None) -> str | None:
    if not score or number(score.get("top1")) is None or not number(score.get("n")):
        return None
    said = f"{h.count(round(score['top1'] * score['n']))} of {h.count(score['n'])} test images right"
    if number(score.get("labels")) is not None:
        said += f", learnt from {h.count(score['labels'])} labels"
    seeds = score.get("seeds")
    many = len(seeds) if isinstance(seeds, list | tuple) else number(seeds)
    return said + (f", mean of {many:g} subsets" if many and many > 1 else "")


def _cell(column: Column, row: Row, best: float | None, high: float) -> Html:
    value = column.value(row)
    figure = number(value)
    if value is None or (figure is None and column.best):
        return el("td", h.MISSING, cls="none")
    score = column.score(row) if column.score else None
    std = number((score or {}).get("std"))
    shown: list[Any] = [el("b", column.show(value)) if best is not None and figure == best else column.show(value)]
    if std:
        shown.append(el("small", f"±\u202f{100 * std:.1f}"))
    bar = f"--v:{100 * figure / high:.1f}%" if score and figure is not None and high else None
    sort = f"{figure:.10g}" if figure is not None else str(value)
    return el("td", shown, cls="share" if bar else None, style=bar, title=_tip(score), data_sort=sort)


def _head(shown: list[Column], every: list[Row]) -> Html:
    groups, i = [el("th", cls="corner")], 0
    while i < len(shown):
        span = 1
        while i + span < len(shown) and shown[i].group and shown[i + span].group == shown[i].group:
            span += 1
        groups.append(el("th", shown[i].group, colspan=span, scope="colgroup", cls="group" if shown[i].group else None))
        i += span
    names = [el("th", el("button", "Run", type="button"), scope="col", aria_sort="none")]
    for column in shown:
        inside = [el("button", column.title, type="button"), el("small", _counts(column, every))]
        names.append(el("th", inside, scope="col", aria_sort="none"))
    return el("thead", el("tr", groups), el("tr", names, cls="names"))


def table(results: dict[str, Any], winner: str | None, color: Callable[[Row], str]) -> Html:
    """The page's table; ``color`` gives a run's colour."""
    runs, base = rows(results)
    shown, every = columns(results), [*runs, *base]
    bests = [best_of(column, runs) for column in shown]
    high = max((number(c.value(row)) or 0.0 for c in shown if c.score for row in every), default=0.0)
    body = []
    for row in every:
        mine = row in runs
        said: list[Any] = [el("span", row["title"], cls="name")]
        said.append(el("small", "reference: every label") if mine and is_reference(row) else "")
        said.append(el("small", row["backbone"]) if row.get("backbone") else "")
        name = el("th", said, scope="row", style=f"--c:{color(row)}" if mine else None, data_sort=row["title"])
        cells = [_cell(column, row, best, high) for column, best in zip(shown, bests, strict=True)]
        kind = ("winner " if mine and row["name"] == winner else "") + ("run" if mine else "base")
        body.append(el("tr", name, cells, cls=kind))
    for run in results.get("runs") or []:
        if run.get("status", "finished") != "finished":
            name = el("th", el("span", h.run_title(run), cls="name"), scope="row", style=f"--c:{color(run)}")
            body.append(
                el(
                    "tr",
                    name,
                    el(
                        "td",
                        f"{run.get('status')}: {run.get('error') or 'no reason given'}",
                        colspan=len(shown),
                        cls="said",
                    ),
                    cls="lost",
                )
            )
    whole = el("table", _head(shown, every), el("tbody", body))
    return el("div", whole, cls="scroll", tabindex=0, role="region", aria_label="Table of results")


TERMINAL = ("precision", "params", "FLOPs")  # too wide for most terminals; the page has them


def results_table(results: dict[str, Any]) -> Table:
    """The same table for the terminal (rich)."""
    from rich.table import Table
    from rich.text import Text

    runs, base = rows(results)
    shown = [column for column in columns(results) if column.title not in TERMINAL]
    drawn = Table(title="top-1 in %, ± spread over label subsets", title_justify="left", pad_edge=False)
    drawn.add_column("run", no_wrap=True)
    brief = {"Linear probe": "linear\n", "Fine-tuned": "tuned\n"}
    for column in shown:
        drawn.add_column(brief.get(column.group, "") + column.title, justify="right", vertical="bottom")
    for row in [*runs, *base]:
        cells = []
        for column in shown:
            value, score = column.value(row), column.score(row) if column.score else None
            cell = Text("" if value is None else column.show(value))
            if row in runs and number(value) is not None and number(value) == best_of(column, runs):
                cell.stylize("bold")
            std = number((score or {}).get("std"))
            cells.append(cell.append(f" ±{100 * std:.1f}", "dim") if std else cell)
        mine = row in runs
        name = Text(row["title"], "bold" if mine else "dim")
        drawn.add_row(name.append(f" {row['backbone']}", "not bold dim") if row.get("backbone") else name, *cells)
    for run in results.get("runs") or []:
        if run.get("status", "finished") != "finished":
            drawn.add_row(Text(f"{h.run_title(run)}: {run.get('status')}", style="red"))
    return drawn


def legend_note(results: dict[str, Any]) -> Html:
    """What the columns mean, in one paragraph."""
    said = "Shares are top-1 in per cent of the test images counted (n); ± is the spread over label subsets. Bold is the best run of a column. FLOPs are those of one image, forward."
    if any(is_reference(run) for run in h.finished(results)):
        said += " A run that learnt from every label competes only where every label is used."
    return join([el("p", said, cls="note")])
