"""The command that answers over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.base.whole import Positive, Whole
from sensorium.cli.shared import opens_runs


def serve(
    *runs: Path,
    host: str = "127.0.0.1",
    port: Positive = 7870,
    key_file: Path | None = None,
    upload_mb: Positive = 16,
    waiting: Whole = 64,
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
) -> None:
    """Answer over HTTP with trained runs, for programs: classes, objects and features of pictures, text after a prompt.

    Example: sensorium serve sensorium-compare/winner

    Then, from another terminal: curl -F file=@a.jpg -F file=@b.png "http://localhost:7870/predict?top=3"

    The answers are JSON, with the numbers of `sensorium predict`, `detect`, `embed` and `generate`.
    http://localhost:7870/ lists what these runs can answer, with commands to copy.

    Args:
        runs: folders of runs, or a folder of them.
        host: the address to listen on; any but localhost requires a key.
        port: of the server.
        key_file: read the key from the first line of a file; requests then send "Authorization: Bearer KEY". Also from
            SENSORIUM_KEY.
        upload_mb: maximum size of a request in megabytes.
        waiting: how many requests wait at most while one is computed; further ones are answered 503.
        allow_host: a further name of the server, NAME or NAME:PORT, for clients behind a proxy or a tunnel; repeatable.
    """
    from sensorium.serving import serve as answer
    from sensorium.web.secret import chosen_key

    key = chosen_key(key_file)
    answer(runs, host=host, port=port, key=key, upload_mb=upload_mb, waiting=waiting, allow_host=allow_host)


COMMANDS = {"serve": opens_runs(serve)}
