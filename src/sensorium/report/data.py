"""The data's diagnosis in the report: advice first, facts in a row, classes as bars, then problems.

It reads the output of :func:`sensorium.data.images.diagnose.diagnose`; an unknown part is shown by its type: counts as
bars, other mappings as facts, lists as lists.
"""

from __future__ import annotations

from typing import Any

from sensorium.report import html as h
from sensorium.report.charts import bars
from sensorium.report.html import Html, el, facts, join, number, sentence, words
from sensorium.runs.results import Data

LONG = 8  # maximum entries of a list that are shown
MANY = 40  # maximum bars of a chart
STATISTICS = {
    "min",
    "max",
    "mean",
    "median",
    "std",
    "total",
    "ratio",
    "different",
}  # numbers that are not counts of parts
CHECKS = (  # (path into the findings, titles of several and of one, path of its examples)
    ("broken", "files that can't be read", "file that can't be read", "broken"),
    ("overlap.exact", "test images that are also in the training set", "test image that is also in the training set", "overlap.exact_examples"),
    ("overlap.near", "test images with a near copy in the training set", "test image with a near copy in the training set", "overlap.near_examples"),
    ("duplicates.count", "copies within the training set", "copy within the training set", "duplicates.examples"),
    ("near_duplicates.count", "near copies within the training set", "near copy within the training set", "near_duplicates.examples"),
    ("conflicts.count", "equal images with different labels", "equal image with another label", "conflicts.examples"),
    ("dark.count", "images of more than 8 bits that are nearly black", "image of more than 8 bits that is nearly black", "dark.examples"),
    ("constant.count", "images of one color", "image of one color", "constant.examples"),
    ("quality.blurred.count", "blurred images", "blurred image", "quality.blurred.examples"),
    ("quality.dark.count", "dark images", "dark image", "quality.dark.examples"),
    ("quality.bright.count", "images that are nearly white", "image that is nearly white", "quality.bright.examples"),
    ("quality.little_information.count", "images of little information", "image of little information", "quality.little_information.examples"),
    ("quality.odd_shape.count", "images of an odd shape", "image of an odd shape", "quality.odd_shape.examples"),
    ("quality.odd_size.count", "images of an odd size", "image of an odd size", "quality.odd_size.examples"),
)  # fmt: skip
KNOWN = {
    "path",
    "kind",
    "unit",
    "layout",
    "counts",
    "decoded",
    "sizes",
    "modes",
    "classes",
    "imbalance",
    "notes",
    "advice",
    "train",
    "test",
    "dropped",
    "usual",  # told in the notes
}


