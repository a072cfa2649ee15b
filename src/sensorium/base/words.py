"""Human-readable numbers, and nouns that agree with them."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
_VERBS = {
    "is": "are",
    "has": "have",
    "does": "do",
    "was": "were",
    "its": "their",
    "it": "they",
    "lies": "lie",
    "says": "say",
}


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (None, NaN, strings, booleans)."""
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
    """12345 -> "12,345"; a fraction keeps three digits."""
    n = number(value)
    if n is None:
        return MISSING
    return f"{n:,.0f}" if n == int(n) or abs(n) >= 1000 else f"{n:.3g}"


def counted(number: int, noun: str) -> str:
    """1, "box" -> "1 box"; 1200, "box" -> "1,200 boxes"; the last word of ``noun`` takes the plural."""
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """``noun`` as it is after ``number``, 2, "class" -> "classes"; also some verbs and pronouns: 2, "has" -> "have"."""
    if number == 1:
        return noun
    first, _, rest = noun.partition(" ")
    if first in _VERBS:
        return f"{_VERBS[first]} {plural(number, rest)}" if rest else _VERBS[first]
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and not noun.endswith(("ay", "ey", "oy", "uy")):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


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


def agreeing(number: Any, phrase: str) -> str:
    """A phrase in the plural, as it is after ``number``: 1, "test images" -> "test image"; in "tokens (257 kinds)" and
    "frames of 0.1 s" the first noun agrees."""
    for rest in (" (", " of "):
        if rest in phrase:
            return agreeing(number, phrase[: phrase.index(rest)]) + phrase[phrase.index(rest) :]
    if number != 1 or not phrase.endswith("s") or phrase.endswith("ss"):
        return phrase
    if phrase.endswith("ies"):
        return f"{phrase[:-3]}y"
    return phrase[:-2] if phrase.endswith(("xes", "ches", "shes", "sses")) else phrase[:-1]
