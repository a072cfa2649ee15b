"""The report's doubtful boxes and captions: counts, and the most doubtful to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sensorium.report import html as h
from sensorium.report.html import Html, el, join
from sensorium.report.looks import Names
from sensorium.report.pictures import inline_file
from sensorium.runs.results import BoxSuspect, CaptionSuspect, Results

KINDS = {  # of a box: heading, what the detector says
    "missing": ("Missing", "The detector finds an object where no box is."),
    "swapped": ("Another class", "It finds an object of another class there."),
    "misplaced": ("Misplaced", "It finds the object beside the box."),
    "unconfirmed": ("Unconfirmed", "It finds nothing of the class there, or is unsure: the object may only be hard to see."),
}  # fmt: skip
BY_HEART = 0.001  # of the other captions that fit better, as of a model that has seen each pair very often
SEEN = (
    "The model has learned from what it judges here, errors included, so that it doubts too few rather than too many, the fewer the "
    "longer it was trained."
)


def boxes(results: Results, folder: Path, names: Names) -> Html | None:
    """Training boxes that the best detector contradicts, with crops."""
    found = results.box_suspects
    if found is None:
        return None
    looked = f"{h.of(found.n, 'boxes')} in {h.of(found.pictures, 'training pictures')}"
    if found.pictures < found.of:
        looked += f" (of {h.count(found.of)}; there was no time for more)"
    by = results.run(found.run).shown
    if not found.count:
        return el("p", f"{by} doubts none of the {looked}. {SEEN}", cls="lead")
    counts = ", ".join(f"{h.count(n)} {kind}" for kind, n in found.kinds.items() if n)
    said = (
        f"{by} was compared with {looked}: {counts}, {h.count(found.clear)} of them clearly. {found.file} lists all, the most doubtful "
        f"first: look at them from the top, and correct what is wrong. {SEEN}"
    )
    parts: list[Html] = [el("p", said, cls="lead")]
    legend = el("p", "Orange: the box as annotated; blue: the box that the detector finds.", cls="note")
    for kind, (title, meaning) in KINDS.items():
        figures = [_crop(one, folder, names) for one in found.shown if one.kind == kind]
        if figures:
            parts += [el("h3", title), el("p", meaning, cls="note"), el("div", figures, cls="faces crops")]
    return join([parts[0], legend, *parts[1:]] if found.shown else parts)


def _crop(one: BoxSuspect, folder: Path, names: Names) -> Html:
    given, likely = (None if k is None else names.named(k) for k in (one.given, one.likely))
    words = [el("span", given or "no box")]
    if likely is not None and likely != given:
        words.append(el("b", likely))
    words.append(Html(f"{h.percent(one.doubt, 0)}"))
    said = f"training picture {one.index}: {given or 'no box'}, found {likely or 'nothing'}"
    return el("figure", _picture(folder, one.file, said), el("figcaption", words))


def captions(results: Results, folder: Path) -> Html | None:
    """Training pairs whose captions the best model finds far from their pictures."""
    found = results.caption_suspects
    if found is None:
        return None
    looked = h.of(found.n, "training pairs") + (
        f" (of {h.count(found.of)}; there was no time for more)" if found.n < found.of else ""
    )
    by = results.run(found.run).shown
    usual = f"Of all pairs, {h.percent(found.usual, 0)} of the other captions fit the picture better, in the median."
    if found.usual < BY_HEART:
        usual += " It may know the pairs by heart: a shorter training, or one with more pairs, then doubts more."
    if not found.count:
        return el("p", f"{by} finds no pair of the {looked} far below the others. {usual} {SEEN}", cls="lead")
    said = (
        f"{by} finds {h.of(found.count, 'pairs')} of the {looked} less similar than the rest, {h.count(found.clear)} of them far less. "
        f"{found.file} lists them, the most doubtful first. {usual} {SEEN}"
    )
    note = el("p", "Below each picture: its caption, and in bold the nearest caption of another picture.", cls="note")
    return join([el("p", said, cls="lead"), note, el("div", _pairs(found.shown, folder), cls="faces crops")])


def _pairs(shown: Sequence[CaptionSuspect], folder: Path) -> list[Html]:
    return [
        el(
            "figure",
            _picture(folder, one.file, f"training pair {one.index}: {one.caption}"),
            el("figcaption", el("span", one.caption), el("b", one.nearest)),
        )
        for one in shown
    ]


def _picture(folder: Path, file: str, said: str) -> Html:
    """A picture of the comparison's folder; a sign in its place if it is gone."""
    found = inline_file(folder, file)
    return (
        el("i", "gone", cls="nothing", title=said) if found is None else el("img", src=found[0], alt=said, title=said)
    )
