"""The report: one file that opens offline and says which method learned best from the data.

``write_report`` turns :class:`sensorium.runs.results.Results` into ``report.html``: style, script, charts and pictures are all
inside, a content security policy forbids any connection, and everything that came with the data is escaped. The charts
are SVG drawn by :mod:`sensorium.report.charts` rather than plotly's, whose script is 4.5 MB, which need the script and
don't print well, while these take a few kilobytes each.

    table      one table of scores, costs and baselines, for the page and for the terminal
    curves     label efficiency, quality, price, losses       charts     lines and bars as SVG
    classes    class by class, doubtful labels                  doubts     doubtful boxes and captions
    looks      pictures, neighbors, map                       pictures   sprite sheets and data URIs
    data       the diagnosis                                  details    settings, notes, commands, glossary
    html       markup that escapes
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

from sensorium.base.files import write_text
from sensorium.report import doubts as doubtful
from sensorium.report import html as h
from sensorium.report.classes import classes, doubts
from sensorium.report.curves import colors_of, efficiency, lengths, losses, quality, tradeoff
from sensorium.report.data import diagnosis
from sensorium.report.details import failures, glossary, notes, settings, take_away, versions
from sensorium.report.html import Html, el, join
from sensorium.report.looks import Names, maps, neighbors, pictures
from sensorium.report.pictures import Sheet, cell_size, splits
from sensorium.report.table import table
from sensorium.runs.results import Results, Winner

FILE = "report.html"
SECTIONS = {  # in the page's order: name in the navigation, heading, a line below it
    "verdict": ("Verdict", "Verdict", ""),
    "labels": ("Labels", "Label efficiency", ""),
    "quality": ("Training", "Quality while training", ""),
    "price": ("Price", "What it costs", ""),
    "lengths": ("Lengths", "Beyond the training length", ""),
    "loss": ("Losses", "Losses", "Each on its own scale: losses of different methods can't be compared."),
    "table": ("Numbers", "All numbers", ""),
    "classes": ("Classes", "Class by class", ""),
    "doubts": ("Labels in doubt", "Labels in doubt", ""),
    "boxes": ("Boxes in doubt", "Boxes in doubt", ""),
    "captions": ("Captions in doubt", "Captions in doubt", ""),
    "pictures": ("Pictures", "Pictures", ""),
    "neighbors": ("Neighbors", "Nearest neighbors", ""),
    "map": (
        "Map",
        "Map of the features",
        "Nearby images are similar. Point at a picture to enlarge it, choose a class to highlight it.",
    ),
    "data": ("Data", "The data", ""),
    "settings": ("Settings", "Settings", "Every value and its source."),
    "notes": ("Notes", "Notes and warnings", ""),
    "take": ("Take away", "Take it away", ""),
    "words": ("Method", "How it was measured", ""),
    "versions": ("Versions", "Versions", ""),
}


def write_report(results: Results, folder: Path | str, *, pixels: Any = None) -> Path:
    """Write ``folder/report.html`` from ``results`` and the runs' files in ``folder``; return its path.

    ``pixels``: the source of thumbnails: ``{"train": P, "test": P}`` or the test set's P alone, each with ``.images``
    uint8 [N, 3, S, S], ``.labels`` and ``.classes``; the indices of ``neighbors`` and ``map`` refer to them.
    """
    return write_text(Path(folder) / FILE, render(results, Path(folder), splits(pixels)))


def render(results: Results, folder: Path, pixels: dict[str, Any]) -> str:
    """The page as text."""
    near, small = (
        Sheet("near", pixels, size=cell_size(pixels, 64), limit=900),
        Sheet("map", pixels, size=cell_size(pixels, 32), limit=900),
    )
    names = Names(results, pixels)
    bodies = {
        "verdict": _verdict(results),
        "labels": efficiency(results),
        "quality": quality(results),
        "price": tradeoff(results),
        "lengths": lengths(results),
        "loss": losses(results, folder),
        "table": table(results, colors_of(results)),
        "classes": classes(results, near, names),
        "doubts": doubts(results, near, names),
        "boxes": doubtful.boxes(results, folder, names),
        "captions": doubtful.captions(results, folder),
        "pictures": pictures(results, folder),
        "neighbors": neighbors(results, near, names),
        "map": maps(results, small, names),
        "data": diagnosis(results.data),
        "settings": settings(results),
        "notes": notes(results),
        "take": take_away(results, folder),
        "words": glossary(results),
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
    return page_of(f"Sensorium: {results.data.path}", style, asset("report.js"), body)


def asset(name: str) -> str:
    return (resources.files("sensorium.report") / "assets" / name).read_text(encoding="utf-8")


def page_of(title: str, style: str, script: str, body: Html) -> str:
    """The document. The security policy allows only this script, and nothing external."""
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


def _header(results: Results) -> Html:
    data, asked = results.data, results.asked
    varied, facts = (asked.vary or "").partition("=")[0], []
    for name, value in (("training", data.train), ("test", data.test)):
        if value:
            labeled = f" ({h.count(data.labeled)} labeled)" if name == "training" and data.labeled is not None else ""
            facts.append(h.of(value, f"{name} {data.unit or 'images'}") + labeled)
    if data.classes or not data.unit:
        facts += [h.of(len(data.classes), "classes") if data.classes else "no labels"]
    facts += [f"{data.image_size} px"] if data.image_size else []
    whose = "for all methods together" if asked.search else "a value" if varied else "a method"
    facts += [f"budget {_budget(asked.budget)} {whose}"] if asked.budget else []
    facts += [results.created] if results.created else []
    methods = ", ".join(run.shown for run in results.runs)
    asks = f"Which value of {h.words(varied)} learns best from " if varied else "Which method learns best from "
    return el(
        "header",
        el("p", "Sensorium", cls="eyebrow"),
        el("h1", asks, el("span", data.path, cls="path"), "?"),
        el("p", [el("span", fact) for fact in [*facts, methods] if fact], cls="facts-line"),
    )


def _budget(given: str) -> str:
    """ "500steps" -> "500 steps"; "10m" as it is."""
    number, unit = re.fullmatch(r"([\d_.]*)\s*(.*)", given, re.S).groups()  # type: ignore[union-attr]
    return h.of(float(number.replace("_", "")), unit) if number and len(unit) > 3 else given


def _verdict(results: Results) -> Html:
    """The two sentences, the first large; a few figures; and failures, prominently."""
    winner = results.winner
    first, dot, rest = results.verdict.partition(". ")
    lines = [el("p", first + dot.strip(), cls="first"), el("p", rest, cls="second") if rest else ""]
    tiles = _tiles(results, winner) if winner else []
    shown = [el("div", el("dd", value), el("dt", name)) for name, value in tiles if value and value != h.MISSING]
    color = colors_of(results)[winner.name] if winner else "var(--muted)"
    lost = failures(results)
    alarm = el("ul", lost, cls="notes", role="alert") if lost else ""
    kind = "verdict" + ("" if winner and winner.sure else " unsure")
    return join(
        [el("div", lines, el("dl", shown, cls="tiles") if shown else "", cls=kind, style=f"--c:{color}"), alarm]
    )


def _tiles(results: Results, winner: Winner) -> list[tuple[str, str | None]]:
    """A few figures below the verdict."""
    run = results.run(winner.name)
    score = next(s for s in run.scores if winner.by in (s.name, f"{s.name}, {s.best_of}"))
    margin = None if winner.margin is None else score.gap(winner.margin)
    if margin and winner.error and score.visible(winner.error):
        margin += f" ± {score.gap(winner.error).removesuffix(' points')}"
    return [
        ("first place" if winner.sure else "first place, not significant", run.shown),
        (winner.by, score.show(winner.score)),
        (f"ahead of {winner.over}", margin),
        ("training time", h.duration(run.seconds)),
        (h.agreeing(winner.n, score.counted), h.count(winner.n) if winner.n else None),
    ]


def _footer(results: Results) -> Html:
    return el("footer", "Made by Sensorium. The same numbers are in results.json beside this file.")
