"""Progress of a run: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

BAR_EVERY, LINE_EVERY = 0.25, 30.0


@contextmanager
def bar(title: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error for work of known length; None if it is off or there is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    with Bar(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Display:
    """Shows ``fraction`` of the budget, ``unit`` (images, tokens ...) per second, loss and time left; silent if not ``shown``."""

    def __init__(self, title: str, *, unit: str, shown: bool, stream: TextIO | None = None) -> None:
        self.shown, self.title, self.unit = shown, title, unit
        self.console = Console(file=stream or sys.stderr)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._told = self._measured = time.perf_counter()
        self._seen: int | None = None
        self._rate = 0.0

    def start(self) -> None:
        if self.shown and self.console.is_terminal:
            text = (
                f"{{task.fields[rate]:,.0f}} {self.unit}/s  loss {{task.fields[loss]:.4g}}  {{task.fields[left]}} left"
            )
            columns = (TextColumn("{task.description}"), BarColumn(None), TaskProgressColumn(), TextColumn(text))
            self._bar = Bar(*columns, console=self.console, auto_refresh=False, expand=True)
            self._task = self._bar.add_task(self.title, total=1.0, rate=0.0, loss=float("nan"), left="?")
            self._bar.start()

    def due(self) -> bool:
        every = BAR_EVERY if self._bar else LINE_EVERY
        return self.shown and time.perf_counter() - self._told >= every

    def update(self, *, fraction: float, step: int, seen: int, seconds: float, loss: float) -> None:
        now = time.perf_counter()
        if self._seen is not None and now > self._measured:
            rate = (seen - self._seen) / (now - self._measured)
            self._rate = rate if self._rate == 0 else 0.8 * self._rate + 0.2 * rate
        self._told = self._measured = now
        self._seen = seen
        left = duration(seconds / fraction * (1 - fraction)) if fraction > 0 else "?"
        if self._bar:
            self._bar.update(self._task, completed=fraction, rate=self._rate, loss=loss, left=left)
            self._bar.refresh()
        else:
            rate = seen / seconds if seconds else 0.0
            self.say(
                f"{self.title}: {fraction:.0%}, step {step}, {rate:,.0f} {self.unit}/s, loss {loss:.4g}, {left} left"
            )

    def say(self, text: str) -> None:
        """Print a line above the bar, or nothing when quiet."""
        if self.shown:
            self.console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
