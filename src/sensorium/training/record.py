"""The metrics of a run: one row per step, kept on the device and read in groups.

Reading a number from a GPU waits for everything queued before it. So each step packs its scalars into one small tensor
there, and rows are read, averaged over processes, checked and written a few at a time.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from sensorium.base.files import disk_errors, unlinked
from sensorium.base.table import Table
from sensorium.training.track import Tracking

_ROWS, _SECONDS, _TENSORBOARD_STEPS = 20, 1.0, 10


class Record:
    """Writes ``metrics.csv``, ``online.csv`` and TensorBoard in the first process; ``loss`` is the last one read, ``recent``
    the mean of each scalar over the rows that were read with it."""

    def __init__(self, out: Path, *, step: int, first: bool, eager: bool, track: Tracking | None = None) -> None:
        """Continue at ``step``; ``first``: this process writes; ``eager``: reading a number is free (on a CPU).
        ``track``: what follows the run, too."""
        self.loss = math.nan
        self.recent: dict[str, float] = {}
        self._eager = eager
        self._rows: list[tuple[dict[str, Any], tuple[str, ...], Tensor]] = []
        self._flushed, self._bad = time.perf_counter(), False
        self._metrics = self._online = self._board = None
        self._track = track if first else None
        if first:
            self._metrics = Table(out / "metrics.csv", before=step)
            # A checkpoint comes after the look at its step; a run that starts again looks again.
            self._online = Table(out / "online.csv", before=step + 1 if step else 0)
            if track is None or "tensorboard" not in track.names:
                self._board = _Board(unlinked(out / "tensorboard"), step)
        if self._track is not None:
            self._track.begin()

    def add(self, row: dict[str, Any], scalars: Mapping[str, Tensor]) -> None:
        """Note the ``scalars`` (0-d, one of them ``loss``) of the step that ``row`` (step, seconds, seen, lr) describes."""
        values = torch.stack(list(scalars.values()))
        self._rows.append((row, tuple(scalars), values))
        if self._eager and not math.isfinite(float(scalars["loss"])):
            self._bad = True

    def due(self) -> bool:
        """Whether rows should be read now: the same in all processes unless ``eager``, which is for one process
        only."""
        late = self._eager and time.perf_counter() - self._flushed >= _SECONDS
        return self._bad or late or len(self._rows) >= _ROWS

    def flush(self) -> dict[str, Any] | None:
        """Write the rows. Stops at the first one with a non-finite loss and returns its step, lr, terms and values."""
        rows, self._rows, self._flushed = self._rows, [], time.perf_counter()
        if not rows:
            return None
        flat = torch.cat([values for _, _, values in rows])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
            flat = flat / dist.get_world_size()
        numbers = iter(flat.tolist())
        done: list[dict[str, Any]] = []
        bad = None
        for row, names, _ in rows:
            scalars = {name: next(numbers) for name in names}
            done.append({"step": row["step"], "seconds": row["seconds"], "seen": row["seen"]})
            done[-1] |= {"loss": scalars.pop("loss"), "lr": row["lr"], **scalars}
            if not math.isfinite(done[-1]["loss"]):
                terms = [name for name in names if not math.isfinite(done[-1][name])]
                parts = [name for name in terms if name != "loss"] or terms
                values = {name: str(done[-1][name]) for name in names}
                bad = {"step": row["step"], "lr": row["lr"], "terms": parts, "values": values}
                break
        self.loss = done[-1]["loss"]
        self.recent = {name: fmean(row[name] for row in done if name in row) for name in rows[len(done) - 1][1]}
        if self._metrics is not None:
            self._metrics.extend(done)
        for row in done:
            if self._board is not None and row["step"] % _TENSORBOARD_STEPS == 0:
                self._board.add({k: v for k, v in row.items() if k != "step"}, row["step"])
        if self._track is not None:
            self._track.log(done)
        return bad

    def looked(self, row: dict[str, Any]) -> None:
        """Write a row of ``online.csv``."""
        if self._online is not None:
            self._online.extend([row])
        if self._board is not None:
            skipped = ("step", "seconds", "seen")
            self._board.add({f"online/{k}": v for k, v in row.items() if k not in skipped}, row["step"])
        if self._track is not None:
            self._track.log(online=[row])

    def sync(self) -> None:
        for table in (self._metrics, self._online):
            if table is not None:
                table.sync()

    @property
    def damage(self) -> list[str]:
        """What was wrong with the tables as they were found."""
        return [table.damage for table in (self._metrics, self._online) if table is not None and table.damage]

    def losses(self) -> list[float]:
        return self._metrics.column("loss") if self._metrics is not None else []

    def close(self) -> None:
        for table in (self._metrics, self._online):
            if table is not None:
                table.close()
        if self._board is not None:
            self._board.close()


class _Board:
    """TensorBoard's files in ``folder``; entries from ``step`` on are discarded."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self._writer: Any = None

    def add(self, values: Mapping[str, float], step: int) -> None:
        with disk_errors(self.folder):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=self.step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            with suppress(OSError):  # its own thread met a full disk: these curves are in the tables too
                self._writer.close()


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak: the device's allocated memory on a GPU, the process's resident memory on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (handle := Path("/proc/self/clear_refs")).exists():
        try:
            handle.write_text("5", encoding="utf-8")  # Linux: resets VmHWM
        except OSError:
            return


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since the last reset, in MB (2^20 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
