"""Connections that hold a place and do nothing: closed after a time.

uvicorn has one timer, for a connection that is silent between two requests. Here the head of a request must be whole
within :data:`HEAD_TIME` of the connection's start or of the last answer, however its bytes trickle, and an answer must
be taken: a visitor who reads nothing for :data:`READ_TIME` is dropped. Bodies have their times in
:mod:`sensorium.web.wire` and :mod:`sensorium.playground.guard`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIME = 20.0  # seconds
READ_TIME = 60.0  # seconds


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with a time for the head of each request, and for each piece of an answer to be read."""

    _head: asyncio.TimerHandle | None = None
    _read: asyncio.TimerHandle | None = None
    _unread = 0  # bytes, when the time for the head was last up

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._read = _stopped(self._head), _stopped(self._read)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head = _stopped(self._head)

    def on_response_complete(self) -> None:
        self._await_head()  # first: the next request may have come already
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read = _stopped(self._read) or self.loop.call_later(READ_TIME, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read = _stopped(self._read)

    def _await_head(self) -> None:
        self._unread = 0
        self._head = _stopped(self._head) or self.loop.call_later(HEAD_TIME, self._late)

    def _late(self) -> None:
        """Close the connection, unless the end of the last answer is still being read."""
        unread = self.transport.get_write_buffer_size()
        if unread and (not self._unread or unread < self._unread):
            self._unread = unread
            self._head = self.loop.call_later(HEAD_TIME, self._late)
        elif unread:
            self.transport.abort()
        else:
            self.transport.close()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
