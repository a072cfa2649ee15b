"""Trackers follow a run: what it records goes to each of them, in a thread of its own.

A tracker may be slow, hang or fail: the training neither waits for it nor hears of it, but for one warning. The run's own
tables are written first, and a tracker gets their rows. ``tracked.json`` in the run's folder holds the id of the tracked
run and how far it has got, so that a run that is resumed goes on with it: rows that it lacks are sent, and none twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from queue import Empty, Queue

from sensorium.base import stop
from sensorium.base.files import write_json
from sensorium.base.reading import printable, read_object
from sensorium.base.records import decode
from sensorium.base.table import read_table
from sensorium.base.terminal import terminal
from sensorium.errors import SensoriumError
from sensorium.recipe.info import read_info
from sensorium.training.checkpoints import OUTCOME
from sensorium.training.trackers import Status, Tracked, Tracker, start

FILE = "tracked.json"
_STARTING, _FINISHING = 120.0, 90.0  # seconds to wait for a tracker before and after training
_EVERY = 1.0  # seconds between two calls of a tracker, each with all rows that are there, and between two speeds
_MOST_WAITING = 200_000  # rows
_PROJECT = "sensorium"
_ROW = ("step", "seconds", "seen")  # of both tables

Row = Mapping[str, float]
Sent = tuple[str, int, Row]  # "step" or "look", its number, scalars by name


@dataclass(frozen=True)
class Kept:
    """How far a tracker has got: the tracked run's ``id``, the last training step, the step of the last online evaluation,
    and the digest of the scores."""

    id: str
    step: int = -1
    look: int = -1
    scores: str = ""


class Tracking:
    """The trackers ``names`` of the run in ``folder``; ``within``: the folder of the comparison that it belongs to."""

    def __init__(self, names: Sequence[str], folder: Path, within: Path | None = None) -> None:
        self.names, self.folder, self.within = tuple(dict.fromkeys(names)), folder, within
        self.kept = _read(folder / FILE)
        self._followers: list[_Follower] = []
        self._writing = threading.Lock()
        self._speed_at = (0.0, 0.0)  # seconds, seen

    def begin(self) -> None:
        """Start the trackers and send them the rows of the run's tables that they lack. To be called while the run's clock
        stands: it waits for them."""
        about = _about(self.folder, self.within)
        for name in self.names:
            kept = self.kept.get(name)
            run = replace(about, id=kept.id if kept else None)
            self._followers.append(_Follower(name, run, kept, self._keep))
        limit = time.monotonic() + _STARTING
        for one in self._followers:
            if not one.begun.wait(max(0.0, limit - time.monotonic())):
                one.error = TimeoutError("no answer")
        metrics, online = (read_table(self.folder / name).rows for name in ("metrics.csv", "online.csv"))
        sent = min((one.taken["step"] for one in self._followers if one.error is None), default=-1)
        new = [row for row in metrics if int(row["step"]) > sent]
        if len(new) < len(metrics):
            last = _numbers(metrics[-len(new) - 1])
            self._speed_at = last["seconds"], last["seen"]
        for one in self._followers:
            one.room += len(new) + len(online)
        self.log([_numbers(row) for row in new], [_numbers(row) for row in online])

    def log(self, metrics: Sequence[Row] = (), online: Sequence[Row] = ()) -> None:
        """Send rows of ``metrics.csv`` and of ``online.csv``, with rising steps."""
        rows = [("step", int(row["step"]), {**row, **self._speed(row)}) for row in metrics]
        rows += [
            ("look", int(row["step"]), {f"online/{name}": row[name] for name in row if name not in _ROW})
            for row in online
        ]
        rows.sort(key=lambda row: row[1])
        for one in self._followers:
            one.take(rows)
        self._tell()

    def finish(self, status: Status, scores: Row | None = None) -> None:
        """Wait until everything is sent, but not for ever."""
        for one in self._followers:
            one.end(status, scores or {})
        limit = time.monotonic() + _FINISHING
        for one in self._followers:
            one.thread.join(max(0.0, limit - time.monotonic()))
            if one.thread.is_alive() and one.error is None:
                one.error = TimeoutError("the last rows could not be sent")
        self._tell()
        self._followers.clear()

    def _speed(self, row: Row) -> dict[str, float]:
        """The speed since the last one, if there is one to tell."""
        seconds, seen = self._speed_at
        if row["seconds"] - seconds < _EVERY:
            return {}
        self._speed_at = row["seconds"], row["seen"]
        return {"per_second": (row["seen"] - seen) / (row["seconds"] - seconds)}

    def _tell(self) -> None:
        """Say once of each tracker that has failed that it has."""
        for one in self._followers:
            if one.error is not None and not one.told:
                one.told = True
                said = " ".join(f"{type(one.error).__name__}: {one.error}".split())
                said = printable(re.sub(r"//[^/@ ]+@", "//", said))[:300]  # an address may hold a password
                line = f"Warning: {one.name} no longer tracks {self.folder.name}, which goes on without it. {said}"
                terminal().print(line, soft_wrap=True)

    def _keep(self, name: str, kept: Kept) -> None:
        with self._writing:
            self.kept[name] = kept
            write_json(self.folder / FILE, {one: asdict(state) for one, state in self.kept.items()})


class _Follower:
    """One tracker, in a thread of its own, which ends with the first ``error``."""

    def __init__(self, name: str, run: Tracked, kept: Kept | None, keep: Callable[[str, Kept], None]) -> None:
        self.name, self.run, self.keep = name, run, keep
        self.kept = kept or Kept("")
        self.error: BaseException | None = None
        self.told = False
        self.begun, self._ended = threading.Event(), threading.Event()
        self.taken = {"step": -1, "look": -1}  # the last of each kind that waits or was logged
        self.room, self._rows = _MOST_WAITING, Queue[Sent]()
        self._last: tuple[Status, Row] = ("killed", {})
        self.thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self.thread.start()

    def take(self, rows: Sequence[Sent]) -> None:
        """Let rows wait, but for those that the tracker has."""
        if self.error is not None:
            return
        new = [(kind, step, row) for kind, step, row in rows if step > self.taken[kind]]
        if self._rows.qsize() + len(new) > self.room:
            self.error = TimeoutError("it is slower than the training")
            return
        for one in new:
            self._rows.put(one)
        self.taken |= {kind: step for kind, step, _ in new}

    def end(self, status: Status, scores: Row) -> None:
        self._last = status, scores
        self._ended.set()

    def _work(self) -> None:
        try:
            with stop.deaf():  # inherited by the processes that a library starts
                tracker = start(self.name, self.run)
                self._begin(tracker)
                try:
                    while not self._ended.wait(_EVERY):
                        self._send(tracker)
                    self._send(tracker)
                except BaseException as error:
                    self.error, self._last = error, ("failed", {})
                self._finish(tracker)
        except BaseException as error:
            self.error = self.error or error
        finally:
            self.begun.set()

    def _begin(self, tracker: Tracker) -> None:
        step, look = tracker.last or (self.kept.step, self.kept.look)
        self.kept = replace(self.kept, id=tracker.id, step=step, look=look)
        self.taken = {"step": step, "look": look}
        self.keep(self.name, self.kept)
        self.begun.set()

    def _send(self, tracker: Tracker) -> None:
        rows: list[Sent] = []
        with suppress(Empty):
            while True:
                rows.append(self._rows.get_nowait())
        if self.error is None and rows:
            tracker.log([(step, {name: row[name] for name in row if name != "step"}) for _, step, row in rows])
            self.kept = replace(self.kept, **{kind: step for kind, step, _ in rows})
            self.keep(self.name, self.kept)

    def _finish(self, tracker: Tracker) -> None:
        status, scores = self._last
        tracker.finish(scores, status, max(0, self.kept.step))
        if scores:
            self.keep(self.name, replace(self.kept, scores=_digest(scores)))


@contextmanager
def tracked(names: Sequence[str], folder: Path, within: Path | None = None) -> Iterator[Tracking | None]:
    """The trackers of a run that is trained inside; None if there are none."""
    if not names:
        yield None
        return
    track = Tracking(names, folder, within)
    try:
        yield track
    except (KeyboardInterrupt, SystemExit):
        track.finish("killed")
        raise
    except BaseException:
        track.finish("failed")
        raise
    track.finish("finished" if (folder / OUTCOME).is_file() else "killed")


def add_scores(names: Sequence[str], folder: Path, scores: Row, within: Path | None = None) -> None:
    """Add the scores of a finished run to its tracked runs, unless they have them."""
    track = Tracking(names, folder, within)
    track.names = tuple(one for one in track.names if track.kept.get(one, Kept("")).scores != _digest(scores))
    if track.names and scores:
        track.begin()
        track.finish("finished", scores)


def _about(folder: Path, within: Path | None) -> Tracked:
    """A run as its ``run.json`` tells it."""
    info = read_info(folder)
    config = {"system": info.recipe, "seed": info.seed, "budget": info.budget, "data": info.data.path}
    config |= {"data_digest": info.data.digest, "version": version("sensorium"), **info.values}
    config |= {"source": {name: one.source for name, one in info.settings.items()}}
    here = folder.resolve()
    if within is None:
        return Tracked(here.name, _PROJECT, None, folder, config)
    name = here.relative_to(within.resolve()).as_posix() if here.is_relative_to(within.resolve()) else here.name
    project = re.sub(r"[^\w.-]", "-", within.resolve().name)[:100] or _PROJECT
    return Tracked(name, project, project, folder, config)


def _read(path: Path) -> dict[str, Kept]:
    """What a folder says of its tracked runs; of one that is damaged nothing, and new ones begin."""
    if not path.is_file():
        return {}
    with suppress(SensoriumError):
        found = decode(dict[str, Kept], read_object(path), str(path))
        return {name: kept for name, kept in found.items() if re.fullmatch(r"[\w-]{1,128}", kept.id)}
    return {}


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(text) for name, text in row.items() if text}


def _digest(scores: Row) -> str:
    return hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()[:16]
