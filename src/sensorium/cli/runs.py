"""The commands that keep track of runs."""

from __future__ import annotations

import json
from pathlib import Path

from sensorium.cli.shared import Json, console, opens_runs


def runs(*folders: Path, as_json: Json = False) -> None:
    """A table of the runs below a folder: budget, steps, status, deciding score, data; best first on the same data.

    Example: sensorium runs sensorium-runs

    Nothing of a run is executed; a damaged one is a row that says why.

    Args:
        folders: where to look; by default sensorium-runs and sensorium-compare, else here.
        as_json: print JSON.
    """
    from sensorium.base.records import encode
    from sensorium.runs.listing import list_runs, table

    found = list_runs(folders)
    if as_json:
        print(json.dumps(encode(found), indent=1))
    else:
        console.print(table(found))


def replay(run: Path, *, as_json: Json = False) -> None:
    """Take a run's step again whose loss was not a number, and show where it begins: module, gradients, data.

    Example: sensorium replay sensorium-runs/simclr

    Such a step is kept in RUN/nonfinite when training ends with it.

    Args:
        run: folder of a run.
        as_json: print JSON.
    """
    from sensorium.base.records import encode
    from sensorium.use.replay import lines
    from sensorium.use.replay import replay as take_again

    found = take_again(run)
    print(json.dumps(encode(found), indent=1) if as_json else "\n".join(lines(found)))


COMMANDS = {"runs": runs, "replay": opens_runs(replay)}
