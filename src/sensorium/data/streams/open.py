"""Streams: recordings of frames or signals in time, with a label for every step if there are any.

open_streams reads an .npz (``signal`` or ``features`` [N, ...], and, optional, ``label`` [N], ``offsets`` [S + 1] where
one recording ends and the next begins, ``class_names``, ``sample_rate_hz``, ``subject`` [S], ``encoder``), a
folder of such files, and a folder of .npy files [N, ...] with a labels.json (or folders of them; files and folders are
training or test data by their names, see :mod:`sensorium.data.names`):
    {"classes": ["background", "jump"], "rate": 25, "labels": {"a": [0, 0, 1, ...], "b": [[120, 180, "jump"], ...]}}
where a stream has a number or name per frame, or a list of [first frame, frame after the last, class] (the first class
elsewhere). Without a test set whole recordings are held out, all of a subject together.
Values stay on disk, so memory only grows by a few bytes of label per step. Non-finite frames are replaced by the last
finite one, as on a live stream, and their labels are unknown (-1).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sensorium.base.draw import Draw
from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.log import Log, Skipped
from sensorium.data.rows import Field, Rows, Taken, sampled_digest
from sensorium.data.streams.files import UNKNOWN, Recordings, holes
from sensorium.data.streams.sets import read_sets
from sensorium.errors import SensoriumError

HELD_OUT = 0.2
_BLOCK, _MOMENTS = 256, 50_000  # frames read at once, and in all, for mean and standard deviation
_HELD = 1 << 28  # maximum bytes of frames that are kept in memory


class Stream:
    """One recording: ``values`` [N, ...] of any real type, usually on disk, and ``labels`` integers [N], -1
    unknown.

    Raises ValueError if no frame is finite. ``broken`` is the number of non-finite ones.
    """

    def __init__(self, name: str, values: np.ndarray, labels: np.ndarray, group: str = "") -> None:
        self.name, self.values, self.group = name, values, group
        self.width = math.prod(values.shape[1:])
        self._bad, self._instead = holes(values)
        self.broken = len(self._bad)
        if self.broken:
            labels = labels.astype(np.int32)
            labels[self._bad] = UNKNOWN
        self._labels = labels

    def __len__(self) -> int:
        return len(self.values)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.labels_of(0, len(self))

    def labels_of(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]; -1 beyond the end."""
        return _padded(self._labels[start:stop], stop - start)

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop (clipped to the end), flattened: float32 [n, width], all finite."""
        with np.errstate(over="ignore"):
            rows = np.array(self.values[start:stop], np.float32)
            first, last = np.searchsorted(self._bad, (start, start + len(rows)))
            if first < last:
                rows[self._bad[first:last] - start] = self.values[self._instead[first:last]]
        return rows.reshape(len(rows), self.width)


class Framed:
    """A signal cut into frames of ``samples`` values of each channel; each has the label of its last sample.

    A frame's values: its samples, standardized per channel by its own mean and standard deviation, then these means and
    the logarithms of the standard deviations, so that nothing is lost: [samples * C + 2 C]. A remainder at the end is
    dropped.
    """

    def __init__(self, stream: Stream, samples: int) -> None:
        if samples < 1:
            raise ValueError(f"a frame has at least 1 sample, got {samples}")
        self.stream, self.samples, self.name, self.group = stream, samples, stream.name, stream.group
        self.width = stream.width * (samples + 2)

    def __len__(self) -> int:
        return len(self.stream) // self.samples

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.labels_of(0, len(self))

    def labels_of(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]; -1 beyond the end."""
        k, end = self.samples, max(start, min(stop, len(self)))
        return _padded(self.stream.labels_of(start * k, end * k)[k - 1 :: k], stop - start)

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop (clipped to the end): float32 [n, width]."""
        n = max(0, min(stop, len(self)) - start)
        x = self.stream.frames(start * self.samples, (start + n) * self.samples)
        x = x.reshape(n, self.samples, self.stream.width)
        mean, std = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True) + 1e-3
        return np.concatenate([(x - mean) / std, mean, np.log(std)], axis=1).reshape(n, self.width)


class Scaled:
    """A stream standardized per feature, (x - mean) / std; ``held`` in memory, else computed on demand."""

    def __init__(self, stream: Stream | Framed, mean: np.ndarray, std: np.ndarray, *, held: bool = False) -> None:
        self.stream, self.mean, self.std = stream, mean.astype(np.float32), std.astype(np.float32)
        self.name, self.group, self.width = stream.name, stream.group, stream.width
        self._held: np.ndarray | None = None
        self._held = self.frames(0, len(stream)) if held else None

    def __len__(self) -> int:
        return len(self.stream)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return self.stream.labels

    def labels_of(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]; -1 beyond the end."""
        return self.stream.labels_of(start, stop)

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Frames start to stop (clipped to the end): float32 [n, width]."""
        if self._held is not None:
            return self._held[start:stop].copy()
        return (self.stream.frames(start, stop) - self.mean) / self.std


AnyStream = Stream | Framed | Scaled


@dataclass(frozen=True)
class Streams:
    """Opened streams. ``rate``: steps per second, if known; ``skipped``: entries that could not be used, and why;
    ``encoder``: of the features, if known."""

    path: str
    layout: str
    classes: tuple[str, ...]
    train: tuple[AnyStream, ...]
    test: tuple[AnyStream, ...]
    rate: float | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    encoder: str = ""

    @property
    def width(self) -> int:
        """Values per frame."""
        return self.train[0].width

    def framed(self, samples: int) -> Streams:
        """The same signals as frames of ``samples``; streams too short for one are dropped."""

        def cut(streams: Sequence[AnyStream]) -> tuple[Framed, ...]:
            return tuple(Framed(s, samples) for s in streams if isinstance(s, Stream) and len(s) >= samples)

        train, test = cut(self.train), cut(self.test)
        if not train or not test:
            raise SensoriumError(f"{self.path}: no stream is as long as a frame of {samples} samples; use fewer.")
        return replace(self, train=train, test=test, rate=None if self.rate is None else self.rate / samples)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [width] of the training frames, float64; 1 for constant features.

        From a sample of evenly spaced blocks if there are many frames.
        """
        blocks = [(s, at) for s in self.train for at in range(0, len(s), _BLOCK)]
        chosen = blocks[:: math.ceil(len(blocks) * _BLOCK / _MOMENTS)]
        count, total, square = 0, np.zeros(self.width), np.zeros(self.width)
        first = chosen[0][0].frames(0, 1)[0].astype(np.float64)  # an offset, against cancellation
        for stream, at in chosen:
            x = stream.frames(at, at + _BLOCK) - first
            count, total, square = count + len(x), total + x.sum(axis=0), square + np.square(x).sum(axis=0)
        mean = total / count
        std = np.sqrt(np.maximum(square / count - np.square(mean), 0))
        return mean + first, np.where(std > 1e-6 * (np.abs(mean + first) + 1e-12), std, 1.0)

    def scaled(self, mean: np.ndarray, std: np.ndarray) -> Streams:
        """The same streams, standardized by the training data; held in memory if small enough together."""
        every = [s for s in (*self.train, *self.test) if not isinstance(s, Scaled)]
        held = sum(map(len, every)) * self.width * 4 <= _HELD

        def scale(streams: Sequence[AnyStream]) -> tuple[Scaled, ...]:
            return tuple(Scaled(s, mean, std, held=held) for s in streams if not isinstance(s, Scaled))

        return replace(self, train=scale(self.train), test=scale(self.test))


