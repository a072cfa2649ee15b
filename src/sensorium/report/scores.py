"""A comparison of systems that are judged by scores of their own: bits per byte, average precision, distances, recall.

Every run carries ``scores`` (:class:`sensorium.judge.score.Score` as dictionaries), the deciding one first, each with what
simple models of the same data come to. From these follow the verdict, the table, the curves and, where a second score
is a price of the first (``price``), one against the other. The rule: the best deciding score wins, if it beats its own
baselines; it is sure only where both scores have an error and are more than two of them apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sensorium.report import html as h
from sensorium.report.charts import Axis, Line, line_chart, nice_ticks, time_ticks
from sensorium.report.html import Html, el, join, number, run_title

if TYPE_CHECKING:
    from rich.table import Table

COSTS = (
    ("time", "seconds", h.duration),
    ("samples/s", "images_per_second", h.count),
    ("memory", "peak_memory_mb", h.memory),
    ("params", "parameters", h.short),
)


def judged_by_scores(results: dict[str, Any]) -> bool:
    return results.get("judged") == "scores"


def show(score: dict[str, Any], value: float) -> str:
    return h.percent(value) if score.get("share") else f"{value:.4g}"


def scored(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished runs that have a deciding score, best first."""
    runs = [run for run in h.finished(results) if run.get("scores") and number(run["scores"][0]["value"]) is not None]
    return sorted(runs, key=lambda run: _sign(run["scores"][0]) * run["scores"][0]["value"], reverse=True)


