"""Reading files of streams: values over time, with a label for every step or none. See :mod:`sensorium.data.streams.open`.

Values are memory maps: of the file itself if they are uncompressed, else of an unnamed temporary file. Sizes in a
header are compared with the file's length; nothing is unpickled.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.npy import mapped, mapped_file, member, npz
from sensorium.base.reading import brief, printable, read_object
from sensorium.base.words import counted, plural
from sensorium.data.log import Log, Skipped
from sensorium.data.names import list_folder
from sensorium.errors import NothingOfItsKind, SensoriumError

UNKNOWN = -1
_MOST_CLASSES = 1 << 16
_SCAN = 1 << 22  # values checked at once
_RATES = 1e-6, 1e9  # steps per second; anything else is a mistake
LOOKED_FOR = "an .npz with 'signal' (and 'label'), a folder of these, or a folder of .npy files with a labels.json"
_FIELDS = {
    "values": ("signal", "features", "frames", "values", "x", "data"),
    "labels": ("label", "labels", "y", "targets"),
    "classes": ("class_names", "classes"),
    "offsets": ("offsets",),
    "rate": ("sample_rate_hz", "rate", "fps"),
    "group": ("subject", "subjects", "group", "groups"),
    "encoder": ("encoder",),
}
_PLAIN = ("signal", "features", "frames")  # names that mean recordings without any label beside them, too


@dataclass(frozen=True)
class Recording:
    """``values`` [N, ...] and ``labels`` integers [N] of one stream; recordings of one ``group`` are not split between
    training and test."""

    name: str
    values: np.ndarray
    labels: np.ndarray
    group: str


@dataclass(frozen=True)
class Recordings:
    """The content of one file or folder; ``rate`` in steps per second and the features' ``encoder``, if given."""

    classes: tuple[str, ...]
    found: list[Recording]
    rate: float | None
    encoder: str = ""


def read_npz(path: Path) -> Recordings:
    """An .npz of concatenated recordings; without labels, all of them are unknown. Raises SensoriumError that names the file
    and the field."""
    where = printable(str(path))
    values, small, keys = _arrays(path, "labels")
    labels = small.setdefault("labels", np.full(len(values), UNKNOWN, np.int8))
    classes = _class_names(small)
    _check_labels(labels, len(values), classes, f"{where}: '{keys['labels']}'")
    offsets = _offsets(small.get("offsets"), len(values), where)
    group = small.get("group")
    shared = group is not None and group.shape == (len(offsets) - 1,)
    found = []
    for i, (start, stop) in enumerate(pairwise(offsets)):
        name = f"{printable(path.name)}[{i}]"
        owner = str(group[i]) if shared and group is not None else name
        found.append(Recording(name, values[start:stop], labels[start:stop], owner))
    encoder = small.get("encoder")
    by = str(encoder) if encoder is not None and encoder.ndim == 0 and encoder.dtype.kind == "U" else ""
    return Recordings(classes, found, _rate(small), by)


def _rate(small: dict[str, np.ndarray]) -> float | None:
    rate = small.get("rate")
    told = rate is not None and rate.ndim == 0 and rate.dtype.kind in "fiu" and _RATES[0] <= rate <= _RATES[1]
    return float(rate) if told and rate is not None else None


def read_values(path: str | Path, rate: float | None = None) -> list[tuple[str, np.ndarray]]:
    """The recordings of an .npz or .npy, with or without labels: (name, values [N, ...] on disk).

    rate: expected steps per second. Raises SensoriumError also if the file has another.
    """
    path = Path(path)
    where = printable(str(path))
    if path.suffix == ".npy":
        values = mapped_file(path)
        return [(printable(path.name), values[:, None] if values.ndim == 1 else values)]
    values, small, _ = _arrays(path)
    told = _rate(small)
    if rate is not None and told is not None and abs(told - rate) > 0.01 * rate:
        raise SensoriumError(
            f"{where} has {told:g} steps per second, but the run was trained on {rate:g}: resample it."
        )
    offsets = _offsets(small.get("offsets"), len(values), where)
    return [(f"{printable(path.name)}[{i}]", values[a:b]) for i, (a, b) in enumerate(pairwise(offsets))]


