"""Markup for the report, escaped by default, and human-readable numbers.

``el`` builds one element; whatever is not already :class:`Html` is text and gets escaped, attributes too, so that a
class name, a path or an error message can't become markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from sensorium.base.words import MISSING as MISSING
from sensorium.base.words import agreeing as agreeing
from sensorium.base.words import count as count
from sensorium.base.words import counted as counted
from sensorium.base.words import duration as duration
from sensorium.base.words import memory as memory
from sensorium.base.words import number as number
from sensorium.base.words import percent as percent
from sensorium.base.words import short as short

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


def of(number: Any, phrase: str) -> str:
    """1, "test images" -> "1 test image"; 1200 -> "1,200 test images"."""
    return f"{count(number)} {agreeing(number, phrase)}"


def words(name: str) -> str:
    """A field's name in readable form."""
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
    """Facts in a row: value above, name below."""
    pairs = [el("div", el("dt", name), el("dd", sentence(value))) for name, value in named.items()]
    return el("dl", pairs, cls="facts") if pairs else Html("")
