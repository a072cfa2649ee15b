"""Which of many methods, and of their settings, with one budget for all of them together: successive halving (Karnin et al.,
2013; Jamieson & Talwalkar, 2016, arXiv:1502.07943).

    rung 1   every method is trained for x and judged
    rung i   the best third goes on from its checkpoints for 3^(i-1) x more, its schedule stretched, and is judged again
    ...      until three or fewer are left, and the budget is spent

Judging counts: what each rung took says how much of the budget is left for the training of the next, and what the whole evaluation of
the last one may take is kept for it. Between rungs methods are judged by the score that decides alone. A method that is stopped stays in the table, with a note of when and why: a short training may
have hidden what a long one would have shown, and as they were stopped by scores on the test samples, the winner's is a little optimistic.
With several settings of each method (:mod:`sensorium.runs.draws`) each of them is a method of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from sensorium.base.files import write_json
from sensorium.base.lock import locked
from sensorium.base.reading import read_object
from sensorium.base.records import decode
from sensorium.base.terminal import duration, terminal
from sensorium.base.words import counted
from sensorium.catalogue import systems
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError
from sensorium.judge.score import Score
from sensorium.runs.compare import asked_of, concluded, names_of, results_now, train_all
from sensorium.runs.draws import Entry, entries, open_ranges, prepared, train_command
from sensorium.runs.jobs import Planned
from sensorium.runs.options import Judging, RunOptions
from sensorium.runs.results import Results, RunResult
from sensorium.runs.verdict import best_run, deciding, ranked
from sensorium.training.budget import Budget

FILE = "search.json"
ETA = 3  # of the methods of a rung one in so many goes on, for as many times longer
LEAST = 15.0  # seconds of the first rung that say something
OVERHEAD = 30.0  # seconds that starting and judging a method take, as long as nothing was measured


@dataclass(frozen=True)
class Rung:
    """What is kept of a rung in ``OUT/search.json``, so that a search goes on: its methods, the seconds of training that each has
    had at its end, the seconds that all of it took, 0 if it isn't done, and by method why it was stopped then."""

    names: tuple[str, ...]
    seconds: float
    took: float = 0.0
    stopped: dict[str, str] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        """Whether no rung follows: too few methods are left, or none."""
        return len(ladder(len(self.names))) == 1 or len(self.stopped) == len(self.names)