def verdict(results: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """``({"name", "by", "score", "n", "margin", "sure", "over", "error"} | None, two sentences)`` by the module's rule."""
    runs = scored(results)
    if not runs:
        return None, "No run could be judged. Mend what each run's error says and run the same command again."
    best = runs[0]
    first = best["scores"][0]
    if any((one["name"], one["counted"]) != (first["name"], first["counted"]) for one in _firsts(runs)):
        said = "; ".join(f"{run_title(run)}: {_told(one)}" for run, one in zip(runs, _firsts(runs), strict=True))
        return None, f"No verdict: the runs were not judged by the same measure. {said}."
    better = f"{first['better']} is better; {h.count(first['n'])} {first['counted']}"
    told = f"{first['name']} {show(first, first['value'])} ({better})"
    beside = first.get("baselines") or {}
    bar = (max if first["better"] == "higher" else min)(beside, key=lambda name: beside[name], default=None)
    if bar is not None and _sign(first) * (first["value"] - beside[bar]) <= 0:
        said = f"No run beat the simple models: the best is {run_title(best)}, {told}, while {bar} comes to"
        return None, f"{said} {show(first, beside[bar])}. {_cost(best)}"
    other = runs[1]["scores"][0] if len(runs) > 1 else None
    margin = abs(first["value"] - other["value"]) if other else None
    error = None
    if other and first.get("error") is not None and other.get("error") is not None:
        error = 2 * math.hypot(first["error"], other["error"])
    sure = error is not None and margin is not None and margin > error
    lead = f"{run_title(best)} comes first: {told}"
    if other and margin is not None:
        lead += f", {_gap(first, margin)} ahead of {run_title(runs[1])}"
        if error is not None:
            lead += f" ({'clearly' if sure else 'not surely'}: chance alone could make {_gap(first, error)})"
    if bar is not None:
        lead += f"; the best simple model, {bar}, comes to {show(first, beside[bar])}"
    winner = {
        "name": best["name"], "by": first["name"], "score": first["value"], "n": first["n"], "margin": margin,
        "sure": sure, "over": run_title(runs[1]) if other else None, "error": error,
    }  # fmt: skip
    unsure = (
        "" if error is not None or not other else " Each was trained once: try another --seed before you rely on it."
    )
    return winner, f"{lead}. {_cost(best)}{unsure}"


def tiles(results: dict[str, Any], winner: dict[str, Any]) -> list[tuple[str, str | None]]:
    """A few figures below the verdict."""
    run = next(run for run in results["runs"] if run["name"] == winner["name"])
    first = run["scores"][0]
    margin = winner.get("margin")
    return [
        ("first place", run_title(run)),
        (first["name"], show(first, first["value"])),
        (f"ahead of {winner.get('over')}", _gap(first, margin) if margin is not None else None),
        ("training time", h.duration(run.get("seconds"))),
        (first["counted"], h.count(first["n"])),
    ]


def table(results: dict[str, Any], winner: str | None, colors: dict[str, str]) -> Html:
    """Runs first, then what simple models come to in each score."""
    names, body = _score_names(results), []
    for run in results.get("runs") or []:
        style = f"--c:{colors.get(run['name'], 'var(--muted)')}"
        head = el("th", el("span", run_title(run), cls="name"), scope="row", style=style)
        if run not in h.finished(results):
            said = f"{run.get('status')}: {run.get('error') or 'no reason given'}"
            body.append(el("tr", head, el("td", said, colspan=len(names) + len(COSTS), cls="said"), cls="lost"))
            continue
        own = {score["name"]: score for score in run.get("scores") or []}
        cells = [_cell(own.get(name), _best(results, name)) for name in names]
        cells += [el("td", shown(run.get(key)), data_sort=str(run.get(key) or "")) for _, key, shown in COSTS]
        body.append(el("tr", head, cells, cls="winner run" if run["name"] == winner else "run"))
    for title, scores in _simple(results).items():
        cells = [el("td", scores.get(name) or h.MISSING, cls=None if name in scores else "none") for name in names]
        empty = [el("td", h.MISSING, cls="none") for _ in COSTS]
        body.append(el("tr", el("th", el("span", title, cls="name"), scope="row"), cells, empty, cls="base"))
    heads = [el("th", el("button", "Run", type="button"), scope="col", aria_sort="none")]
    for name in [*names, *(title for title, _, _ in COSTS)]:
        heads.append(el("th", el("button", name, type="button"), scope="col", aria_sort="none"))
    whole = el("table", el("thead", el("tr", heads, cls="names")), el("tbody", body))
    note = "What each score counts: " + "; ".join(
        f"{s['name']}, {h.count(s['n'])} {s['counted']}" for s in _each(results)
    )
    scroll = el("div", whole, cls="scroll", tabindex=0, role="region", aria_label="Table of results")
    return join([scroll, el("p", note + ". Bold is the best run of a column.", cls="note")])


def terminal(results: dict[str, Any]) -> Table:
    """The same table for the terminal (rich)."""
    from rich.table import Table
    from rich.text import Text

    names = _score_names(results)
    drawn = Table(pad_edge=False)
    drawn.add_column("run", no_wrap=True)
    for name in [*names, *(title for title, _, _ in COSTS)]:
        drawn.add_column(name, justify="right", vertical="bottom")
    for run in results.get("runs") or []:
        if run not in h.finished(results):
            drawn.add_row(Text(f"{run_title(run)}: {run.get('status')}", style="red"))
            continue
        own = {score["name"]: score for score in run.get("scores") or []}
        cells = []
        for name in names:
            value = own[name]["value"] if name in own else None
            shown = "" if value is None else show(own[name], value)
            cells.append(Text(shown, "bold" if value is not None and value == _best(results, name) else ""))
        drawn.add_row(Text(run_title(run), "bold"), *cells, *(shown(run.get(key)) for _, key, shown in COSTS))
    for title, scores in _simple(results).items():
        drawn.add_row(Text(title, "dim"), *(Text(scores.get(name, ""), "dim") for name in names))
    return drawn


def curves(results: dict[str, Any], colors: dict[str, str]) -> Html | None:
    """The deciding score against time and against samples seen, as it was looked at during training."""
    panels = []
    for title, across in (("by time", "seconds"), ("by samples seen", "images")):
        lines, first = [], None
        for run in results["runs"]:
            score = next((s for s in run.get("scores") or [] if s.get("curve")), None)
            points = [
                (number(p.get(across)), number(p.get((score or {}).get("curve")))) for p in run.get("curve") or []
            ]
            known = sorted((a, b) for a, b in points if a is not None and b is not None)
            if score and known:
                first = first or score
                lines.append(Line(run_title(run), known, colors[run["name"]], marker=len(lines)))
        if first:
            panels.append((title, _curve_panel(first, lines, across)))
    return h.tabs("quality", panels, "Quality against") if panels else None


def tradeoff(results: dict[str, Any], colors: dict[str, str]) -> Html | None:
    """The deciding score against its price, a mark a run: where a second score is marked as one."""
    lines, named = [], None
    for run in scored(results):
        price = next((s for s in run["scores"][1:] if s.get("price")), None)
        if price is not None and number(price["value"]) is not None:
            named = named or (run["scores"][0], price)
            at = (price["value"], run["scores"][0]["value"])
            lines.append(Line(run_title(run), [at], colors[run["name"]], marker=len(lines)))
    if not named or len(lines) < 2:
        return None
    first, price = named
    x, y = (_axis([p[i] for line in lines for p in line.points], score) for i, score in ((0, price), (1, first)))
    alt = f"{first['name']} against {price['name']}, a mark a run"
    x = Axis(x.low, x.high, x.show, title=price["name"], ticks=x.ticks)
    said = f"{first['name']} ({first['better']} is better) against {price['name']} ({price['better']} is better)."
    return el("figure", line_chart(lines, x, y, alt=alt), el("figcaption", said))


def glossary(results: dict[str, Any]) -> Html:
    """What was counted, and the rule."""
    said = [
        (s["name"], f"{s['better']} is better; counted over {h.count(s['n'])} {s['counted']}.") for s in _each(results)
    ]
    rule = "The best deciding score (the first) wins if it beats what simple models of the same data come to. "
    seeds = max((len(s.get("seeds") or []) for s in _each(results)), default=0)
    rule += (
        f"Each was trained {seeds} times; figures are means, errors those of the means, so the luck of the seed is in them."
        if seeds > 1
        else "Each run was trained once, so the luck of its seed is not in it."
    )
    every = [*said, ("How the winner is found", rule)]
    return el("dl", [el("div", el("dt", name), el("dd", text)) for name, text in every], cls="glossary")


def _curve_panel(first: dict[str, Any], lines: list[Line], across: str) -> Html:
    end = max(point[0] for line in lines for point in line.points) or 1.0
    beside = first.get("baselines") or {}
    flat = [Line(name, [(0.0, v), (end, v)], "var(--base)", dash=i + 2) for i, (name, v) in enumerate(beside.items())]
    lines = [*lines, *flat]
    timed = across == "seconds"
    title = "training time" if timed else "samples seen"
    ticks = time_ticks(0, end) if timed else []
    x = Axis(0.0, end, h.duration if timed else h.short, title=title, ticks=ticks, kind="time" if timed else "count")
    y = _axis([p[1] for line in lines for p in line.points], first)
    said = f"{first['name']} ({first['better']} is better) on a part of the held-out data, during training. Dashed: simple models, on all of it."
    return el("figure", line_chart(lines, x, y, alt=f"{first['name']} against {title}"), el("figcaption", said))


def _axis(values: list[float], score: dict[str, Any]) -> Axis:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    low, high = low - pad, high + pad
    return Axis(low, high, lambda v: show(score, v), ticks=nice_ticks(low, high, 6))


def _cell(score: dict[str, Any] | None, best: float | None) -> Html:
    value = number(score["value"]) if score else None
    if score is None or value is None:
        return el("td", h.MISSING, cls="none")
    written = show(score, value)
    shown: list[Any] = [el("b", written) if value == best else written]
    if number(score.get("error")):
        shown.append(el("small", f"± {show(score, score['error']).removesuffix(' %')}"))
    return el("td", shown, data_sort=f"{value:.10g}", title=f"{h.count(score['n'])} {score['counted']}")


def _each(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One score of each name, in the order of the first run that has it."""
    found: dict[str, dict[str, Any]] = {}
    for run in h.finished(results):
        for score in run.get("scores") or []:
            found.setdefault(score["name"], score)
    return list(found.values())


def _score_names(results: dict[str, Any]) -> list[str]:
    return [score["name"] for score in _each(results)]


def _best(results: dict[str, Any], name: str) -> float | None:
    found = [s for run in h.finished(results) for s in run.get("scores") or [] if s["name"] == name]
    values = [number(s["value"]) for s in found]
    known = [v for v in values if v is not None]
    return (max if found[0]["better"] == "higher" else min)(known) if len(known) > 1 else None


def _simple(results: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What simple models come to: title -> score's name -> written value. Runs on the same data have the same."""
    found: dict[str, dict[str, str]] = {}
    for run in h.finished(results):
        for score in run.get("scores") or []:
            for title, value in {**(score.get("baselines") or {}), **(score.get("references") or {})}.items():
                found.setdefault(title, {}).setdefault(score["name"], show(score, value))
    return found


def _firsts(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run["scores"][0] for run in runs]


def _told(score: dict[str, Any]) -> str:
    return f"{score['name']} {show(score, score['value'])} over {h.count(score['n'])} {score['counted']}"


def _sign(score: dict[str, Any]) -> int:
    return 1 if score["better"] == "higher" else -1


def _gap(score: dict[str, Any], value: float) -> str:
    return f"{100 * value:.1f} points" if score.get("share") else f"{value:.3g}"


def _cost(run: dict[str, Any]) -> str:
    price = [h.duration(run["seconds"])] if number(run.get("seconds")) is not None else []
    price += [f"{h.memory(run['peak_memory_mb'])} of memory"] if number(run.get("peak_memory_mb")) is not None else []
    return f"{run_title(run)} took {' and '.join(price)}." if price else "Its cost was not measured."
