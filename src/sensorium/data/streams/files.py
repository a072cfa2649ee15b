"""Reading files of streams: values over time with a label for every step. See :mod:`sensorium.data.streams.open`.

Values are memory maps: of the file itself if they are uncompressed, else of an unnamed temporary file. Sizes in a
header are compared with the file's length; nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.arrays import _member
from sensorium.data.log import Skipped
from sensorium.data.names import natural_key
from sensorium.errors import SensoriumError

UNKNOWN = -1
LOOKED_FOR = "an .npz with 'signal' and 'label', or a folder of .npy files with a labels.json"
_FIELDS = {
    "values": ("signal", "features", "frames", "values", "x", "data"),
    "labels": ("label", "labels", "y", "targets"),
    "classes": ("class_names", "classes"),
    "offsets": ("offsets",),
    "rate": ("sample_rate_hz", "rate", "fps"),
    "group": ("subject", "subjects", "group", "groups"),
    "encoder": ("encoder",),
}


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


def read_npz(path: Path, skipped: list[Skipped]) -> Recordings:
    """An .npz of concatenated recordings. Raises SensoriumError that names the file and the
    field."""
    where = printable(str(path))
    values, small, keys = _arrays(path, "labels")
    labels, classes = small["labels"], _class_names(small)
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
    told = rate is not None and rate.ndim == 0 and rate.dtype.kind in "fiu" and 0 < rate < math.inf
    return float(rate) if told and rate is not None else None


def read_values(path: str | Path, rate: float | None = None) -> list[tuple[str, np.ndarray]]:
    """The recordings of an .npz or .npy, with or without labels: (name, values [N, ...] on disk).

    rate: expected steps per second. Raises SensoriumError also if the file has another.
    """
    path = Path(path)
    where = printable(str(path))
    if path.suffix == ".npy":
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SensoriumError(f"{where}: not readable as .npy ({printable(str(error))[:160]}).") from None
        if values.ndim < 1 or values.dtype.kind not in "fiub" or not values.size:
            raise SensoriumError(f"{where} is {values.dtype} of shape {list(values.shape)}; expected numbers [N, ...].")
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
    """The values of an .npz, mapped, its other arrays by our names, and their names in the file."""
    where = printable(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            keys = {field: next((n for n in names if n in members), "") for field, names in _FIELDS.items()}
            if not all(keys[field] for field in ("values", *needed)):
                held = ", ".join(map(printable, sorted(members)[:12])) or "nothing"
                looked = " and ".join(f"'{_FIELDS[field][0]}'" for field in ("values", *needed))
                raise SensoriumError(f"{where}: no streams. Looked for {looked}; it holds {held}.")
            values = _mapped(path, archive, members[keys["values"]], f"{where}: '{keys['values']}'")
            small = {f: _member(archive, members[k], where) for f, k in keys.items() if k and f != "values"}
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, RuntimeError, EOFError) as error:
        raise SensoriumError(f"{where}: not readable as .npz ({printable(str(error))[:160]}).") from None
    return values, small, keys


def _class_names(small: dict[str, np.ndarray]) -> tuple[str, ...]:
    names = small.get("classes")
    if names is not None and names.ndim == 1 and names.dtype.kind == "U":
        return tuple(printable(str(name)) for name in names)
    labels = small["labels"]
    return tuple(map(str, range(int(labels.max()) + 1))) if labels.size and labels.dtype.kind in "iu" else ()


def _check_labels(labels: np.ndarray, steps: int, classes: tuple[str, ...], field: str) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (steps,):
        raise SensoriumError(
            f"{field} is {labels.dtype} of shape {list(labels.shape)}; expected an integer for each of {steps:,} steps."
        )
    if int(labels.min(initial=0)) < UNKNOWN or int(labels.max(initial=0)) >= max(1, len(classes)):
        raise SensoriumError(
            f"{field} runs from {labels.min()} to {labels.max()}, but there are {len(classes)} class names."
        )


def _offsets(offsets: np.ndarray | None, steps: int, where: str) -> list[int]:
    if offsets is None:
        return [0, steps]
    if offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu":
        found = [int(v) for v in offsets]
        if found[0] == 0 and found[-1] == steps and found == sorted(found):
            return found
    raise SensoriumError(f"{where}: 'offsets' must be integers that rise from 0 to the {steps:,} steps.")


def _mapped(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, field: str) -> np.ndarray:
    """One array of an .npz as a memory map [N, ...]."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise SensoriumError(f"{field}: .npy format {version} is not supported; save it again with np.savez.")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(member)
        size, begin = math.prod(shape) * dtype.itemsize, member.tell()
        if dtype.kind not in "fiub" or not shape or min(shape) < 1:
            raise SensoriumError(f"{field} is {dtype} of shape {list(shape)}; expected numbers [N, ...].")
        if size != info.file_size - begin:
            raise SensoriumError(
                f"{field}: the header gives {size:,} bytes of values, the file has {info.file_size - begin:,}."
            )
        order: Any = "F" if fortran else "C"
        if info.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as raw:
                raw.seek(info.header_offset + 26)  # the local header's lengths of its name and extra field
                begin += info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4)))
            values = np.memmap(path, dtype, "r", begin, shape, order)
        else:
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the map)
            while block := member.read(min(1 << 22, size - unpacked.tell())):
                unpacked.write(block)
            unpacked.flush()
            values = np.memmap(unpacked, dtype, "r", 0, shape, order)
    return values[:, None] if values.ndim == 1 else values


