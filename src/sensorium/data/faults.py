"""What is wrong with data of a kind, in that kind's words: a name for programs, a count, examples, and a sentence with a
way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.base.reading import printable

SHOWN = 20  # examples of a fault
_LONG = 60  # characters of an example in a sentence


@dataclass(frozen=True)
class Fault:
    """``count`` of what is at fault, some ``examples`` of it, and ``said``: what it is, how much, and what to do."""

    name: str
    count: int
    said: str
    examples: tuple[str, ...] = ()


def some(names: Sequence[str]) -> tuple[str, ...]:
    """The first examples of many, safe to print."""
    return tuple(printable(name) for name in names[:SHOWN])


def quoted(text: str) -> str:
    """A text as an example in a sentence: on one line, in quotation marks, cut."""
    line = printable(" ".join(text.split()))
    return f"'{line[:_LONG]}{'...' if len(line) > _LONG else ''}'"


def share(count: float, total: float) -> str:
    """12, 300 -> "4 %"; what is little keeps a digit that says something."""
    percent = 100 * count / max(total, 1)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
