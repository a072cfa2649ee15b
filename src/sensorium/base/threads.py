"""How many threads a run uses, and how they wait for each other.

torch splits each operation among its OpenMP threads; those that finish first spin (busy-wait) for the last one. If
another program occupies a core, the last one is not scheduled while the others burn CPU time: a step takes five times
as long, forty times beside a second training. Three measures together prevent that:

- a run takes the cores that are free when it starts, and keeps that number when it is resumed: the order of summation
  depends on it, so another number would change the last bits of the results;
- threads spin for tenths of a millisecond, not ten milliseconds (``before_torch`` sets the spin count,
  ``GOMP_SPINCOUNT``: iterations of the waiting loop before a thread sleeps; libgomp reads it when torch is loaded);
- if the machine becomes busy later, ``Watch`` makes them sleep at once while that lasts (``ShortWaits``), which changes
  no result, and reports it.

``benchmarks/busy.py`` measures the effect of each. torch is imported only when needed.
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
"""Spin count: iterations that a thread waits before it sleeps; low enough for a busy machine, and costs an idle one
under 5 %.

`python -m benchmarks.busy --spin 3000,10000,30000` measures it."""

BUSY = 0.3
"""Missing cores at which a run counts as disturbed: a program at full load gets two thirds of a contested core."""

_VARIABLE = "GOMP_SPINCOUNT"
_in_force = os.environ.get(_VARIABLE)
_set_here: int | None = None
_set_by_others: int | None = None
_begun: machine.Moment | None = None  # the load is measured while torch is imported


@dataclass(frozen=True)
class Threads:
    """A run's threads: ``count``; ``spin``, the spin count, None for libgomp's default; and the reason."""

    count: int
    spin: int | None
    reason: str


def before_torch() -> None:
    """Limit how long threads spin, and silence torch's profiler. Call before torch is imported; later it only affects
    child processes.

    The user's ``GOMP_SPINCOUNT``, ``OMP_WAIT_POLICY`` or ``KINETO_LOG_LEVEL`` takes precedence.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports each start, and that there is no GPU
    global _in_force, _begun
    _begun = machine.now()
    if decided_by_user():
        return
    os.environ[_VARIABLE] = str(SPIN)
    if "torch" not in sys.modules:
        _in_force = str(SPIN)


def decided_by_user() -> bool:
    """Whether the user's environment sets how threads wait."""
    return "OMP_WAIT_POLICY" in os.environ or os.environ.get(_VARIABLE, str(SPIN)) != str(SPIN)


def decide(cores: int, busy: float, runs: Sequence[int | None] = ()) -> Threads:
    """How many threads a run that starts now uses.

    cores: how many it may use. busy: how many of them other programs use, possibly fractional. runs: threads of each
    other live run, None for one that is also starting and will decide by the same rule.
    """
    settled, starting = [n for n in runs if n is not None], sum(n is None for n in runs)
    # Cores of other runs also count as busy, unless they are loading data now: take the larger number.
    taken = min(max(int(busy + 0.5), sum(settled)), cores)
    free = (cores - taken) // (1 + starting)
    # On a machine without a free core each run still gets some.
    fair = cores // (1 + max(len(runs), 1 if taken else 0))
    count = max(1, free, fair)
    return Threads(count, spin(), _why(cores, taken, len(runs)))


def _why(cores: int, taken: int, runs: int) -> str:
    if cores == 1:
        return "1 core"
    beside = f"{runs} other run{'s' * (runs > 1)} of Sensorium"
    if taken:
        said = f"{taken} of {cores} cores busy with other programs"
        return f"{said}, {beside}" if runs else said
    return f"{cores} cores, {beside}" if runs else f"{cores} cores, all free"


def choose(*, asked: int | None = None, kept: Mapping[str, Any] | None = None) -> Threads:
    """The threads of this process's run, by the first that applies: ``asked``, ``kept``, ``OMP_NUM_THREADS``, the
    machine.

    asked: the user's ``--threads``. kept: ``run.json``'s number, for a run that is resumed. Measuring the machine's
    load takes half a second if it is busy, or if ``before_torch`` was not called in the last seconds.

    Raises SensoriumError if ``asked`` or ``kept`` isn't a number of threads.
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
    return decide(most, machine.measure(most, since=_begun), live.others())


def usable() -> int:
    """The maximum threads of a run: torch's default or ``OMP_NUM_THREADS``, within a container's limit."""
    import torch

    global _set_by_others
    found = torch.get_num_threads()
    if found != _set_here or _set_by_others is None:  # not our own setting for an earlier run of this process
        _set_by_others = found
    limit = machine.quota()
    return _set_by_others if limit is None else max(1, min(_set_by_others, int(limit)))


def use(chosen: Threads) -> None:
    """Use these threads from now on, and publish the number to other runs."""
    import torch

    global _set_here
    usable()
    torch.set_num_threads(chosen.count)
    _set_here = chosen.count
    live.settle(chosen.count)


def spin() -> int | None:
    """The spin count of torch's threads; None if unknown."""
    return int(_in_force) if _in_force is not None and _in_force.isdigit() else None


class ShortWaits:
    """While open, this process's threads sleep at once when they wait for each other. Results don't change.

    libgomp lowers the spin count to 100 once it manages more threads than there are processors (its manual,
    ``GOMP_SPINCOUNT``). So idle threads are added: a thread that has once computed with torch keeps its own team.
    """

    def __init__(self) -> None:
        self._end: threading.Event | None = None

    @property
    def open(self) -> bool:
        return self._end is not None

    def start(self, count: int) -> None:
        """``count``: torch's threads in this process."""
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
    """How many extra teams of ``count`` threads make more threads than processors.

    The first team counts as ``count`` threads, each other one as ``count - 1``: its first thread is not libgomp's.
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
    """Periodically checks for load by other programs, shortens waits while there is any, and reports it once.

    processes: processes of the run. every: seconds between two checks. patience: consecutive busy checks before it is
    reported.
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
        """Call between two steps: takes a tenth of a microsecond unless a check is due. A message if there is one, else
        None."""
        if time.monotonic() < self._due:
            return None
        return self.look()

    def look(self) -> str | None:
        """Compare with the last check, whenever that was."""
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
        said = f"Other programs use {busy:.1f} of {self.cores} cores, which slows this run. End them, or start them with `nice`."
        if self.count == 1:
            return said
        return (
            f"{said} The run keeps its {self.count} threads, so its results stay the same; a run started now would "
            "use only the free cores."
        )

    def close(self) -> None:
        self.waits.stop()


def described(chosen: Threads, *, resumed: bool = False) -> tuple[int, str]:
    """Value and reason, in the form of a run's other settings."""
    reason = f"as when the run started: {chosen.reason}" if resumed and chosen.reason != "given" else chosen.reason
    return chosen.count, reason


def divided(chosen: Threads, jobs: int) -> Threads:
    """The threads of each of ``jobs`` parallel runs."""
    if jobs < 2:
        return chosen
    return replace(chosen, count=max(1, chosen.count // jobs), reason=f"{chosen.reason}; {jobs} runs at once")
