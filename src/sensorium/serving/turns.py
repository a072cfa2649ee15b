"""Requests take turns: one is computed at a time, on all cores, and a bounded number waits."""

from __future__ import annotations

import asyncio
import math
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import ClientDisconnect

from sensorium.base.words import counted
from sensorium.errors import SensoriumError
from sensorium.web.wire import Refused, public

T = TypeVar("T")
_LONGEST = 60  # seconds that a refused client is asked to wait


class Turns:
    """At most ``waiting`` requests wait for the one that is computed."""

    def __init__(self, waiting: int) -> None:
        self.waiting, self.inside = waiting, 0
        self._seconds = 0.1  # of a computation, a moving average
        self._turn = asyncio.Lock()  # the first who asks is the first who gets it
        # One thread for all computations: torch keeps a team of threads for each thread that calls it.
        self._thread = ThreadPoolExecutor(1, "compute")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from before its body is read until it is answered. Raises Refused if all are taken."""
        if self.inside > self.waiting:
            seconds = min(_LONGEST, math.ceil(self.inside * self._seconds))
            said = f"busy: {counted(self.inside, 'request')} came before this one; try again in {seconds} s."
            raise Refused(503, said, ("retry-after", str(seconds)))
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def compute(self, gone: Callable[[], Awaitable[bool]], function: Callable[[], T]) -> T:
        """What the function gives, when it is this request's turn; nothing is computed for a client who is ``gone``.
        Raises Refused for whatever goes wrong, in one line."""
        async with self._turn:
            if await gone():
                raise ClientDisconnect
            begun = time.monotonic()
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, function)
            except SensoriumError as error:
                raise Refused(422, public(error)) from None
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)
                said = f"this did not work ({type(error).__name__}); the terminal of the server says why."
                raise Refused(500, said) from None
            finally:
                self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)

    def close(self) -> None:
        """No more computations."""
        self._thread.shutdown(wait=False, cancel_futures=True)
