"""Markup for the report: escaped by default, and numbers as people read them.

``el`` builds one element; whatever is not already :class:`Html` is text and gets escaped, attributes too, so that a
class name, a path or an error message can't become markup.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

MISSING = "–"
VOID = frozenset({"br", "hr", "img", "input", "meta"})


class Html(str):
    """Markup that is already safe to write."""

    __slots__ = ()


def text(value: Any) -> Html:
    """Escape one value; :class:`Html` passes, ``None`` and ``False`` vanish, iterables are joined."""
    if isinstance(value, Html):
        return value
    if value is None or value is False:
        return Html("")
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | dict):
        return join(value)
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Escape and join; ``between`` is markup."""
    return Html(between.join(text(part) for part in parts))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """One element. ``cls`` is class, ``_`` in a name is ``-``; ``True`` writes a bare attribute, ``None`` and ``False`` none."""
    written = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = "class" if name == "cls" else name.rstrip("_").replace("_", "-")
        written.append(name if value is True else f'{name}="{html.escape(str(value), quote=True)}"')
    opening = "<" + " ".join(written) + ">"
    return Html(opening) if tag in VOID else Html(f"{opening}{join(children)}</{tag}>")


def tabs(key: str, panels: list[tuple[str, Html]], label: str) -> Html:
    """Panels behind radio buttons: they switch without a script, by mouse and by arrow keys. One panel stands alone."""
    if len(panels) == 1:
        return panels[0][1]
    inputs = []
    for i, (name, _) in enumerate(panels):
        inputs.append(el("input", type="radio", name=key, id=f"{key}-{i}", checked=i == 0))
        inputs.append(el("label", name, for_=f"{key}-{i}"))
    shown = [el("div", panel, cls="panel", data_name=name) for name, panel in panels]
    return el("div", join(inputs), el("div", join(shown), cls="panels"), cls="tabs", role="group", aria_label=label)


def number(value: Any) -> float | None:
    """A finite float, or None for whatever is none (None, NaN, text, booleans)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def percent(value: Any, digits: int = 1) -> str:
    """0.5412 -> "54.1 %"."""
    share = number(value)
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def count(value: Any) -> str:
    """12345 -> "12,345"; a broken number keeps three digits."""
    n = number(value)
    if n is None:
        return MISSING
    return f"{n:,.0f}" if n == int(n) or abs(n) >= 1000 else f"{n:.3g}"


def short(value: Any) -> str:
    """2800000 -> "2.8 M"; three significant digits."""
    n = number(value)
    if n is None:
        return MISSING
    for power, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(n) >= 0.9995 * power:
            return f"{n / power:.3g}{unit}"
    return f"{n:.3g}"


def duration(value: Any) -> str:
    """Seconds -> "48 s", "10 min", "10 min 5 s", "2 h 3 min"."""
    n = number(value)
    if n is None:
        return MISSING
    if n < 10:
        return f"{n:.3g} s"
    seconds = round(n)
    if seconds < 60:
        return f"{seconds} s"
    big, small, names = (
        (seconds // 60, seconds % 60, "min s") if seconds < 3600 else (seconds // 3600, seconds % 3600 // 60, "h min")
    )
    first, second = names.split()
    return f"{big} {first}" + (f" {small} {second}" if small else "")


def memory(megabytes: Any) -> str:
    """1234 -> "1.23 GB"."""
    n = number(megabytes)
    if n is None:
        return MISSING
    return f"{n / 1000:.3g} GB" if n >= 1000 else f"{n:.0f} MB"


def fraction(key: str) -> float:
    """Label fraction "1%" -> 0.01."""
    return float(key.strip().rstrip("%")) / 100


def run_title(run: dict[str, Any]) -> str:
    """What people call a run: the ``title`` that it was given, its method's written name, or the run's own name when that
    says more."""
    return str(run.get("title") or run.get("name", "?"))


def words(name: str) -> str:
    """A field's name as people write it."""
    return name.replace("_", " ")


def sentence(value: Any, between: str = ", ") -> str:
    """Any plain value as one line of text."""
    if isinstance(value, dict):
        return between.join(f"{words(str(key))} {sentence(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return between.join(sentence(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str) else count(value)


def facts(named: dict[str, Any]) -> Html:
    """Single facts in a row: value above, name below."""
    pairs = [el("div", el("dt", name), el("dd", sentence(value))) for name, value in named.items()]
    return el("dl", pairs, cls="facts") if pairs else Html("")


def finished(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that have something to show."""
    return [run for run in results.get("runs") or [] if run.get("status", "finished") == "finished"]
