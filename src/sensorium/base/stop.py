"""Ctrl-C and SIGTERM end a command with one line, from its first moment on: also while modules are loaded, where Python
may turn KeyboardInterrupt into another error, or report it as ignored and go on.

Imports nothing heavy: it is in force before anything else is loaded.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

CODE = 130  # of a command that was stopped, whichever signal did it

_asked: list[int] = []  # the signals that arrived
_resumes = False
_default_hook = sys.unraisablehook


def listen(words: list[str]) -> None:
    """Raise KeyboardInterrupt on Ctrl-C and SIGTERM. ``words``: the command, some of which go on when run again."""
    global _resumes
    _asked.clear()
    _resumes = words[:1] in (["train"], ["compare"], ["ablate"], ["demo"])
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup or a shell's background job asks for
            signal.signal(number, _stop)
    sys.unraisablehook = _unraisable


def asked() -> bool:
    """Whether a signal arrived, whatever became of the KeyboardInterrupt."""
    return bool(_asked)


def farewell() -> int:
    """Print the one line; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)  # what is left is the end of the process: no further word
    print("stopped; the same command resumes it." if _resumes else "stopped.", file=sys.stderr, flush=True)
    return CODE


def end(code: int = CODE) -> NoReturn:
    """End the process now. Not by ``sys.exit``: where a library saw the KeyboardInterrupt, Python would end by a signal."""
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


@contextmanager
def deaf() -> Iterator[None]:
    """A process started inside never hears of Ctrl-C, which a terminal sends to each of them: its parent ends it."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of this thread, and inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    if len(_asked) > 2:  # it was raised twice, and something went on nevertheless
        end(farewell())
    raise KeyboardInterrupt


def _unraisable(args: Any) -> None:
    if args.exc_type is KeyboardInterrupt and _asked:  # it arrived in a callback, which no caller hears of
        end(farewell())
    _default_hook(args)
