"""How many threads a run computes with, and how they wait for each other.

torch splits each operation among its OpenMP threads and lets those that are done spin until the last one is. Where another
program holds a core, the last one is not even running, and the others burn the time in which it could: a step takes five
times as long, forty times beside a second training. Three things together prevent that:

- a run takes the cores that are free when it starts, and keeps that number when it is resumed: how sums are split
  depends on it, so another number would change the last bits of the results;
- threads spin for some tenths of a millisecond, not for ten milliseconds (``before_torch``: libgomp reads it as torch is loaded);
- where the machine becomes busy later, ``Watch`` makes them sleep at once for as long as that lasts (``ShortWaits``),
  which changes no number, and says so.

``benchmarks/busy.py`` measures what each is worth. Nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sensorium.base import live, machine
from sensorium.errors import SensoriumError

SPIN = 10_000
"""Rounds that a thread spins before it sleeps: few enough for a busy machine, enough to cost a quiet one under 5 %.

`python -m benchmarks.busy --spin 3000,10000,30000` has the rates."""

BUSY = 0.3
"""Cores too few, from which on a run counts as disturbed: a program that never rests gets two thirds of a contested core."""

_VARIABLE = "GOMP_SPINCOUNT"
_in_force = os.environ.get(_VARIABLE)
_set_here: int | None = None
_set_by_others: int | None = None


@dataclass(frozen=True)
class Threads:
    """How a run computes: ``count`` threads; ``spin`` rounds of waiting awake, None for libgomp's own; and why."""

    count: int
    spin: int | None
    reason: str


def before_torch() -> None:
    """Limit how long threads spin. Call before torch is imported: later, only processes started from this one are reached.

    Who has set ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` has decided.
    """
    global _in_force
    if decided_by_user():
        return
    os.environ[_VARIABLE] = str(SPIN)
    if "torch" not in sys.modules:
        _in_force = str(SPIN)


def decided_by_user() -> bool:
    """Whether the environment says how threads wait, and it wasn't us who wrote it there."""
    return "OMP_WAIT_POLICY" in os.environ or os.environ.get(_VARIABLE, str(SPIN)) != str(SPIN)


def decide(cores: int, busy: float, runs: Sequence[int | None] = ()) -> Threads:
    """The threads of a run that starts now.

    cores: how many it may use. busy: how many of them other programs keep busy, a fraction maybe. runs: threads of each
    other live run, None for one that is starting too and will decide by the same rule.
    """
    settled, starting = [n for n in runs if n is not None], sum(n is None for n in runs)
    # What runs hold is seen as busy too, unless they are loading data just now: whichever says more.
    taken = min(max(int(busy + 0.5), sum(settled)), cores)
    free = (cores - taken) // (1 + starting)
    # On a machine without a free core everyone gets a part of it all the same.
    fair = cores // (1 + max(len(runs), 1 if taken else 0))
    count = max(1, free, fair)
    return Threads(count, spin(), _why(cores, taken, len(runs)))


def _why(cores: int, taken: int, runs: int) -> str:
    if cores == 1:
        return "1 core"
    beside = f"{runs} other run{'s' * (runs > 1)} of Sensorium beside it"
    if taken:
        said = f"{taken} of {cores} cores busy with other programs"
        return f"{said}, {beside}" if runs else said
    return f"{cores} cores, {beside}" if runs else f"{cores} cores, all free"


def choose(*, asked: int | None = None, kept: Mapping[str, Any] | None = None) -> Threads:
    """The threads of this process's run, by the first that applies: ``asked``, ``kept``, ``OMP_NUM_THREADS``, the machine.

    asked: what the user wants (``--threads``). kept: what ``run.json`` says of a run that goes on. Looking at the machine
    takes half a second, a whole one where it is busy.

    Raises SensoriumError where ``asked`` or ``kept`` isn't a number of threads.
    """
    if asked is not None:
        if asked < 1:
            raise SensoriumError(f"--threads {asked}: must be at least 1.")
        return Threads(asked, spin(), "given")
    if kept is not None:
        count = kept.get("count")
        if not isinstance(count, int) or count < 1:
            raise SensoriumError(f"run.json: threads.count is {count!r}, not a number of threads. Give --threads.")
        return Threads(count, spin(), str(kept.get("reason", "")))
    most = usable()
    if "OMP_NUM_THREADS" in os.environ:
        return Threads(most, spin(), "OMP_NUM_THREADS")
    if most == 1:
        return decide(1, 0.0)
    return decide(most, machine.measure(most), live.others())


