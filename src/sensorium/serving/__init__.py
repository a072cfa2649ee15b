"""The API: trained runs that answer over HTTP, for programs.

Nothing is read but the runs and what a request carries; nothing leaves the machine. It listens on localhost only unless
a host is given, which requires a key.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.base.words import counted
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.runs.run import Run
    from sensorium.serving.server import Api

PORT = 7870
_NEEDED = ("fastapi", "uvicorn", "python_multipart")


def serve(
    runs: Sequence[str | Path | Run],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    key: str | None = None,
    upload_mb: int = 16,
    waiting: int = 64,
    allow_host: Sequence[str] = (),
) -> None:
    """Answer requests until Ctrl-C or SIGTERM. See :func:`open_api`."""
    _require()
    from sensorium.web.listener import until_ended

    def start() -> Api:
        api = open_api(runs, host=host, port=port, key=key, upload_mb=upload_mb, waiting=waiting, allow_host=allow_host)
        for one in api.served.values():
            print(f"{one.name}: {', '.join(one.can)}")
        said = "requests need the key" if key else "without a key: for programs of this machine"
        print(f"{counted(len(api.served), 'run')}; {said}")
        return api

    until_ended(start)


def open_api(
    runs: Sequence[str | Path | Run],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    key: str | None = None,
    upload_mb: int = 16,
    waiting: int = 64,
    allow_host: Sequence[str] = (),
) -> Api:
    """The API, listening at ``host:port`` (``.local_url``) until its ``close()``.

    ``key``: what requests have to send as ``Authorization: Bearer KEY``; any host but localhost requires one.
    ``upload_mb``: maximum size of a request in megabytes. ``waiting``: how many requests wait at most while one is
    computed. ``allow_host``: further names (NAME or NAME:PORT) that it is reached by. Raises SensoriumError for wrong
    arguments.
    """
    _require()
    from sensorium.serving.server import start
    from sensorium.web.hosts import is_loopback

    if not key and not is_loopback(host):
        raise SensoriumError(
            f"--host {host} answers others: set a key too (--key-file FILE, or the variable SENSORIUM_KEY)."
        )
    for value, name, least, most in (
        (upload_mb, "--upload-mb", 1, 1024), (waiting, "--waiting", 0, 10_000), (port, "--port", 1, 65535),
    ):  # fmt: skip
        if not least <= value <= most:
            raise SensoriumError(f"{name} {value}: must be from {least} to {most}.")
    return start(runs, host=host, port=port, key=key, upload=upload_mb << 20, waiting=waiting, allowed=allow_host)


def _require() -> None:
    """Raise SensoriumError if a library is missing."""
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            raise SensoriumError(f'the API needs {name}: pip install "sensorium[serve]"') from None
