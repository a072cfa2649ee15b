"""The batch of each step: a function of (seed, step), so that resuming means starting at a step.

The data are one endless stream, permutation after permutation, each seeded by (seed, pass). Step k takes the stream's
items k*B ... (k+1)*B - 1: no ragged last batch, and a batch may be larger than the data. A process keeps its contiguous
rows of the global batch, cut into ``accumulate`` micro-batches; the random numbers of a view are drawn for the whole
global batch (:mod:`sensorium.base.draw`), so how a batch is cut changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.base.draw import Draw, Views, step_seed
from sensorium.data.rows import Rows, Taken
from sensorium.errors import SensoriumError
from sensorium.training.resident import Resident, settled

_ORDER = 0x5EED  # keeps the shuffling's random numbers apart from those of the views


def read_by(views: Views) -> tuple[str, ...] | None:
    """The fields that views declare to read; None: all."""
    return getattr(views, "reads", None)


class Order:
    """The endless stream of indices into ``count`` rows."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise SensoriumError("there is nothing to train on: check the data folder.")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._shuffled: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        """Indices of the global batch of ``step``, int64 [B]."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        first, last = start // self.count, (stop - 1) // self.count
        parts = [self._permutation(epoch) for epoch in range(first, last + 1)]
        offset = first * self.count
        return np.concatenate(parts)[start - offset : stop - offset]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._shuffled:
            generator = torch.Generator().manual_seed(step_seed(step_seed(self.seed, _ORDER), epoch))
            kept = sorted(self._shuffled)[-1:]  # a batch that spans two passes needs both, later ones neither
            self._shuffled = {old: self._shuffled[old] for old in kept}
            self._shuffled[epoch] = torch.randperm(self.count, generator=generator).numpy()
        return self._shuffled[epoch]


@dataclass(frozen=True)
class Share:
    """The rows of a global batch of ``batch_size`` that one process works on, and the number of micro-batches."""

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        pieces = self.accumulate * self.world
        if self.batch_size < 1 or self.accumulate < 1 or self.batch_size % pieces:
            near = max(pieces, round(self.batch_size / pieces) * pieces) if pieces > 0 else 1
            raise SensoriumError(
                f"batch size {self.batch_size} cannot be divided equally among {self.world} process(es) x {self.accumulate} "
                f"micro-batch(es): use --batch-size {near}."
            )

    def rows(self, micro: int) -> slice:
        size = self.batch_size // (self.accumulate * self.world)
        start = (self.rank * self.accumulate + micro) * size
        return slice(start, start + size)


class Batches:
    """Iterates over the micro-batches from ``step`` on until ``stopped``, on the training device.

    ``waited``: seconds that the loop waited for rows; ``augmented``: seconds spent in the views (on a GPU: in launching
    them). With ``ahead`` a thread reads the next rows while the current step runs: faster on a GPU; on a CPU it would
    take cores from the step. ``settle`` keeps the rows on the GPU if they fit.
    """

    def __init__(self, rows: Rows, views: Views, share: Share, *, seed: int, ahead: bool = False) -> None:
        self.rows, self.names = rows, read_by(views)
        self.views, self.share, self.seed, self.ahead = views, share, seed, ahead
        self.order = Order(len(rows), share.batch_size, seed)
        self.device = torch.device("cpu")
        self.step, self.micro, self.stopped = 0, 0, False
        self.fraction = 1.0  # of the budget spent, for views that change with it; the loop says it before each step
        self.waited = self.augmented = 0.0
        self._reader: ThreadPoolExecutor | None = None
        self._next: tuple[tuple[int, int], Future[Taken]] | None = None

    def settle(self, device: torch.device) -> None:
        """Give batches on ``device``; rows that fit are kept there, and no thread reads ahead."""
        self.device = device
        self.rows = settled(self.rows, self.names, device)
        self.ahead = self.ahead and not isinstance(self.rows, Resident)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self.stopped:
            self.close()
            raise StopIteration
        before = time.perf_counter()
        taken = (self._fetch if self.ahead else self._read)(self.step, self.micro)
        fields = {name: _each(lambda x: x.to(self.device, non_blocking=True), value) for name, value in taken.items()}
        ready = time.perf_counter()
        rows = self.share.rows(self.micro)
        draw = Draw.seeded(
            self.seed, self.step, self.share.batch_size, rows.start, rows.stop, self.device, self.fraction
        )
        with torch.no_grad():
            batch = self.views(fields, draw)
        self.waited += ready - before
        self.augmented += time.perf_counter() - ready
        self.step, self.micro = self._after(self.step, self.micro)
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.micro = state["step"], 0

    def close(self) -> None:
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
        self._reader = self._next = None

    def _after(self, step: int, micro: int) -> tuple[int, int]:
        return (step, micro + 1) if micro + 1 < self.share.accumulate else (step + 1, 0)

    def _read(self, step: int, micro: int) -> Taken:
        taken = self.rows.take(self.order(step)[self.share.rows(micro)], self.names)
        if self.device.type != "cuda" or isinstance(self.rows, Resident):
            return taken
        return {name: _each(Tensor.pin_memory, value) for name, value in taken.items()}

    def _fetch(self, step: int, micro: int) -> Taken:
        self._reader = self._reader or ThreadPoolExecutor(1, "sensorium-reader")
        at, future = self._next or ((-1, -1), None)
        if future is None or at != (step, micro):
            future = self._reader.submit(self._read, step, micro)
        found = future.result()
        following = self._after(step, micro)
        self._next = (following, self._reader.submit(self._read, *following))
        return found


def _each(change: Callable[[Tensor], Tensor], value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return [change(one) for one in value] if isinstance(value, list) else change(value)