def ladder(methods: int) -> list[int]:
    """How many methods each rung trains: 15 -> [15, 5, 2]."""
    sizes = [methods, *takewhile(lambda size: size > 1, (-(-methods // ETA**i) for i in count(1)))]
    return sizes[: next((i + 1 for i, size in enumerate(sizes) if size <= 2), len(sizes))]


def share(sizes: Sequence[int], left: float, overhead: float, *, judged: float = 0.0, former: float = 0.0) -> float:
    """Seconds of training of each method of the first of the rungs ``sizes``, if the seconds ``left`` are to be enough for all
    of them, each rung's training three times as long as the one before.

    judged: what the whole evaluation takes of each method of the last rung, and of the baselines once, as a fraction of
    all its training; ``former``: the seconds of that before these rungs."""
    times, whole = [ETA**i for i in range(len(sizes))], judged * (sizes[-1] + 1)
    trained = sum(size * time for size, time in zip(sizes, times, strict=True))
    return (left - overhead * sum(sizes) - whole * former) / (trained + whole * sum(times))


def judged_share(methods: Sequence[str], judging: Judging) -> float:
    """Of all training of a run, what its whole evaluation takes at most beyond the quick one of a rung: half, where encoders of
    pictures are fine-tuned, else nothing."""
    known = {system.name: system.abilities for system in systems()}
    encoders = any("Encoder" in known.get(method.partition(",")[0], ("Encoder",)) for method in methods)
    return 0.5 if judging.finetune and encoders else 0.0


def search_all(
    methods: Sequence[str], options: RunOptions, judging: Judging, *, backbone: str | None = None, settings: int = 1
) -> tuple[Results, Path]:
    """Train and compare ``methods`` within ``options.budget`` of time for all of them; return the results and their folder.
    ``settings``: of each method, its defaults and draws from its recipe's ranges.

    The same call again goes on where it was stopped. Raises SensoriumError if the budget is no time, or too short.
    """
    total, folder = Budget.parse(options.budget), Path(options.out or "sensorium-compare")
    if total.kind != "seconds":
        raise SensoriumError(
            f"--search --budget {options.budget}: must be a time for all methods together, such as 60m."
        )
    ranged = [method for method in methods if open_ranges(method, backbone)] if settings > 1 else []
    if settings > 1 and not ranged:
        raise SensoriumError(
            f"--settings {settings}: none of {', '.join(methods)} has ranges to draw settings from (RANGES beside its recipe), "
            "or all of them are given; leave --settings out, or write them yourself: METHOD,lr=1e-3."
        )
    rows = len(methods) + len(ranged) * (settings - 1)
    sizes, judged = ladder(rows), judged_share(methods, judging)
    if share(sizes, total.amount, OVERHEAD, judged=judged) < LEAST:
        least = LEAST / share(sizes, 1.0, 0.0, judged=judged) + OVERHEAD * sum(sizes)
        raise SensoriumError(
            f"--search --budget {options.budget}: too short for {_many(rows, settings)}; give {duration(least)} or more."
        )
    check_place(folder, options.data, options.test, folder=True)
    with locked(folder, verb="compares"):
        every = entries(methods, settings, options, folder / "cache", backbone)
        names = dict(zip(names_of([one.method for one in every]), every, strict=True))
        if settings == 1:  # else they were prepared for the draws: what can't be read is told before the plan
            prepared(methods[0], options, folder / "cache", backbone)
        if not options.quiet:
            terminal().print(told(len(methods), len(ranged), settings, total.amount, judged), style="dim")
        plan, results = _Search(names, total.amount, options, judging, backbone, folder / FILE, settings).run()
        return concluded(results, plan, asked_of(options, judging), folder, not options.quiet), folder


def told(methods: int, ranged: int, settings: int, seconds: float, judged: float) -> str:
    """What a search of ``methods`` will do, ``ranged`` of them with several settings, before it starts."""
    rows = methods + ranged * (settings - 1)
    sizes = ladder(rows)
    drawn = f", {ranged} of {methods} methods with defaults and {counted(settings - 1, 'draw')}" if ranged else ""
    first = duration(share(sizes, seconds, OVERHEAD, judged=judged))
    then = f", then {' and '.join(map(str, sizes[1:]))} of them longer" if sizes[1:] else ""
    return f"search: {_many(rows, settings)}{drawn}, each trained for some {first}{then}: {duration(seconds)} in all, with evaluation."


def _many(rows: int, settings: int) -> str:
    return counted(rows, "method") if settings == 1 else f"{counted(rows, 'setting')} of methods"


class _Search:
    """A search that is going on."""

    def __init__(self, names: dict[str, Entry], total: float, options: RunOptions, judging: Judging, backbone: str | None, file: Path, settings: int = 1) -> None:  # fmt: skip
        self.names, self.total, self.options, self.backbone, self.file = names, total, options, backbone, file
        self.judging, self.settings = judging, settings
        self.judged = judged_share(list(self._methods.values()), judging)
        self.quick = replace(judging, finetune=False, labels=judging.decide or "100%", decide=None)
        self.rungs = _read(file, self._methods)
        self.runs: dict[str, RunResult] = {}

    @property
    def _methods(self) -> dict[str, str]:
        return {name: one.method for name, one in self.names.items()}

    def run(self) -> tuple[Planned, Results]:
        """All rungs that are left."""
        for rung in self.rungs:  # what was stopped in an earlier call is read, not trained
            if rung.stopped:
                found = self._trained(tuple(rung.stopped), rung.seconds, self.quick)[1]
                self.runs |= {run.name: self._noted(run, rung.stopped) for run in found.runs}
        while True:
            if not self.rungs or (self.rungs[-1].took and not self.rungs[-1].last):
                self.rungs.append(self._next())
                self._keep()
            rung, last = self.rungs[-1], self.rungs[-1].last
            self._say(
                f"rung {len(self.rungs)}: {_many(len(rung.names), self.settings)}, each trained for {duration(rung.seconds)} in all"
            )
            begun = time.monotonic()
            plan, found = self._trained(rung.names, rung.seconds, self.judging if last else self.quick)
            stopped = {} if last else _stopped(found.runs, ladder(len(rung.names))[1], rung.seconds)
            took = rung.took or max(1.0, time.monotonic() - begun)  # of a search that was over: as it was
            self.rungs[-1] = replace(rung, took=took, stopped=stopped)
            self._keep()
            self.runs |= {run.name: self._noted(run, stopped) for run in found.runs}
            for said in stopped.values():
                self._say(said)
            if self.rungs[-1].last:
                asked = replace(found.asked, budget=self.options.budget, search=True)
                asked = replace(asked, settings=self.settings if self.settings > 1 else None)
                return plan, self._said(results_now(found.data, asked, [self.runs[name] for name in self.names]))

    def _said(self, results: Results) -> Results:
        """Results whose verdict names the settings of the best run, with the command that trains it again."""
        best = results.run(results.winner.name) if results.winner else best_run(results.runs)
        if best is None:
            return results
        one, seconds = self.names[best.name], max(rung.seconds for rung in self.rungs if best.name in rung.names)
        values = (f"{name} {value} (default {_plain(one.usual[name])})" for name, value in one.drawn.items())
        how = (
            f" {best.shown} was trained with {', '.join(values) or 'its default settings'}."
            if self.settings > 1
            else ""
        )
        again = train_command(one, self.options, seconds, self.backbone)
        return replace(results, verdict=f"{results.verdict}{how}", again=again)

    def _next(self) -> Rung:
        """The rung after those that are done."""
        before = self.rungs[-1] if self.rungs else Rung(tuple(self.names), 0.0)
        names = tuple(name for name in before.names if name not in before.stopped)
        overhead = OVERHEAD
        if self.rungs:
            former = self.rungs[-2].seconds if len(self.rungs) > 1 else 0.0
            overhead = max(0.0, before.took / len(before.names) - (before.seconds - former))
        left = self.total - sum(rung.took for rung in self.rungs)
        return Rung(
            names,
            round(
                before.seconds
                + max(LEAST, share(ladder(len(names)), left, overhead, judged=self.judged, former=before.seconds))
            ),
        )

    def _trained(self, names: Sequence[str], seconds: float, judging: Judging) -> tuple[Planned, Results]:
        options = replace(self.options, budget=f"{seconds:.0f}s")
        methods = [self.names[name].method for name in names]
        return train_all(methods, options, judging, backbone=self.backbone, times=0)

    def _noted(self, run: RunResult, stopped: dict[str, str]) -> RunResult:
        return replace(run, notes=(*run.notes, stopped[run.name])) if run.name in stopped else run

    def _keep(self) -> None:
        write_json(self.file, {"methods": self._methods, "rungs": [asdict(rung) for rung in self.rungs]})

    def _say(self, text: str) -> None:
        if not self.options.quiet:
            terminal().print(text, style="dim")


def _stopped(runs: Sequence[RunResult], kept: int, seconds: float) -> dict[str, str]:
    """Why each of the methods is stopped that is not among the best ``kept``."""
    done = [run for run in runs if run.finished]
    by = deciding(done)
    best = [] if by is None else ranked(done, by)
    said = {run.name: f"{run.name}: stopped, as it did not finish." for run in runs}
    said |= {run.name: f"{run.name}: stopped after {duration(seconds)} of training." for run in done}
    for score, run in best[kept:]:
        said[run.name] = (
            f"{run.name}: stopped after {duration(seconds)} of training at {_shown(score)}, where {best[0][1].name} had "
            f"{_shown(best[0][0])}."
        )
    return {name: text for name, text in said.items() if name not in [run.name for _, run in best[:kept]]}


def _shown(score: Score) -> str:
    return score.show(score.value or 0.0)


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _read(file: Path, names: dict[str, str]) -> list[Rung]:
    """The rungs of a search that was stopped; none of one that trained nothing yet, whatever it was about. Raises
    SensoriumError for one of other methods."""
    if not file.is_file():
        return []
    found: dict[str, Any] = read_object(file)
    rungs = list(decode(tuple[Rung, ...], found.get("rungs"), str(file), field="rungs"))
    if not any(rung.took or (file.parent / name / "run.json").is_file() for rung in rungs for name in rung.names):
        return []
    if found.get("methods") != names:
        raise SensoriumError(f"{file.parent} holds a search among other methods or settings; give another --out.")
    return rungs