def diagnosis(data: Data) -> Html:
    """The section's content: the findings of the data's reader, and the diagnosis if there is one."""
    found: dict[str, Any] = data.findings | (data.diagnosis or {})
    told = [*_lines(found.get("advice")), *_lines(found.get("notes"))]
    checks = [check for check in (_check(found, *named) for named in CHECKS) if check]
    blocks = [
        _classes(found.get("classes")),
        _block("Color modes", found.get("modes")),
        _common(found.get("sizes")),
        el("section", el("h3", "What is wrong"), el("ul", checks, cls="checks")) if checks else None,
    ]
    seen = KNOWN | {path.split(".")[0] for path, *_ in CHECKS if _look(found, path) is not None}
    blocks += [_block(name, value) for name, value in found.items() if name not in seen]
    advice = el("ul", [el("li", line) for line in told], cls="advice") if told else ""
    return el("div", advice, facts(_facts(data, found)), el("div", [block for block in blocks if block], cls="columns"))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _facts(data: Data, found: dict[str, Any]) -> dict[str, Any]:
    sizes, imbalance, decoded = (_mapping(found.get(name)) for name in ("sizes", "imbalance", "decoded"))
    ratio = number(imbalance.get("ratio"))
    given = {
        "layout": data.layout,
        f"training {data.unit or 'images'}": data.train,
        f"test {data.unit or 'images'}": data.test,
        "looked at": sum(number(n) or 0 for n in decoded.values()) or None,
        "classes": len(data.classes) or None,
        "tokens": data.tokens,
        "sizes on disk": _sizes(sizes),
        "trained at": f"{data.image_size} px" if data.image_size else None,
        "largest to smallest class": f"{ratio:.3g} : 1" if ratio else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _size(value: Any) -> str | None:
    """[32, 24] -> "32 × 24"."""
    if isinstance(value, list | tuple) and len(value) == 2 and None not in map(number, value):
        return " × ".join(h.count(v) for v in value)
    return None


def _sizes(sizes: dict[str, Any]) -> str | None:
    low, middle, high = (_size(sizes.get(name)) for name in ("min", "median", "max"))
    if not (low and high):
        return None
    return low if low == high else f"{low} to {high}" + (f", median {middle}" if middle else "")


def _look(found: dict[str, Any], path: str) -> Any:
    value: Any = found
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _check(found: dict[str, Any], path: str, called: str, one: str, where: str) -> Html | None:
    """One possible problem: its count, and examples; None if it was not checked."""
    counted, examples = _look(found, path), _look(found, where)
    examples = examples if isinstance(examples, list | tuple) else []
    many = len(counted) if isinstance(counted, list | tuple) else number(counted)
    if many is None:
        return None
    if not many:
        return el("li", f"no {called}", cls="fine")
    head = [el("b", h.count(many)), f" {one if many == 1 else called}"]
    if not examples:
        return el("li", head, cls="wrong")
    shown = el("ul", [el("li", sentence(line, between=" = ")) for line in examples[:200]], cls="lines")
    return el("li", el("details", el("summary", head), shown), cls="wrong")


def _classes(classes: Any) -> Html | None:
    """Images per class: bars of the training set, the test set's as text."""
    rows = []
    for entry in classes if isinstance(classes, list | tuple) else []:
        train = number(entry.get("train")) if isinstance(entry, dict) else None
        if train is not None:
            test = number(entry.get("test"))
            rows.append(
                (
                    str(entry.get("name")),
                    train,
                    h.count(train) + (f" + {h.count(test)}" if test is not None else ""),
                    "var(--s0)",
                )
            )
    if not rows:
        return _block("Classes", classes) if isinstance(classes, dict) else None
    both = " (training + test)" if any(" + " in row[2] for row in rows) else ""
    return el("section", el("h3", f"Images a class{both}"), _bars(rows))


def _common(sizes: Any) -> Html | None:
    """The most common sizes, if there are several."""
    listed = sizes.get("common") if isinstance(sizes, dict) else None
    rows = [(_size(e.get("size")), number(e.get("images"))) for e in listed or [] if isinstance(e, dict)]
    known = [(size, n, h.count(n), "var(--s0)") for size, n in rows if size and n is not None]
    if len(known) < 2:
        return None if known or listed else _block("Sizes", sizes)
    different = number(sizes.get("different"))
    title = f"Most common of {h.count(different)} sizes" if different and different > len(known) else "Sizes"
    return el("section", el("h3", title), _bars(known))


def _bars(rows: list[tuple[str, float, str, str]]) -> Html:
    """All of the rows, or only the largest and the smallest if there are very many."""
    if len(rows) <= MANY:
        return bars(rows)
    ranked = sorted(rows, key=lambda row: -row[1])
    said = f"The {MANY // 2} largest and the {MANY // 2} smallest of {h.count(len(rows))}."
    return join([el("p", said, cls="note"), bars([*ranked[: MANY // 2], *ranked[-MANY // 2 :]])])


def _lines(value: Any) -> list[str]:
    if not value:
        return []
    return [value] if isinstance(value, str) else [sentence(line) for line in value]


def _block(name: str, value: Any) -> Html | None:
    """A finding of any type; None if it is empty."""
    if not value:
        return None
    title = el("h3", words(name))
    if isinstance(value, dict):
        numbers = {str(k): n for k, n in ((k, number(v)) for k, v in value.items()) if n is not None}
        whole = len(numbers) == len(value) and min(numbers.values()) >= 0 and not STATISTICS & set(numbers)
        if whole:
            return el("section", title, _bars([(k, n, h.count(n), "var(--s0)") for k, n in numbers.items()]))
        deep = {k: v for k, v in value.items() if isinstance(v, dict | list | tuple)}
        flat = facts({words(str(k)): v for k, v in value.items() if k not in deep})
        return el("section", title, flat, [block for block in (_block(str(k), v) for k, v in deep.items()) if block])
    if not isinstance(value, list | tuple):
        return el("section", title, el("p", sentence(value)))
    lines = [el("li", sentence(line)) for line in value[:200]]
    rest = (
        el("details", el("summary", f"{h.count(len(value) - LONG)} more"), el("ul", lines[LONG:]))
        if len(value) > LONG
        else ""
    )
    return el("section", title, el("ul", lines[:LONG], cls="lines"), rest)