def _arrays(path: Path, *needed: str) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, str]]:
    """The values of an .npz, mapped, its other arrays by our names, and their names in the file. What is ``needed`` must be
    there, but labels only where the values' name could mean something else."""
    where = printable(str(path))
    with npz(path) as (archive, members):
        keys = {field: next((n for n in names if n in members), "") for field, names in _FIELDS.items()}
        lacking = [field for field in ("values", *needed) if not keys[field]]
        if lacking and not (lacking == ["labels"] and keys["values"] in _PLAIN):
            held = ", ".join(map(printable, sorted(members)[:12])) or "nothing"
            looked = " and ".join(f"'{_FIELDS[field][0]}'" for field in ("values", *needed))
            raise NothingOfItsKind(f"{where}: no streams. Looked for {looked}; it holds {held}.")
        values = mapped(path, archive, members[keys["values"]], where)
        small = {f: member(archive, members[k], where) for f, k in keys.items() if k and f != "values"}
    return values[:, None] if values.ndim == 1 else values, small, keys


def _class_names(small: dict[str, np.ndarray]) -> tuple[str, ...]:
    names = small.get("classes")
    if names is not None and names.ndim == 1 and names.dtype.kind == "U":
        return tuple(printable(str(name)) for name in names)
    labels = small["labels"]
    if labels.size and labels.dtype.kind in "iu" and int(labels.max()) >= _MOST_CLASSES:
        return ()
    return tuple(map(str, range(int(labels.max()) + 1))) if labels.size and labels.dtype.kind in "iu" else ()


def _check_labels(labels: np.ndarray, steps: int, classes: tuple[str, ...], field: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (steps,):
        raise SensoriumError(
            f"{field} is {labels.dtype} of shape {list(labels.shape)}; expected an integer for each of {counted(steps, 'step')}."
        )
    if int(labels.min(initial=0)) < UNKNOWN or int(labels.max(initial=0)) >= max(1, len(classes)):
        raise SensoriumError(
            f"{field} runs from {labels.min()} to {labels.max()}, but there {plural(len(classes), 'is')} {counted(len(classes), 'class name')}."
        )


def _offsets(offsets: np.ndarray | None, steps: int, where: str) -> list[int]:
    if offsets is None:
        return [0, steps]
    if offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu":
        found = [int(v) for v in offsets]
        if found[0] == 0 and found[-1] == steps and found == sorted(found):
            return found
    raise SensoriumError(f"{where}: 'offsets' must be integers that rise from 0 to the {steps:,} steps.")


def read_folder(folder: Path, log: Log, files: list[Path] | None = None) -> Recordings:
    """A folder of .npy files (or ``files`` of it) with a labels.json beside or above them; a file that does not match
    is skipped and counted."""
    table = table_of(folder)
    files = values_in(folder) if files is None else files
    if table is None or not files:
        raise NothingOfItsKind(f"'{printable(str(folder))}' has no streams. Looked for {LOOKED_FOR}.")
    classes, labels, rate = read_table(table)
    found = []
    for file in files:
        name = printable(file.name)
        if file.stem not in labels:
            log.skip(name, "labels.json has no labels for it")
            continue
        try:
            values = mapped_file(file)
            values = values[:, None] if values.ndim == 1 else values
        except SensoriumError as error:
            _skip(log, name, "not an array of numbers [N, ...]", str(error))
            continue
        try:
            found.append(Recording(name, values, numbered(labels[file.stem], len(values), classes), name))
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            _skip(log, name, "its labels do not fit", brief(error))
    return Recordings(classes, found, rate)


def _skip(log: Log, name: str, kind: str, reason: str) -> None:
    """Counted by kind, listed with its own reason."""
    log.counts[kind] += 1
    log.skipped.append(Skipped(name, reason))


def table_of(folder: Path) -> Path | None:
    """The labels.json in a folder or above it."""
    return next((at / "labels.json" for at in (folder, folder.parent) if (at / "labels.json").is_file()), None)


def values_in(folder: Path) -> list[Path]:
    """The .npy files in a folder, in natural order."""
    return [Path(e.path) for e in list_folder(folder) if e.name.casefold().endswith(".npy") and not e.is_dir()]


def read_table(path: Path) -> tuple[tuple[str, ...], dict[str, Any], float | None]:
    """A labels.json: the classes, the labels of each stream (see :func:`numbered`), and the rate."""
    where = printable(str(path))
    said = read_object(path, hint="It needs 'classes' (a list), 'labels' (a list a stream) and, if known, 'rate'.")
    classes, labels, rate = said.get("classes"), said.get("labels"), said.get("rate")
    if not isinstance(classes, list) or not 0 < len(classes) <= _MOST_CLASSES:
        raise SensoriumError(f"{where}: expected 'classes', a list of the names of classes.")
    if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in classes):
        raise SensoriumError(f"{where}: 'classes' must be a list of strings.")
    names = tuple(printable(str(name)) for name in classes)
    if len(set(names)) < len(names):
        raise SensoriumError(f"{where}: 'classes' has '{Counter(names).most_common(1)[0][0]}' twice.")
    if not isinstance(labels, dict):
        raise SensoriumError(f"{where}: expected 'labels', an object with a list of labels for each stream.")
    if rate is not None and (type(rate) not in (int, float) or not _RATES[0] <= rate <= _RATES[1]):
        raise SensoriumError(f"{where}: 'rate' must be a positive number of steps per second.")
    return names, labels, None if rate is None else float(rate)