def read_folder(folder: Path, skipped: list[Skipped]) -> Recordings:
    """A folder of .npy files with a labels.json beside or above them; a file that does not match is skipped and
    listed."""
    where = printable(str(folder))
    table = next((at / "labels.json" for at in (folder, folder.parent) if (at / "labels.json").is_file()), None)
    files = sorted(folder.glob("*.npy"), key=lambda file: natural_key(file.name))
    if table is None or not files:
        raise SensoriumError(f"'{where}' has no streams. Looked for {LOOKED_FOR}.")
    classes, labels, rate = read_table(table)
    found = []
    for file in files:
        name = printable(file.name)
        try:
            values = np.load(file, mmap_mode="r", allow_pickle=False)
            if values.ndim < 1 or values.dtype.kind not in "fiub":
                raise ValueError(f"{values.dtype} of shape {list(values.shape)}, expected numbers [N, ...]")
            if file.stem not in labels:
                raise ValueError("labels.json has no labels for it")
            values = values[:, None] if values.ndim == 1 else values
            found.append(Recording(name, values, numbered(labels[file.stem], len(values), classes), name))
        except (OSError, ValueError, EOFError, TypeError, IndexError, OverflowError) as error:
            skipped.append(Skipped(name, printable(str(error))[:160]))
    return Recordings(classes, found, rate)


def read_table(path: Path) -> tuple[tuple[str, ...], dict[str, Any], float | None]:
    """A labels.json: the classes, the labels of each stream (see :func:`numbered`), and the rate."""
    try:
        said = json.loads(path.read_text())
        classes, labels, rate = tuple(map(str, said["classes"])), said["labels"], said.get("rate")
        if not classes or not isinstance(labels, dict) or not (rate is None or 0 < rate < math.inf):
            raise ValueError("one of them has the wrong type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SensoriumError(
            f"{printable(str(path))}: expected 'classes' (a list), 'labels' (a list a stream) and 'rate' ({error})."
        ) from None
    return classes, labels, None if rate is None else float(rate)


def numbered(said: Any, frames: int, classes: tuple[str, ...]) -> np.ndarray:
    """Labels of ``frames`` frames, a number or name each, or segments [first, stop, class]: int32
    [frames]."""
    number: dict[Any, int] = {name: i for i, name in enumerate(classes)} | {i: i for i in range(UNKNOWN, len(classes))}
    if not isinstance(said, list):
        raise ValueError("its labels are not a list")
    segments = bool(said) and isinstance(said[0], list)
    for name in [part[2] for part in said] if segments else said:
        if isinstance(name, bool | float) or name not in number:
            raise ValueError(f"the label {name!r} is not one of the classes")
    if not segments:
        if len(said) != frames:
            raise ValueError(f"{frames:,} frames, but {len(said):,} labels")
        return np.array([number[name] for name in said], np.int32)
    labels = np.zeros(frames, np.int32)
    for first, behind, name in said:
        if not 0 <= first < behind <= frames:
            raise ValueError(f"the segment {first} to {behind} is not within its {frames:,} frames")
        labels[first:behind] = number[name]
    return labels
