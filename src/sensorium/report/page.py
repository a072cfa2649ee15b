"""The report: one file that opens offline and says which method learnt best from the data.

``write_report`` turns the dictionary of results.json into ``report.html``: style, script, charts and pictures are all
inside, a content security policy forbids the page any connection, and everything that came with the data is escaped.
The charts are SVG drawn by :mod:`sensorium.report.charts` rather than plotly's, because those weigh 4.5 MB before the
first point, show nothing without a script and don't print well, while these take a few kilobytes each.

    report_results    the schema; reading, checking, writing results.json
    report_verdict    the rule for the winner, and its two sentences
    report_table      the table, for the page and for the terminal
    report_scores     verdict, table and curves of systems judged by scores of their own
    report_curves     label efficiency, quality, losses         report_charts    lines and bars as SVG
    report_looks      pictures, neighbours, map                 report_pictures  sprite sheets and data URIs
    report_data       the diagnosis                         report_details   settings, notes, commands
    report_html       markup that escapes; formats
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

from sensorium.report import html as h
from sensorium.report import scores as report_scores
from sensorium.report.curves import color_of, efficiency, lengths, losses, quality
from sensorium.report.data import diagnosis
from sensorium.report.details import failures, glossary, notes, settings, take_away, versions
from sensorium.report.html import Html, el, join, number
from sensorium.report.looks import Names, maps, neighbors, pictures
from sensorium.report.pictures import Sheet, cell_size, splits
from sensorium.report.results import RESULTS_SCHEMA, read_results, validate, write_results, write_text
from sensorium.report.table import legend_note, table
from sensorium.report.table import results_table as features_table
from sensorium.report.verdict import verdict as features_verdict

__all__ = ["RESULTS_SCHEMA", "read_results", "results_table", "validate", "verdict", "write_report", "write_results"]

FILE = "report.html"
SECTIONS = {  # in the page's order: name in the navigation, heading, a line below it
    "verdict": ("Verdict", "Verdict", ""),
    "labels": ("Labels", "How few labels will do", ""),
    "quality": ("Training", "Quality while training", ""),
    "price": ("Price", "What it costs", ""),
    "lengths": ("Lengths", "Beyond the trained length", ""),
    "loss": ("Losses", "Losses", "Each on its own scale: losses of different methods can't be compared."),
    "table": ("Numbers", "All numbers", ""),
    "pictures": ("Pictures", "What they see", ""),
    "neighbors": ("Neighbours", "Nearest neighbours", ""),
    "map": (
        "Map",
        "Map of the features",
        "Near means similar. Point at a picture to enlarge it, choose a class to find it.",
    ),
    "data": ("Data", "The data", ""),
    "settings": ("Settings", "Settings", "Every value, and where it came from."),
    "notes": ("Notes", "Notes and warnings", ""),
    "take": ("Take away", "Take it away", ""),
    "words": ("Method", "How it was measured", ""),
    "versions": ("Versions", "Versions", ""),
}


def verdict(results: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The winner and two sentences, by the rule of :mod:`sensorium.report.verdict` or of :mod:`sensorium.report.scores`."""
    return (report_scores.verdict if report_scores.judged_by_scores(results) else features_verdict)(results)


def results_table(results: dict[str, Any]) -> Any:
    """The table for the terminal (rich)."""
    return (report_scores.terminal if report_scores.judged_by_scores(results) else features_table)(results)


def write_report(results: dict[str, Any], folder: Path | str, *, pixels: Any = None) -> Path:
    """Write ``folder/report.html`` from ``results`` (checked first) and the runs' files in ``folder``; give its path.

    ``pixels`` draws the thumbnails: ``{"train": P, "test": P}`` or the test set's P alone, each with ``.images`` uint8
    [N, 3, S, S], ``.labels`` and ``.classes``; the indices of ``neighbors`` and ``map`` refer to them.
    """
    validate(results)
    return write_text(Path(folder) / FILE, render(results, Path(folder), splits(pixels)))


def render(results: dict[str, Any], folder: Path, pixels: dict[str, Any]) -> str:
    """The page as text."""
    own = report_scores.judged_by_scores(results)
    results = results if own else _with_majority(results, pixels)
    colors = {run["name"]: color_of(results, run) for run in results["runs"]}
    winner, said = verdict(results)
    near, small = (
        Sheet("near", pixels, size=cell_size(pixels, 64), limit=900),
        Sheet("map", pixels, size=cell_size(pixels, 32), limit=900),
    )
    names = Names(results, pixels)
    bodies = {
        "verdict": _verdict(results, winner, said),
        "labels": None if own else efficiency(results),
        "quality": report_scores.curves(results, colors) if own else quality(results),
        "price": report_scores.tradeoff(results, colors) if own else None,
        "lengths": lengths(results, colors),
        "loss": losses(results, folder),
        "table": report_scores.table(results, winner["name"] if winner else None, colors)
        if own
        else _table(results, winner),
        "pictures": pictures(results, folder),
        "neighbors": neighbors(results, near, names),
        "map": maps(results, small, names),
        "data": diagnosis(results),
        "settings": settings(results),
        "notes": notes(results),
        "take": take_away(results, winner, folder),
        "words": report_scores.glossary(results) if own else glossary(),
        "versions": versions(results),
    }
    main, links = [], []
    for key, (short, title, lead) in SECTIONS.items():
        if bodies[key]:
            links.append(el("a", short, href=f"#{key}"))
            main.append(
                el(
                    "section",
                    el("h2", title),
                    el("p", lead, cls="lead") if lead else "",
                    bodies[key],
                    id=key,
                    cls="part",
                )
            )
    style = asset("report.css") + near.css() + small.css()
    body = join([_header(results), el("nav", links, aria_label="Sections"), el("main", main), _footer(results)])
    return page_of(f"Sensorium: {results['data']['path']}", style, asset("report.js"), body)