def usable() -> int:
    """The most threads that a run takes: as many as torch would by itself or was told to, within a container's limit."""
    import torch

    global _set_by_others
    found = torch.get_num_threads()
    if found != _set_here or _set_by_others is None:  # not our own setting for an earlier run of this process
        _set_by_others = found
    limit = machine.quota()
    return _set_by_others if limit is None else max(1, min(_set_by_others, int(limit)))


def use(chosen: Threads) -> None:
    """Compute with these threads from now on, and let other runs know."""
    import torch

    global _set_here
    usable()
    torch.set_num_threads(chosen.count)
    _set_here = chosen.count
    live.settle(chosen.count)


def spin() -> int | None:
    """The spin count that torch's threads have; None where it is not known to be set."""
    return int(_in_force) if _in_force is not None and _in_force.isdigit() else None


class ShortWaits:
    """While open, this process's threads sleep at once when they wait for each other. Results don't change.

    libgomp spins for a hundred rounds only as soon as it manages more threads than there are processors (its manual,
    ``GOMP_SPINCOUNT``). So idle ones are added: a thread that has once computed with torch keeps a team of its own.
    """

    def __init__(self) -> None:
        self._end: threading.Event | None = None

    @property
    def open(self) -> bool:
        return self._end is not None

    def start(self, count: int) -> None:
        """``count``: threads that torch computes with in this process."""
        if self.open or count < 2 or sys.platform != "linux":
            return
        self._end = threading.Event()
        for _ in range(idle_teams(count, len(machine.processors()))):
            ready = threading.Event()
            threading.Thread(target=_hold_a_team, args=(ready, self._end), daemon=True).start()
            ready.wait()

    def stop(self) -> None:
        if self._end is not None:
            self._end.set()
            self._end = None


def idle_teams(count: int, processors: int) -> int:
    """How many more teams of ``count`` threads make more threads than processors; each shares no thread but its first.

    The first team counts as ``count`` threads, another one as ``count - 1``: its first thread is not libgomp's.
    """
    return max(0, (processors - count) // (count - 1) + 1) if count > 1 else 0


def _hold_a_team(ready: threading.Event, end: threading.Event) -> None:
    import torch

    try:
        torch.ones(1 << 17, device="cpu").add_(1)  # large enough to be split among threads
    finally:
        ready.set()
    end.wait()


class Watch:
    """Looks now and then whether other programs have come (or gone), makes waits short meanwhile, and says so once.

    processes: how many like this one belong to the run. every: seconds between two looks. patience: how many busy looks
    in a row are worth a line.
    """

    def __init__(
        self,
        count: int,
        *,
        processes: int = 1,
        every: float = 1.0,
        patience: int = 5,
        cores: int | None = None,
        now: Callable[[], machine.Moment] = machine.now,
    ) -> None:
        self.count, self.processes, self.every, self.patience = count, processes, every, patience
        self.cores = machine.cores() if cores is None else cores
        self.waits = ShortWaits()
        self._now, self._before = now, now()
        self._due = time.monotonic() + every
        self._busy = self._quiet = 0
        self._told = False

    def __call__(self) -> str | None:
        """Call between two steps: a tenth of a microsecond when no look is due. A sentence when there is something to say."""
        if time.monotonic() < self._due:
            return None
        return self.look()

    def look(self) -> str | None:
        """Compare with the last look, whenever that was."""
        after = self._now()
        busy = machine.busy_between(self._before, after, usable=self.cores, processes=self.processes)
        self._before, self._due = after, time.monotonic() + self.every
        missing = busy - max(0, self.cores - self.count * self.processes)
        self._busy, self._quiet = (self._busy + 1, 0) if missing >= BUSY else (0, self._quiet + 1)
        if self._busy and not decided_by_user():
            self.waits.start(self.count)
        elif self._quiet == 2:
            self.waits.stop()
        if self._told or self._busy < self.patience:
            return None
        self._told = True
        return self._sentence(busy)

    def _sentence(self, busy: float) -> str:
        said = f"Other programs keep {busy:.1f} of {self.cores} cores busy, which slows this run. End them, or start them with `nice`."
        if self.count == 1:
            return said
        return (
            f"{said} The run keeps its {self.count} threads, so its results stay the same; one that starts now would take "
            "only the cores that are free."
        )

    def close(self) -> None:
        self.waits.stop()


def described(chosen: Threads, *, resumed: bool = False) -> tuple[int, str]:
    """Value and reason, as the other settings of a run are shown."""
    reason = f"as when the run started: {chosen.reason}" if resumed and chosen.reason != "given" else chosen.reason
    return chosen.count, reason


def divided(chosen: Threads, jobs: int) -> Threads:
    """The threads of each of ``jobs`` runs that are started side by side."""
    if jobs < 2:
        return chosen
    return replace(chosen, count=max(1, chosen.count // jobs), reason=f"{chosen.reason}; {jobs} runs at once")
