"""Human-readable numbers, and the nouns that they count."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"


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


def counted(number: int, what: str) -> str:
    """ "1 image", "2 images", "1 class", "2,000 classes"; ``what`` is one of them, with its adjectives."""
    return f"{number:,} {what if number == 1 else plural(what)}"


def plural(what: str) -> str:
    """ "image" -> "images", "class" -> "classes", "copy" -> "copies"."""
    if what.endswith(("s", "x", "ch", "sh")):
        return f"{what}es"
    return f"{what[:-1]}ies" if what.endswith("y") and what[-2:-1] not in "aeiou" else f"{what}s"


def be(number: int) -> str:
    """The verb after :func:`counted`: "is" or "are"."""
    return "is" if number == 1 else "are"


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
