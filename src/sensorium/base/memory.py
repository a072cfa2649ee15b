"""How much memory this process may still allocate."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sensorium.errors import SensoriumError


def available_memory() -> int:
    """Bytes that can still be allocated: of the machine, its container, or the process's own limit, the least."""
    free = 8 << 30
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        with suppress(AttributeError, ValueError, OSError):  # not every system has these
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text("ascii"))
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text("ascii")))
    except (OSError, ValueError):
        pass
    return max(min(free, _within_the_process_limit()), 0)


def affordable(size: int, where: str, remedy: str, *, share: float = 0.8) -> None:
    """Raise SensoriumError if ``size`` bytes would need more than ``share`` of the free memory."""
    free = available_memory()
    if size > share * free:
        raise SensoriumError(
            f"{where}: needs {size / 2**30:,.1f} GiB, more than the {free / 2**30:,.1f} GiB of free memory; {remedy}"
        )


class Headroom:
    """Watches over what is gathered: raises SensoriumError once three quarters of the memory that was free are used."""

    def __init__(self, where: str, remedy: str) -> None:
        self.where, self.remedy, self.free, self.seen = where, remedy, available_memory(), 0

    def check(self) -> None:
        """Call this for each entry; memory is measured at every 16,384th."""
        self.seen += 1
        if not self.seen % 16_384 and (left := available_memory()) < self.free // 4:
            raise SensoriumError(
                f"{self.where}: {self.seen:,} entries leave only {left / 2**30:,.1f} GiB of free memory; {self.remedy}"
            )


def _within_the_process_limit() -> int:
    """Bytes left under `ulimit -v`; unlimited is a very large number."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return 1 << 62
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError, IndexError):
        return 1 << 62
