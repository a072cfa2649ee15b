"""Text of others in Markdown: names of classes, files and settings stand as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sensorium.base.reading import printable

_MARKS = re.compile(r"[\\`*{}\[\]<>#|~&!$@]|(?<![^\W_])_|_(?![^\W_])|^[-+=]")
_NUMBERED = re.compile(r"^(\d+)(?=[.)](\s|$))")  # it would begin a list


def md(value: Any) -> str:
    """``value`` on one line, each of its characters as itself, also in a table."""
    text = " ".join(printable(str(value)).split())
    return _NUMBERED.sub(r"\1\\", _MARKS.sub(lambda found: f"\\{found[0]}", text))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def code(text: str, language: str) -> list[str]:
    """A block of code."""
    longest = max((len(one) for one in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}{language}", text, fence]
