"""What a reader did not use, and why: listed, counted by reason, and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sensorium.base.reading import printable

MOST_LISTED = 10_000
"""Entries that a log lists; further ones are only counted."""


@dataclass(frozen=True)
class Skipped:
    """A file or an entry that could not be used, and why."""

    file: str
    reason: str


@dataclass
class Log:
    """What a reader did not use: entries by file, counted by reason; and notes about its choices."""

    skipped: list[Skipped] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)

    def skip(self, file: str, reason: str, detail: str = "") -> None:
        """Count ``reason``; ``detail`` is for this one entry. At most ``MOST_LISTED`` entries are listed."""
        self.counts[reason] += 1
        self.first.setdefault(reason, printable(file))
        if len(self.skipped) < MOST_LISTED or self.counts[reason] == 1:
            self.skipped.append(Skipped(printable(file), f"{reason}{f': {printable(detail)}' if detail else ''}"))

    def sentences(self) -> list[str]:
        """The counts in words, with the first entry of each reason."""
        return [
            f"{count:,} skipped: {reason}{f' (the first: {first[:200]})' if (first := self.first.get(reason)) else ''}."
            for reason, count in self.counts.most_common()
        ]


def tell(lines: Iterable[str]) -> None:
    """Print what was found, on standard error, each line once."""
    from sensorium.base.terminal import terminal

    console = terminal()
    for line in dict.fromkeys(lines):
        console.print(printable(line), style="dim")
