"""The runs that are served: by names, which are all that a request can say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from sensorium.abilities import abilities_of
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.words import number
from sensorium.catalogue import a_run_of
from sensorium.data.images.prepare import Situation
from sensorium.data.log import tell
from sensorium.data.streams.prepare import StreamSituation
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import read_judgement
from sensorium.runs.run import Run
from sensorium.use.able import USES, fits
from sensorium.use.detect import Finder, open_finder
from sensorium.use.several import runs_at
from sensorium.web.wire import Refused

OFFERED = ("predict", "detect", "embed", "generate")  # of the commands, those that have an endpoint


class Served:
    """A run by its ``name``, loaded, and what it ``can`` do."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.method: Any = run.method.to(device_name())
        self.can = tuple(command for command in OFFERED if fits(self.method, command))
        self.system = printable(Path(run.info.recipe).name)

    @cached_property
    def finder(self) -> Finder:
        """Its detector."""
        return open_finder(self.run)

    def about(self) -> dict[str, Any]:
        """What GET /runs tells of it."""
        situation, scores = self.run.situation, ()
        with suppress(SensoriumError):
            judgement = read_judgement(self.run.folder)
            scores = judgement.scores if judgement else ()
        return {
            "name": self.name,
            "system": self.system,
            "abilities": list(abilities_of(self.method)),
            "can": list(self.can),
            "classes": list(situation.classes) if isinstance(situation, (Situation, StreamSituation)) else [],
            "scores": [
                {"name": s.name, "value": number(s.value), "better": s.better, "n": s.n, "counted": s.counted}
                for s in scores
            ],
        }


def served(runs: Sequence[str | Path | Run]) -> dict[str, Served]:
    """The runs, or those in folders of runs, that can answer requests. Raises SensoriumError if none can."""
    found: dict[str, Served] = {}
    unfit: list[str] = []
    for run in runs_at(runs, "serve"):
        base = printable(run.name or run.folder.resolve().name)
        name, n = base, 1
        while name in found:  # of two folders of runs
            n += 1
            name = f"{base}-{n}"
        one = Served(run, name)
        if one.can:
            found[name] = one
        else:
            unfit.append(f"{name} ({one.system})")
    if not found:
        raise SensoriumError(
            f"{', '.join(unfit)}: nothing to serve; {', '.join(OFFERED)} are, which need "
            f"{a_run_of(*(ability for command in OFFERED for ability in USES[command].abilities))}."
        )
    if unfit:
        tell([f"Not served, for there is no endpoint for them: {', '.join(unfit)}."])
    return found


def chosen(runs: Mapping[str, Served], command: str, name: str | None) -> Served:
    """The run of that name, or the only one that can do it. Raises Refused, which says which can, or what it can."""
    needs = f"/{command} needs {a_run_of(*USES[command].abilities)}"
    if name is not None:
        one = runs.get(name)
        if one is None:
            raise Refused(404, f"no run is called '{printable(name)[:80]}'; there are: {', '.join(runs)}.")
        if command not in one.can:
            raise Refused(404, f"'{one.name}' ({one.system}) can't {command}: {needs}. It can: {', '.join(one.can)}.")
        return one
    fitting = [one for one in runs.values() if command in one.can]
    if len(fitting) > 1:
        raise Refused(400, f"several runs can {command}; name one (?run=NAME): {', '.join(o.name for o in fitting)}.")
    if not fitting:
        there = "; ".join(f"{one.name} can: {', '.join(one.can)}" for one in runs.values())
        raise Refused(404, f"no run here can {command}: {needs}. {there}.")
    return fitting[0]
