"""The terminal, and the progress of a run: a bar on a terminal, a line every half minute elsewhere.

Names of files and classes are foreign text, so no text is ever markup: style is given by ``style=`` and ``Text``.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console

if TYPE_CHECKING:  # a bar is imported when one is drawn, so that help is quick
    from rich.progress import Progress, TaskID

BAR_EVERY, LINE_EVERY = 0.25, 30.0


class Stage(Protocol):
    """Says which stage has begun, and again how much of it is done (0 to 1)."""

    def __call__(self, what: str, done: float | None = None) -> None: ...


def terminal(*, stderr: bool = True, width: int | None = None, file: TextIO | None = None) -> Console:
    """A console on standard error (or output, or ``file``) that prints every text as it is."""
    return Console(stderr=stderr, file=file, width=width, markup=False, emoji=False, highlight=False)


def any_encoding() -> None:
    """Let standard output and error replace what their encoding can't express, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def bar(title: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error for work of known length, without a terminal a line now and then; None if it is
    off."""
    if not shown:
        yield None
        return
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.progress import Progress, TextColumn

    left = TextColumn("{task.fields[left]}", markup=False)
    with Progress(*_columns(), left, console=terminal(), transient=True) as progress:
        task, began = progress.add_task(title, total=None, left=""), time.perf_counter()
        yield lambda done, total: progress.update(
            task, completed=done, total=total, left=_left(time.perf_counter() - began, done, total)
        )


def _lines(title: str) -> Callable[[int, int], None]:
    """Progress as a line every half minute, with the time left."""
    began = told = time.perf_counter()

    def advance(done: int, total: int) -> None:
        nonlocal told
        now = time.perf_counter()
        if now - told >= LINE_EVERY and 0 < done < total:
            told = now
            terminal().print(f"{title}: {done:,} of {total:,}, {_left(now - began, done, total)}")

    return advance


def _left(seconds: float, done: int, total: int) -> str:
    """Such as "1m15s left", if what is left takes as long as what was ``done`` in these ``seconds``; "" before anything is."""
    return f"{duration(seconds / done * (total - done))} left" if done else ""


@contextmanager
def stages(who: str, shown: bool) -> Iterator[Stage]:
    """Tells the stage of work of several: on a terminal in a line that moves, with how much of it is done, elsewhere in a
    line when it begins."""
    if not shown:
        yield lambda what, done=None: None
        return
    console, last = terminal(), ""
    if not console.is_terminal:

        def line(what: str, done: float | None = None) -> None:
            nonlocal last
            if what != last:
                last = what
                console.print(f"{who}: {what}", style="dim")

        yield line
        return
    from rich.text import Text

    with console.status(Text(who)) as status:
        yield lambda what, done=None: status.update(Text(f"{who}: {what}{'' if done is None else f', {done:.0%}'}"))


class Display:
    """Shows ``fraction`` of the budget, ``unit`` (images, tokens ...) per second, loss and time left; silent if not ``shown``."""

    def __init__(self, title: str, *, unit: str, shown: bool, stream: TextIO | None = None) -> None:
        self.shown, self.title, self.unit = shown, title, unit
        self.console = terminal(file=stream or sys.stderr)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = self._measured = time.perf_counter()
        self._seen: int | None = None
        self._rate = 0.0

    def start(self) -> None:
        if self.shown and self.console.is_terminal:
            text = (
                f"{{task.fields[rate]:,.0f}} {self.unit}/s  loss {{task.fields[loss]:.4g}}  {{task.fields[left]}} left"
            )
            from rich.progress import Progress, TextColumn

            columns = (*_columns(None), TextColumn(text, markup=False))
            self._bar = Progress(*columns, console=self.console, auto_refresh=False, expand=True)
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
        if self._bar and self._task is not None:
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
            self.console.print(text)

    def stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def _columns(width: int | None = 40) -> tuple[Any, ...]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn

    return TextColumn("{task.description}", markup=False), BarColumn(width), TaskProgressColumn()


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