def numbered(said: Any, frames: int, classes: tuple[str, ...]) -> np.ndarray:
    """Labels of ``frames`` frames, a number or name each, or segments [first, stop, class]: int32
    [frames]."""
    number: dict[Any, int] = {name: i for i, name in enumerate(classes)} | {i: i for i in range(UNKNOWN, len(classes))}
    if not isinstance(said, list):
        raise ValueError("its labels are not a list")
    segments = bool(said) and isinstance(said[0], list)
    if segments and not all(isinstance(part, list) and len(part) == 3 for part in said):
        raise ValueError("its segments are not all [first, stop, class]")
    for name in [part[2] for part in said] if segments else said:
        if type(name) not in (str, int) or name not in number:
            raise ValueError(f"the label {name!r} is not one of the classes")
    if not segments:
        if len(said) != frames:
            raise ValueError(f"{counted(frames, 'frame')}, but {counted(len(said), 'label')}")
        return np.array([number[name] for name in said], np.int32)
    labels = np.zeros(frames, np.int32)
    for first, behind, name in said:
        if not 0 <= first < behind <= frames:
            raise ValueError(f"the segment {first} to {behind} is not within its {counted(frames, 'frame')}")
        labels[first:behind] = number[name]
    return labels


def holes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames that are not finite in float32, and the replacement of each: int64 [n], [n]."""
    width = math.prod(values.shape[1:])
    if not len(values) or not width:
        raise ValueError("no frames")
    found = [np.zeros(0, np.int64)]
    step = max(1, _SCAN // width)
    for start in range(0, len(values) if values.dtype.kind == "f" else 0, step):
        with np.errstate(over="ignore"):
            rows = np.asarray(values[start : start + step], np.float32).reshape(-1, width)
        found.append(start + np.flatnonzero(~np.isfinite(rows).all(axis=1)))
    bad = np.concatenate(found)
    if len(bad) == len(values):
        raise ValueError("no frame is finite")
    begins = np.flatnonzero(np.diff(bad, prepend=-2) != 1)  # of runs of them
    lengths = np.diff(np.append(begins, len(bad)))
    before, behind = bad[begins] - 1, bad[begins] + lengths
    return bad, np.repeat(np.where(before < 0, behind, before), lengths)
