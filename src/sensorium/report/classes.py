"""The report's classes: how well each is recognized, what is taken for what, the pictures to look at, doubtful labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sensorium.report import html as h
from sensorium.report.curves import colors_of
from sensorium.report.html import Html, el, join
from sensorium.report.looks import Names
from sensorium.report.pictures import Sheet
from sensorium.runs.results import OfClass, Results, RunResult, Suspect

MAX_ROWS, MAX_MATRIX = 40, 20  # classes of the table, and of the matrix
NAMED = 3  # weak classes, and pairs, in the sentences above


def classes(results: Results, sheet: Sheet, names: Names) -> Html | None:
    """Accuracy by class, confusions, what more labels would add, and the pictures that the model is wrong about or
    unsure of."""
    if not results.by_class:
        return None
    runs = [run for run in results.finished if any(run.name in one.right for one in results.by_class)]
    first = results.winner.name if results.winner else runs[0].name
    first = first if any(first in one.right for one in results.by_class) else runs[0].name
    rows = sorted((one for one in results.by_class if one.n), key=lambda one: one.right.get(first, 0.0))
    parts = [el("p", " ".join(_said(results, rows, first)), cls="lead"), _table(results, rows, runs, first)]
    if results.model is not None and results.model.confused:
        parts.append(_matrix(results))
        parts.append(_looked_at("Most confident errors", results.model.worst, sheet, "test", names))
        parts.append(_looked_at("Most doubtful", results.model.doubtful, sheet, "test", names))
    return join(parts)


def _said(results: Results, rows: Sequence[OfClass], first: str) -> list[str]:
    """Sentences: the weakest classes, the most frequent confusions, what more labels would add."""
    weak = [f"{one.name} ({h.percent(one.right[first], 0)})" for one in rows[:NAMED] if first in one.right]
    said = [f"{results.run(first).shown} is weakest at {', '.join(weak)}."] if len(rows) > 1 else []
    if results.model is not None and (pairs := results.model.confused[:NAMED]):
        named = [f"{_name(results, one.given)} for {_name(results, one.taken)} ({h.count(one.n)})" for one in pairs]
        said.append(f"The classifier most often takes {', '.join(named)}.")
    gains = [f"{results.run(name).shown} {100 * gain:+.1f}" for name, gain in results.doubled.items()]
    if gains:
        said.append(
            f"Twice the labels would add about {', '.join(gains)} points, as the last two label fractions suggest: "
            "accuracy rises about linearly with the logarithm of their number."
        )
    return said


def _name(results: Results, k: int) -> str:
    return results.data.classes[k] if k < len(results.data.classes) else f"class {k}"


def _table(results: Results, rows: Sequence[OfClass], runs: Sequence[RunResult], first: str) -> Html:
    """One row a class, the weakest first."""
    taken = _taken(results)
    colors = colors_of(results)
    heads = [el("th", "class", scope="col"), el("th", "training", scope="col"), el("th", "test", scope="col")]
    heads += [el("th", el("span", run.shown, style=f"--c:{colors[run.name]}", cls="dot"), scope="col") for run in runs]
    heads += [el("th", "most often taken for", scope="col")] if taken else []
    body = []
    for one in rows[:MAX_ROWS]:
        best = max(one.right.values(), default=None)
        cells = [el("th", one.name, scope="row"), el("td", h.count(one.train)), el("td", h.count(one.n))]
        for run in runs:
            share = one.right.get(run.name)
            if share is None:
                cells.append(el("td", h.MISSING))
                continue
            span = (
                f" ({h.percent(one.low[run.name], 0)} to {h.percent(one.high[run.name], 0)})"
                if run.name == first
                else ""
            )
            shown = el("b", h.percent(share, 0)) if share == best and len(runs) > 1 else h.percent(share, 0)
            cells.append(el("td", shown, el("small", span) if span else ""))
        cells += [el("td", taken.get(one.name, ""))] if taken else []
        body.append(el("tr", cells))
    more = len(rows) - MAX_ROWS
    rest = el("p", f"{h.of(more, 'more classes')} in results.json.", cls="note") if more > 0 else ""
    note = "Share of a class's test images that are right, with the best use of the labels that decides; in brackets the 95 % interval."
    table = el("table", el("thead", el("tr", heads)), el("tbody", body), cls="plain byclass")
    return join([el("p", note, cls="note"), el("div", table, cls="scroll"), rest])


def _taken(results: Results) -> dict[str, str]:
    """By class, what it is most often taken for."""
    found: dict[str, str] = {}
    for one in results.model.confused if results.model else ():
        found.setdefault(_name(results, one.given), f"{_name(results, one.taken)} ({h.count(one.n)})")
    return found


def _matrix(results: Results) -> Html:
    """Rows: the class that is given; columns: what it was taken for. Only for few classes."""
    count, model = len(results.by_class), results.model
    if model is None or not 2 < count <= MAX_MATRIX:
        return Html("")
    wrong: Counter[tuple[int, int]] = Counter({(one.given, one.taken): one.n for one in model.confused})
    heads = [el("td"), *(el("th", el("span", one.name, title=one.name), scope="col") for one in results.by_class)]
    body = []
    for given, one in enumerate(results.by_class):
        off = sum(wrong[given, taken] for taken in range(count))
        cells = [el("th", one.name, scope="row")]
        for taken in range(count):
            n = one.n - off if taken == given else wrong[given, taken]
            share = n / one.n if one.n else 0.0
            kind = "right" if taken == given else "wrong"
            title = f"{h.of(n, 'images')} of {one.name} taken for {_name(results, taken)}"
            cells.append(el("td", h.count(n) if n else "", cls=kind, style=f"--a:{min(1.0, share):.2f}", title=title))
        body.append(el("tr", cells))
    table = el("table", el("thead", el("tr", heads)), el("tbody", body), cls="confusion")
    said = el("p", "Rows: the class that is given; columns: what the classifier takes its test images for.", cls="note")
    return join([el("h3", "Confusions"), said, el("div", table, cls="scroll")])


def _looked_at(title: str, found: Sequence[Suspect], sheet: Sheet, split: str, names: Names) -> Html:
    """Pictures with the class that is given and the other one."""
    figures = []
    for one in found:
        given, likely = names.named(one.given), names.named(one.likely)
        said = f"{given} {h.percent(one.probability_given, 0)}, {likely} {h.percent(one.probability_likely, 0)}"
        picture = sheet.thumbnail(split, one.index, role="img", aria_label=f"{split} image {one.index}: {said}")
        picture = picture or el("i", f"#{one.index}", cls="nothing")
        label = el("figcaption", el("span", given), el("b", likely), h.percent(one.probability_likely, 0))
        figures.append(
            el("figure", el("span", picture, cls="thumb", title=f"{split} image {one.index}: {said}"), label)
        )
    if not figures:
        return Html("")
    lead = el(
        "p", "Below each picture: the class that is given, and in bold the other that the classifier sees.", cls="note"
    )
    return join([el("h3", title), lead, el("div", figures, cls="faces")])


def doubts(results: Results, sheet: Sheet, names: Names) -> Html | None:
    """Training pictures whose labels are doubtful."""
    found = results.suspects
    if found is None:
        return None
    if not found.count:
        return el("p", f"No label of {h.of(found.n, 'training images')} is doubted.", cls="lead")
    said = (
        f"{h.of(found.clear, 'labels')} of {h.count(found.n)} {'is' if found.clear == 1 else 'are'} in clear doubt: classifiers "
        "that did not see them find another class at least 50 points more probable. "
        f"{found.file} lists {h.count(found.count)}, with slighter doubts too, the most doubtful first: look at them from the top, and correct "
        f"or remove what is wrong. These classifiers agree with {h.percent(found.accuracy)} of all labels, so that many doubts are their own errors."
    )
    return join([el("p", said, cls="lead"), _looked_at("The most doubtful", found.shown, sheet, "train", names)])
