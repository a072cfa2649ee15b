"""How many cores this process may use, and how many of them other programs use.

Linux reports both exactly: the affinity mask, the control group's quota, /proc/stat. Elsewhere the processor count and
the load average are used. Only the standard library is imported, so the command line can call this first.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

RECENT = 5.0  # seconds; averaged over more, a program that has just started would not show
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Moment:
    """CPU time used so far, in seconds.

    ``at``: time on the monotonic clock; ``cpus``: of each processor that this process may run on, by all programs;
    ``own``: by this process; ``group``: by its control group, if that has a quota; ``load``: the load average, if there
    is no /proc.
    """

    at: float
    cpus: dict[int, float]
    own: float
    group: float | None = None
    load: float | None = None


def processors() -> list[int]:
    """Indices of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may use: its processors, hyperthreads of one core counted once, within the quota."""
    found = len({core_of(cpu) for cpu in processors()})
    limit = quota()
    return found if limit is None else max(1, min(found, int(limit)))


@cache
def core_of(cpu: int) -> str:
    """An identifier of the core that a processor belongs to."""
    where = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (where / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


def quota(proc: Path = _PROC, mounted: Path = _CGROUP) -> float | None:
    """The smallest limit, in cores, that a control group of this process sets (a container's ``--cpus``); None without
    one."""
    limits = [limit for folder in _groups(proc, mounted) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _groups(proc: Path, mounted: Path) -> list[Path]:
    """The folders of this process's control groups that can have a limit: its own and its parents."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots = [mounted, mounted / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [mounted / controllers, mounted / "cpu"]
        else:
            continue
        # A container may see its own group as the root of the mount while its path is still the host's.
        inside = Path(path.lstrip("/"))
        found += [root / part for root in roots for part in (inside, *inside.parents)]
    return list(dict.fromkeys(found))


def _limit(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            most, period = (folder / "cpu.max").read_text().split()
            return None if most == "max" else int(most) / int(period)
        most = int((folder / "cpu.cfs_quota_us").read_text())
        return most / int((folder / "cpu.cfs_period_us").read_text()) if most > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _used_by_group() -> float | None:
    """CPU seconds used by the control group with the smallest limit; None if there is no limit."""
    limited = [(limit, folder) for folder in _groups(_PROC, _CGROUP) if (limit := _limit(folder)) is not None]
    if not limited:
        return None
    folder = min(limited)[1]
    try:
        if (folder / "cpuacct.usage").is_file():
            return int((folder / "cpuacct.usage").read_text()) / 1e9
        said = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        return int(said["usage_usec"]) / 1e6
    except (OSError, KeyError, ValueError):
        return None


def now() -> Moment:
    """Read the clocks: half a millisecond on a small machine."""
    at, own = time.monotonic(), time.process_time()
    try:
        text = (_PROC / "stat").read_text()
    except OSError:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return Moment(at, {}, own, load=load)
    # A program that was started with `nice` yields to one that was not, so its time counts as idle.
    polite = hasattr(os, "getpriority") and os.getpriority(os.PRIO_PROCESS, 0) > 0
    return Moment(at, used(text, set(processors()), with_nice=polite), own, _used_by_group())


def used(stat: str, allowed: set[int], *, with_nice: bool) -> dict[int, float]:
    """The text of /proc/stat -> busy seconds (steal time included) of each of the ``allowed`` processors."""
    found = {}
    for line in stat.splitlines():
        name, *fields = line.split()
        if not name.startswith("cpu"):
            break
        if name == "cpu" or int(name[3:]) not in allowed:
            continue
        user, nice, system, _, _, irq, softirq, steal = ([int(field) for field in fields] + [0] * 8)[:8]
        found[int(name[3:])] = (user + system + irq + softirq + steal + nice * with_nice) / _TICKS
    return found


def busy_between(before: Moment, after: Moment, *, usable: int, processes: int = 1) -> float:
    """How many of ``usable`` cores other programs used on average; load on cores beyond ``usable`` is ignored.

    ``processes``: processes of the same run (assumed to use as much as this one).
    """
    seconds = max(after.at - before.at, 1e-9)
    own = (after.own - before.own) * processes / seconds
    if after.load is not None:
        return max(0.0, min(after.load - own, float(usable)))
    by_core: dict[str, float] = {}
    for cpu, total in after.cpus.items():
        core = core_of(cpu)
        by_core[core] = by_core.get(core, 0.0) + (total - before.cpus.get(cpu, total)) / seconds
    busy = sum(min(1.0, share) for share in by_core.values()) - own - max(0, len(by_core) - usable)
    if after.group is not None and before.group is not None:
        busy = max(busy, (after.group - before.group) / seconds - own)
    return max(0.0, min(busy, float(usable)))


def measure(usable: int, *, seconds: float = 0.5, since: Moment | None = None) -> float:
    """How many of ``usable`` cores other programs use now. Takes ``seconds``, twice if the first reading is busy.

    since: an earlier moment; if recent, the first reading is of the time since then, without waiting.
    A short burst (a compiler, a page that loads) must not slow down hours of training, so the lower of two readings
    counts.
    """
    found = float(usable)
    for _ in range(2):
        if since is None or not seconds <= time.monotonic() - since.at <= RECENT:
            since = now()
            time.sleep(seconds)
        found, since = min(found, busy_between(since, now(), usable=usable)), None
        if found < 0.5:
            break
    return found