def asset(name: str) -> str:
    return (resources.files("sensorium.report") / "assets" / name).read_text(encoding="utf-8")


def page_of(title: str, style: str, script: str, body: Html) -> str:
    """The document. The policy admits this very script and nothing from anywhere else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = [
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(style)),
    ]
    html = el("html", el("head", join(head, "\n")), "\n", el("body", body, el("script", Html(script))), lang="en")
    return f"<!doctype html>\n{html}\n"


def _header(results: dict[str, Any]) -> Html:
    data, asked = results["data"], results.get("asked") or {}
    facts = []
    for name, value in (("training", data.get("train")), ("test", data.get("test"))):
        if number(value):
            facts.append(f"{h.count(value)} {name} {data.get('unit') or 'images'}")
    if data.get("classes") or not data.get("unit"):
        facts += [f"{len(data['classes'])} classes" if data.get("classes") else "no labels"]
    facts += [f"{data['image_size']} px"] if data.get("image_size") else []
    facts += [f"budget {asked['budget']} a method"] if asked.get("budget") else []
    facts += [str(results["created"])] if results.get("created") else []
    methods = ", ".join(h.run_title(run) for run in results["runs"])
    varied = str(asked.get("vary") or "").partition("=")[0]
    asks = f"Which {h.words(varied)} learns best from " if varied else "Which method learns best from "
    return el(
        "header",
        el("p", "Sensorium", cls="eyebrow"),
        el("h1", asks, el("span", data["path"], cls="path"), "?"),
        el("p", [el("span", fact) for fact in [*facts, methods] if fact], cls="facts-line"),
    )


def _verdict(results: dict[str, Any], winner: dict[str, Any] | None, said: str) -> Html:
    """The two sentences, the first large; a few figures; and what went wrong, where nobody can miss it."""
    first, dot, rest = said.partition(". ")
    lines = [el("p", first + dot.strip(), cls="first"), el("p", rest, cls="second") if rest else ""]
    figures = report_scores.tiles if report_scores.judged_by_scores(results) else _tiles
    tiles = figures(results, winner) if winner else []
    shown = [el("div", el("dd", value), el("dt", name)) for name, value in tiles if value and value != h.MISSING]
    color = color_of(results, {"name": winner["name"]}) if winner else "var(--muted)"
    lost = failures(results)
    alarm = el("ul", lost, cls="notes", role="alert") if lost else ""
    kind = "verdict" + ("" if winner and winner["sure"] else " unsure")
    return join(
        [el("div", lines, el("dl", shown, cls="tiles") if shown else "", cls=kind, style=f"--c:{color}"), alarm]
    )


def _tiles(results: dict[str, Any], winner: dict[str, Any]) -> list[tuple[str, str | None]]:
    run = next(run for run in results["runs"] if run["name"] == winner["name"])
    error = f" ± {100 * winner['error']:.1f}" if winner.get("error") else ""
    margin = f"{100 * winner['margin']:+.1f}{error}" if winner.get("margin") is not None else None
    return [
        ("first place" if winner["sure"] else "first place, not sure", h.run_title(run)),
        (f"top-1, {winner['by'].replace('finetune', 'fine-tuned').replace('%', ' %')}", h.percent(winner["score"])),
        (f"points ahead of {winner.get('over')}", margin),
        ("training time", h.duration(run.get("seconds"))),
        ("test images counted", h.count(winner["n"]) if winner.get("n") else None),
    ]


def _table(results: dict[str, Any], winner: dict[str, Any] | None) -> Html:
    name = winner["name"] if winner else None
    return join([table(results, name, lambda row: color_of(results, row)), legend_note(results)])


def _footer(results: dict[str, Any]) -> Html:
    return el("footer", "Made by Sensorium. The same numbers are in results.json beside this file.")


def _with_majority(results: dict[str, Any], pixels: dict[str, Any]) -> dict[str, Any]:
    """Add the commonest class as a baseline where labels allow it and nobody has counted it yet."""
    given = results.get("baselines") or {}
    labels = {split: getattr(part, "labels", None) for split, part in pixels.items()}
    train, test = labels.get("train"), labels.get("test")
    if given.get("majority") or train is None or test is None or not results["data"].get("classes"):
        return results
    known = [int(label) for label in test if label >= 0]
    learnt = Counter(int(label) for label in train if label >= 0)
    if not known or not learnt:
        return results
    common = learnt.most_common(1)[0][0]
    score = {"top1": sum(label == common for label in known) / len(known), "n": len(known)}
    return {**results, "baselines": {**given, "majority": score}}
