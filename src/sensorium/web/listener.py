"""A server of an ASGI application, listening until it is closed; and a command that serves until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from sensorium.errors import SensoriumError
from sensorium.web.connections import TimedProtocol
from sensorium.web.door import Door

CONNECTIONS = 900  # fewer than the files that a process may open on most systems


class Listener:
    """``door``, listening at ``local_url`` until ``close``."""

    def __init__(self, door: Door, host: str, port: int) -> None:
        bare = host.strip("[]")
        shown = "localhost" if door.hosts.everywhere else f"[{bare}]" if ":" in bare else bare
        self.local_url = f"http://{shown}:{port}/"
        self._socket = _listening(bare, port)
        self.server = uvicorn.Server(
            uvicorn.Config(
                door,
                log_level="warning",
                access_log=False,
                lifespan="on",
                ws="none",
                http=TimedProtocol,
                loop="asyncio",  # whatever other package has installed another loop
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=1 << 15,
            )
        )
        # Not Thread.join: interrupted by Ctrl-C, it takes a thread that runs for one that has ended.
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        while not self.server.started and not self._ended.is_set():
            time.sleep(0.005)
        if not self.server.started:
            self.close()
            raise SensoriumError("the server did not start; its messages are above.")

    def wait(self) -> None:
        """Return when it has ended."""
        self._ended.wait()

    def close(self, verbose: bool = False) -> None:
        """End it: no visitor is waited for."""
        self.server.should_exit = True
        self._ended.wait(5)
        self._socket.close()
        if verbose:
            print(f"{self.local_url} has ended")

    def _run(self) -> None:
        try:
            self.server.run([self._socket])
        finally:
            self._ended.set()


def until_ended(start: Callable[[], Listener]) -> None:
    """Start a server, print its address, and close it on Ctrl-C or SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if name in signal.Signals.__members__:
                signal.signal(signal.Signals[name], _stop)
    listener = None
    try:
        listener = start()
        print(f"{listener.local_url}  (Ctrl-C ends)", flush=True)
        listener.wait()
    except KeyboardInterrupt:
        if listener is None:
            raise
        print()
    finally:
        if listener is not None:
            listener.close()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # a model at work for a visitor who is gone: Python would wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _notice_the_gone(listening: socket.socket) -> None:
    """Connections whose other end is gone without a word, its power or its network off, end after two minutes."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if (option := vars(socket).get(name)) is not None:  # connections have those of the socket that they came by
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


def _listening(host: str, port: int) -> socket.socket:
    """A socket at that address. Raises SensoriumError if it is taken, or none of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _notice_the_gone(found)
            found.bind(address)
            found.listen(256)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        raise SensoriumError(f"cannot listen at {host}:{port} ({reason}); try --port {min(port + 1, 65535)}.") from None
    return found
