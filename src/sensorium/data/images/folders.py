"""Image files in folders, and scikit-learn's digits.

A folder is one of: images flat (unlabeled), one folder per class (images at any depth below it), or folders of splits
(:mod:`sensorium.data.names` says which names are) holding either; several folders of one split are read together. A
folder whose only content is one folder is skipped. A folder whose name says that labels are missing ("unlabeled"), among
those of the classes or beside those of the splits, holds training images without labels: no class. Hidden files and those of operating systems are ignored; whatever
else lies there and is not read is told.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.images.endings import EXTENSIONS, UNREAD, VIDEO
from sensorium.data.images.sets import ArrayImages, Digest, EncodedImages, Found, ImageSet, Numbered, numbered
from sensorium.data.log import Skipped
from sensorium.data.names import is_neutral, is_split, is_unlabeled, list_folder, split_folders, split_of
from sensorium.errors import NothingOfItsKind, SensoriumError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xls", ".ods", ".mat", ".xml")
_OF_LABELS = re.compile(r"label|class|annotation|target|attr|ground.?truth|^(train|test|val|list)[^/]*$")
_NAMED = 8  # names in a note


class Files:
    """Encoded images that are files."""

    def __init__(self, paths: Sequence[str]):
        self.paths: Sequence[str] = paths

    def read(self, index: int) -> Path:
        return Path(self.paths[index])

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for index in indices:
            try:
                stat = os.stat(self.paths[int(index)])  # noqa: PTH116 (a million Path objects are slow)
                digest.update(f"{stat.st_size}:{stat.st_mtime_ns};".encode())
            except OSError:
                digest.update(b"missing;")


def read_folder(folder: Path) -> Found:
    """A folder of images in any of the layouts above. Raises SensoriumError if it has no training image."""
    found = Found("folder of images", {})
    bare: list[Path] = []  # folders of training images without labels
    folder = _unwrap(folder, found, bare)
    splits = _splits(folder, found, bare)
    tally: Counter[str] = Counter()
    for split, places in splits.items():
        images = _one_set(places, bare if split == "train" else None, folder, found, tally)
        if images is not None:
            found.sets[split] = images
    found.notes += ignored(tally)
    if splits != {"train": [folder]}:  # what lies beside folders of splits was not walked
        found.tables += [Path(e.path) for e in list_folder(folder) if not e.is_dir() and may_hold_labels(e.name)]
    if "train" not in found.sets:
        kind = SensoriumError if found.skipped else NothingOfItsKind
        raise kind(_nothing(folder, found, tally, splits))
    if any(images.classes for images in found.sets.values()):
        found.layout = "folder of classes"
    return found


def may_hold_labels(name: str) -> bool:
    """Whether a file may be a table of labels, by its name."""
    name = name.casefold().removesuffix(".gz")
    return name.endswith(TABLES) or (name.endswith(".txt") and bool(_OF_LABELS.search(name)))


def unread(tables: Sequence[Path], opened: tuple[str, ...]) -> list[str]:
    """Sentences about tables beside unlabeled images; those with the endings ``opened`` may be given as data."""
    first = sorted(tables, key=lambda table: split_of(table.name) != "train")
    known = [table.name for table in first if table.name.casefold().endswith(opened)]
    others = [table.name for table in first if not table.name.casefold().endswith(opened)]
    ways = (
        (known, f"open {'it' if len(known) == 1 else 'one of them'} instead to use its labels"),
        (others, "write labels as a .csv of path and label, and open that, to use them"),
    )
    return [f"{_names(names)} {_is(names)} beside the images and not read; {way}." for names, way in ways if names]


def ignored(tally: Counter[str]) -> list[str]:
    """Sentences about files of no image extension, from their number by suffix."""
    unread = {kind: count for kind, count in tally.most_common() if kind in UNREAD}
    rest = Counter({kind: count for kind, count in tally.items() if kind not in UNREAD})
    notes = [
        f"{counted(count, f'{kind} file')} {plural(count, 'is')} not read: "
        f"{'extract frames to JPEG' if kind in VIDEO else 'convert to JPEG or PNG'}."
        for kind, count in unread.items()
    ]
    if rest:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in rest.most_common(4))
        notes.append(f"{counted(sum(rest.values()), 'file')} without an image extension ignored ({kinds}).")
    return notes


def read_digits() -> Found:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 gray, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    pixels = np.round(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(target).astype(np.int64)
    classes = tuple(str(i) for i in range(10))
    return Found("digits", {"train": ArrayImages(pixels, Numbered("digits", len(pixels)), labels, classes)})


def _unwrap(folder: Path, found: Found, bare: list[Path]) -> Path:
    """Descend through folders whose only content is one folder of folders, as unpacked archives often have; ``bare``
    gets the folders without labels beside it, if its own name says nothing ("labeled", "images") or it holds splits."""
    while True:
        entries = list_folder(folder)
        beside = [e for e in entries if e.is_dir() and is_unlabeled(e.name)]
        folders = [e for e in entries if e.is_dir() and not is_unlabeled(e.name)]
        if len(folders) != 1 or any(_is_image(e.name) for e in entries) or is_split(folders[0].name) == "train":
            return folder
        if beside and not is_neutral(folders[0].name) and not split_folders(Path(folders[0].path))[0]:
            return folder
        inner = list_folder(Path(folders[0].path))
        if any(_is_image(e.name) for e in inner) or not any(e.is_dir() for e in inner):
            return folder
        bare += [Path(e.path) for e in beside]
        found.notes.append(
            f"Stepped into {printable(folders[0].name)}, the only folder {'of labels ' if beside else ''}there."
        )
        folder = Path(folders[0].path)


def _splits(folder: Path, found: Found, bare: list[Path]) -> dict[str, list[Path]]:
    """The folders of each split; the folder itself as "train" if it is not organized by splits. ``bare`` gets those
    without labels beside them."""
    splits, others = split_folders(folder)
    if not splits:
        entries = [e for e in list_folder(folder) if e.is_dir()]
        named = {e.name: split for e in entries if (split := is_split(e.name))}
        if len(named) < 2 or len(named) < len(entries) or "train" in named.values():
            return {"train": [folder]}
        splits = {}  # of other sets alone: never classes
        for name, split in named.items():
            splits.setdefault(split, []).append(folder / name)
    for split, places in splits.items():
        if len(places) > 1:
            found.notes.append(f"The folders {_names(p.name for p in places)} are read together as the {split} set.")
    bare += [folder / name for name in others if is_unlabeled(name)]
    others = [name for name in others if not is_unlabeled(name)]
    loose = sum(not e.is_dir() and _is_image(e.name) for e in list_folder(folder))
    beside = [*others, *([counted(loose, "image")] if loose else [])]
    if beside:
        found.notes.append(f"Beside the folders of splits, not read: {_names(beside)}.")
    return splits


def _nothing(folder: Path, found: Found, tally: Counter[str], splits: dict[str, list[Path]]) -> str:
    """Why a folder has no training images."""
    organized = splits != {"train": [folder]}
    if organized and "train" not in splits:
        names = _names(p.name for places in splits.values() for p in places)
        return f"{printable(str(folder))}: no training set; its folders are {names}. Name the training folder 'train'."
    where = "its train folder" if organized else "it and the folders below"
    broken = ""
    if found.skipped:
        first = found.skipped[0]
        broken = f"; {counted(len(found.skipped), 'file')} could not be read (the first: {first.file}: {first.reason})"
    told = "".join(f" {note}" for note in ignored(tally))
    return (
        f"{printable(str(folder))}: no images in {where}{broken}.{told} Looked for {' '.join(sorted(EXTENSIONS))} files, "
        "flat or one folder per class; .npz; IDX pairs; .parquet; .csv; .tar shards."
    )


def _one_set(
    places: Sequence[Path], bare: Sequence[Path] | None, top: Path, found: Found, tally: Counter[str]
) -> ImageSet | None:
    """The images of one split; ``bare``: the folders of training images without labels, None in another split."""
    paths: list[str] = []
    owners: list[str | None] = []
    folders: list[str] = []
    apart: Counter[str] = Counter()  # images by the folder that says that they have no label
    seen: set[tuple[int, int]] = set()
    for place in places:
        folders += [e.name for e in list_folder(place) if e.is_dir() and not is_unlabeled(e.name)]
        for path, below in _walk(place, found, tally, seen):
            paths.append(path)
            owners.append(below[0] if below else None)
            if below and is_unlabeled(below[0]):
                owners[-1] = None
                apart[os.path.relpath(place / below[0], top)] += 1
    for place in bare or ():
        more = [path for path, _ in _walk(place, found, tally, seen)]
        apart[place.name] += len(more)
        paths += more
        owners += [None] * len(more)
    if not paths:
        return None
    if bare is not None:
        found.unlabeled += apart
    return _labeled(
        paths, owners, folders, apart.total(), _names(printable(place.name) for place in places), top, found
    )


def _labeled(
    paths: list[str], owners: list[str | None], folders: list[str], apart: int, what: str, top: Path, found: Found
) -> ImageSet:
    """The images of ``paths``, each of the class that owns it; ``folders``: those that may be classes; ``apart``: how
    many images lie in folders that say that they have no label."""
    if len(named := set(owners) - {None}) == 1 and is_neutral(str(*named)):
        owners = [None] * len(owners)  # "images" is no class
    loose = owners.count(None)
    above = os.path.join(top, "")  # noqa: PTH118 (with the separator)
    names = [printable(path[len(above) :] if path.startswith(above) else os.path.relpath(path, top)) for path in paths]
    if loose == len(paths):
        return EncodedImages(Files(paths), names)
    if loose := loose - apart:
        found.notes.append(
            f"{counted(loose, 'image')} beside the class folders of {what} {plural(loose, 'is')} unlabeled."
        )
    if empty := sorted(set(folders) - set(owners)):
        found.notes.append(f"{counted(len(empty), 'class folder')} of {what} {_is(empty)} empty: {_names(empty)}.")
    labels, classes = numbered(owners)
    return EncodedImages(Files(paths), names, labels, tuple(map(printable, classes)))


def _walk(
    folder: Path, found: Found, tally: Counter[str], seen: set[tuple[int, int]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Image files below a folder with the folders that lead to them. Links are followed, loops are not."""
    stack: list[tuple[Path, tuple[str, ...]]] = [(folder, ())]
    while stack:
        here, below = stack.pop()
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            entries = list_folder(here)
        except (OSError, SensoriumError):
            found.skipped.append(Skipped(printable(str(here)), "folder cannot be read"))
            continue
        for entry in entries:
            if entry.is_dir():
                continue
            if not _is_image(entry.name):
                tally[Path(entry.name).suffix.lower() or "without extension"] += 1
                if may_hold_labels(entry.name):
                    found.tables.append(Path(entry.path))
            elif (reason := _unusable(entry)) is not None:
                found.skipped.append(Skipped(printable(entry.path), reason))
            else:
                yield entry.path, below
        # Depth first in natural order: a stack.
        stack.extend((Path(e.path), (*below, e.name)) for e in reversed(entries) if e.is_dir())


def _unusable(entry: os.DirEntry[str]) -> str | None:
    try:
        if not entry.is_file():
            broken = entry.is_symlink() and not Path(entry.path).exists()
            return "broken link" if broken else "not a regular file"
        return None if entry.stat().st_size else "zero bytes"
    except OSError as error:
        return error.strerror or str(error)


def _is_image(name: str) -> bool:
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in EXTENSIONS


def _names(names: Iterable[str]) -> str:
    names = [printable(name) for name in names]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def _is(what: Sequence[str]) -> str:
    return "is" if len(what) == 1 else "are"