class Windows(Rows):
    """Training windows: ``length`` T frames up to a labeled one, and the labels of the ``future`` L frames after it.

    There is one for every labeled frame (or for ``every`` frame), in the order of the streams; if no label is known, there
    are no fields of labels. A window that begins before its stream is zero-padded, with the number of padded frames. The
    windows of a step come from indices or a ``Draw``: both are functions of seed and step, so one process equals N and a
    resumed run an uninterrupted one.
    """

    unit = "frames"

    def __init__(
        self,
        streams: Sequence[AnyStream],
        length: int,
        future: int = 0,
        *,
        every: bool = False,
        classes: tuple[str, ...] = (),
    ) -> None:
        if length < 1 or future < 0:
            raise ValueError(f"windows of {length} frames and {future} after them")
        self.streams, self.length, self.future, self.width = tuple(streams), length, future, streams[0].width
        self.classes = classes
        known = [np.full(len(s), True) if every else s.labels != UNKNOWN for s in streams]
        # if all frames have labels no lookup is needed
        self._places = [None if mask.all() else np.flatnonzero(mask) for mask in known]
        self._ends = np.cumsum([mask.sum() for mask in known])
        if not self._ends[-1]:
            raise SensoriumError("no frame of the streams has a label.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def everywhere(self) -> Windows:
        """The windows of every frame, labeled or not: itself if these are all."""
        if all(places is None for places in self._places):
            return self
        return Windows(self.streams, self.length, self.future, every=True, classes=self.classes)

    @cached_property
    def labeled(self) -> bool:
        """Whether the label of any frame is known."""
        return any((stream.labels != UNKNOWN).any() for stream in self.streams)

    @property
    def labels(self) -> np.ndarray:
        """Labels of each window's last frame: int64 [N]."""
        pairs = zip(self.streams, self._places, strict=True)
        return np.concatenate([s.labels if at is None else s.labels[at] for s, at in pairs])

    def place(self, index: int) -> tuple[int, int]:
        """(stream, frame) of the last frame of window ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        stream = int(np.searchsorted(self._ends, index, side="right"))
        places, inner = self._places[stream], index - (int(self._ends[stream - 1]) if stream else 0)
        return stream, inner if places is None else int(places[inner])

    def batch(self, indices: Tensor | np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """``frames`` float32 [B, T, F], ``actions`` int64 [B], ``future`` int64 [B, L] (-1 unknown or past the end) and
        ``missing`` int64 [B], number of padded frames, of windows ``indices`` [B]."""
        n = len(indices)
        frames = np.zeros((n, self.length, self.width), np.float32)
        labels, missing = np.empty((n, 1 + self.future), np.int64), np.empty(n, np.int64)
        for row, index in enumerate(indices):
            number, last = self.place(int(index))
            start = max(0, last + 1 - self.length)
            missing[row] = self.length - (last + 1 - start)
            frames[row, missing[row] :] = self.streams[number].frames(start, last + 1)
            labels[row] = self.streams[number].labels_of(last, last + 1 + self.future)
        x, y, gone = (torch.from_numpy(part) for part in (frames, labels, missing))
        return {"frames": x, "actions": y[:, 0].contiguous(), "future": y[:, 1:].contiguous(), "missing": gone}

    def draw(self, draw: Draw) -> dict[str, Tensor]:
        """Uniformly random windows for this process's rows of the global batch; on the draw's device."""
        fine = draw.rand(2).cpu().double()  # two 24-bit numbers give 48 bits: enough for any stream
        index = ((fine[:, 0] + fine[:, 1] * 2**-24) * len(self)).long().clamp_max(len(self) - 1)
        return {name: part.to(draw.device) for name, part in self.batch(index).items()}

    @property
    def fields(self) -> dict[str, Field]:
        labels = {"actions": Field("int64", ()), "future": Field("int64", (self.future,))} if self.labeled else {}
        return {"frames": Field("float32", (self.length, self.width)), **labels, "missing": Field("int64", ())}

    @cached_property
    def digest(self) -> str:
        return sampled_digest(self, (self.labels,))

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        """Fields of windows ``index``, as in :meth:`batch`."""
        found = self.batch(index)
        return {name: found[name] for name in self.fields if names is None or name in names}


def open_streams(path: str | Path, *, test: str | Path | None = None) -> Streams:
    """Read ``path``, and ``test`` as the test set. Raises SensoriumError that names the file and the field."""
    shown, log = printable(str(path)), Log()
    layout, sets = read_sets(Path(path), log)
    if test is not None:
        second = read_sets(Path(test), log)[1]
        sets["test"] = second.get("test") or second.get("val") or second["train"]
    held_out = sets.get("test") or sets.get("val")
    train = _usable(sets["train"], log, shown)
    if held_out is None:
        count = len(train)
        train, held = _hold_out(train, shown)
        log.notes.append(
            f"No test set was given: {len(held):,} of {counted(count, 'recording')} {plural(len(held), 'is')} held out."
        )
    else:
        held = _usable(_of_classes(held_out, sets["train"].classes, shown), log, shown)
    if "val" in sets and (sets["val"].found and held_out is not sets["val"]):
        log.notes.append(f"The validation set of {counted(len(sets['val'].found), 'recording')} is not used.")
    widths = {stream.width for stream in (*train, *held)}
    if len(widths) > 1:
        raise SensoriumError(
            f"{shown}: frames of {min(widths)} and {max(widths)} values; all must have the same number."
        )
    about, notes = sets["train"], tuple(dict.fromkeys([*log.notes, *log.sentences()]))
    return Streams(
        shown, layout, about.classes, tuple(train), tuple(held), about.rate, tuple(log.skipped), notes, about.encoder
    )


def _of_classes(recordings: Recordings, classes: tuple[str, ...], where: str) -> Recordings:
    """Recordings with their labels numbered as in ``classes``, by name; some of these may be missing. Without classes no label
    is known."""
    if recordings.classes == classes:
        return recordings
    number = {name: i for i, name in enumerate(classes)}
    table = np.array([number.get(name, UNKNOWN) for name in recordings.classes] + [UNKNOWN], np.int64)
    found = []
    for one in recordings.found:
        labels = np.asarray(one.labels)
        used = np.unique(labels[labels != UNKNOWN])
        if classes and (unknown := used[table[used] == UNKNOWN]).size:
            raise SensoriumError(
                f"{where}: the test set has other classes than the training set: '{recordings.classes[int(unknown[0])]}' "
                f"is unknown to it, whose classes are {', '.join(classes[:12])}."
            )
        found.append(replace(one, labels=table[labels]))
    return replace(recordings, found=found)


def _usable(recordings: Recordings, log: Log, where: str) -> list[Stream]:
    streams, holes = [], 0
    for recording in recordings.found:
        try:
            streams.append(Stream(recording.name, recording.values, recording.labels, recording.group))
        except ValueError as error:
            log.skip(recording.name, str(error))
            continue
        if broken := streams[-1].broken:
            log.skipped.append(
                Skipped(recording.name, f"frames that are not finite: {broken:,} of {len(streams[-1]):,}")
            )
            holes += 1
    if holes:
        log.notes.append(
            f"{holes:,} of {counted(len(recordings.found), 'recording')} {'has' if holes == 1 else 'have'} frames that are not finite: each is replaced by the "
            "last finite one, and has no label."
        )
    if not streams:
        why = f" ({log.skipped[-1].file}: {log.skipped[-1].reason})" if log.skipped else ""
        raise SensoriumError(f"{where}: no stream can be used{why}.")
    return streams


def _hold_out(streams: list[Stream], where: str) -> tuple[list[Stream], list[Stream]]:
    """The last groups, with at least a fifth of the frames, excluding the first group."""
    groups = list(dict.fromkeys(stream.group for stream in streams))
    if len(groups) < 2:
        raise SensoriumError(
            f"{where}: a single recording (or subject) can't be split into training and test set; give a test set."
        )
    out: set[str] = set()
    for group in reversed(groups[1:]):
        if sum(len(s) for s in streams if s.group in out) >= HELD_OUT * sum(map(len, streams)):
            break
        out.add(group)
    return [s for s in streams if s.group not in out], [s for s in streams if s.group in out]


def _padded(labels: np.ndarray, length: int) -> np.ndarray:
    return np.pad(labels.astype(np.int64), (0, length - len(labels)), constant_values=UNKNOWN)
