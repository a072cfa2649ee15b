"""The API as a server: what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sensorium.runs.run import Run
from sensorium.serving.endpoints import application
from sensorium.serving.gate import Gate
from sensorium.serving.manual import manual
from sensorium.serving.served import Served, served
from sensorium.serving.turns import Turns
from sensorium.web.hosts import Hosts
from sensorium.web.listener import Listener


class Api(Listener):
    """The API of the runs ``served``, by name, listening at ``local_url`` until ``close``."""

    def __init__(self, gate: Gate, runs: Mapping[str, Served], host: str, port: int) -> None:
        self.gate, self.served = gate, runs
        super().__init__(gate, host, port)


def start(
    runs: Sequence[str | Path | Run], *, host: str, port: int, key: str | None, upload: int, waiting: int,
    allowed: Sequence[str] = (),
) -> Api:  # fmt: skip
    """Load the runs, and listen. ``upload``: maximum bytes of a request. Raises SensoriumError."""
    hosts = Hosts(host, port, allowed)
    found, turns = served(runs), Turns(waiting)
    app = application(found, turns)
    return Api(Gate(app, hosts, key, upload, turns, manual(found, port, key is not None)), found, host, port)
