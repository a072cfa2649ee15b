"""Which files of a path are streams, and of which split: the one rule of :mod:`sensorium.data.names`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sensorium.base.reading import printable
from sensorium.data.log import Log
from sensorium.data.names import divide, files_below, split_folders
from sensorium.data.streams.files import LOOKED_FOR, Recordings, read_folder, read_npz, table_of, values_in
from sensorium.errors import NothingOfItsKind, SensoriumError


def read_sets(path: Path, log: Log) -> tuple[str, dict[str, Recordings]]:
    """The layout, and the recordings by split, including "train". A file of several that can't be read is skipped and
    counted. Raises SensoriumError if nothing is left."""
    if not path.is_dir():
        if path.suffix.casefold() != ".npz" or not path.exists():
            raise NothingOfItsKind(f"'{printable(str(path))}' has no streams. Give {LOOKED_FOR}.")
        return "npz", {"train": read_npz(path)}
    splits, others = split_folders(path)
    folders = {split: parts for split, parts in splits.items() if any(map(values_in, parts))}
    archives = [file for file in files_below(path, log) if file.suffix.casefold() == ".npz"]
    if archives and not (folders or (table_of(path) and values_in(path))):
        return "npz", _merged(divide(archives, path), read_npz, path, log)
    for file in archives:
        log.skip(file.name, "an .npz beside .npy files with a labels.json")
    if folders:
        for name in others:
            log.skip(name, "a folder beside those of the splits")
        return "folder of npy", _merged(folders, lambda folder: read_folder(folder, log), path, log)
    files = values_in(path)
    if not files or table_of(path) is None:
        raise NothingOfItsKind(f"'{printable(str(path))}' has no streams. Looked for {LOOKED_FOR}.")
    parts = divide(files, path)
    return "folder of npy", {split: read_folder(path, log, of) for split, of in parts.items()}


def _merged(
    parts: dict[str, list[Path]], read: Callable[[Path], Recordings], path: Path, log: Log
) -> dict[str, Recordings]:
    sets, last = {}, None
    alone = sum(map(len, parts.values())) == 1
    for split, files in parts.items():
        read_in = []
        for file in files:
            try:
                read_in.append((file, read(file)))
            except SensoriumError as error:
                if alone or file.is_dir():
                    raise
                log.skip(file.name, "cannot be read", str(error))
                last = error
        if read_in:
            sets[split] = _together(read_in)
    if "train" not in sets:
        raise last or NothingOfItsKind(f"'{printable(str(path))}' has no streams. Looked for {LOOKED_FOR}.")
    return sets


def _together(parts: Iterable[tuple[Path, Recordings]]) -> Recordings:
    """Recordings of several files as one set; they must have the same classes, rate and encoder."""
    (first, whole), *rest = parts
    for file, more in rest:
        for what in ("classes", "rate", "encoder"):
            if getattr(more, what) != getattr(whole, what):
                raise SensoriumError(
                    f"{printable(str(file))}: has other {what} than {printable(first.name)}; they must be the same."
                )
        whole = replace(whole, found=[*whole.found, *more.found])
    return whole
