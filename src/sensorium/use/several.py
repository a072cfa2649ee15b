"""Several runs of one command line, opened: folders of runs, or folders that hold some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.runs.run import Run


def runs_at(runs: Sequence[str | Path | Run], command: str) -> list[Run]:
    """The runs given, and of a folder that is none all that have finished in it. Raises SensoriumError, which shows how
    ``command`` is used, if nothing was given."""
    if not runs:
        raise SensoriumError(
            f"no run to show. Train one: sensorium train SYSTEM --budget 2m; then: sensorium {command} "
            "sensorium-runs/SYSTEM"
        )
    found: list[Run] = []
    for one in runs:
        if isinstance(one, Run):
            found.append(one)
            continue
        folder = Path(one)
        inner = (
            []
            if (folder / "run.json").is_file()
            else sorted(file.parent for file in folder.glob("*/model.safetensors"))
        )
        found += [Run(each) for each in [each for each in inner if (each / "run.json").is_file()] or [folder]]
    return found
