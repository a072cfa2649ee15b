"""Image files in folders, and scikit-learn's digits.

A folder is one of: images flat (unlabeled), one folder per class (images at any depth below it), or one folder per
split (train, val, test in any of their usual names and any case) holding either. A folder whose only content is one
folder is skipped. Hidden files and those of operating systems are ignored.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.decode import EXTENSIONS
from sensorium.data.images.sets import ArrayImages, Digest, EncodedImages, Found, ImageSet, Numbered, numbered
from sensorium.data.log import Skipped
from sensorium.data.names import SPLITS, list_folder, split_of
from sensorium.errors import SensoriumError


class Files:
    """Encoded images that are files."""

    def __init__(self, paths: Sequence[str]):
        self.paths: Sequence[str] = paths

    def read(self, index: int) -> Path:
        path = Path(self.paths[index])
        if path.stat().st_size == 0:
            raise ValueError("zero bytes")
        return path

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for index in indices:
            try:
                stat = os.stat(self.paths[int(index)])  # noqa: PTH116 (a million Path objects are slow)
                digest.update(f"{stat.st_size}:{stat.st_mtime_ns};".encode())
            except OSError:
                digest.update(b"missing;")


def read_folder(folder: Path) -> Found:
    """A folder of images in any of the layouts above. Raises SensoriumError if it has no image at all."""
    found = Found("folder of images", {})
    folder = _unwrap(folder, found)
    splits = _split_folders(folder)
    tally: Counter[str] = Counter()
    if splits:
        for split, at in splits.items():
            images = _one_set(at, folder, found, tally)
            if images is not None:
                found.sets[split] = images
    elif (images := _one_set(folder, folder, found, tally)) is not None:
        found.sets["train"] = images
    if tally:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.most_common(4))
        found.notes.append(f"{_count(sum(tally.values()), 'file')} without an image extension ignored ({kinds}).")
    if "train" not in found.sets:
        where = "its train folder" if splits else "it and the folders below"
        broken = f"; {_count(len(found.skipped), 'file')} could not be read" if found.skipped else ""
        raise SensoriumError(
            f"{printable(str(folder))}: no images in {where}{broken}. Looked for {' '.join(sorted(EXTENSIONS))} files, flat or "
            "one folder per class; .npz; IDX pairs; .parquet; .csv; .tar shards."
        )
    if any(images.classes for images in found.sets.values()):
        found.layout = "folder of classes"
    return found


def read_digits() -> Found:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 gray, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    pixels = np.round(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(target).astype(np.int64)
    classes = tuple(str(i) for i in range(10))
    return Found("digits", {"train": ArrayImages(pixels, Numbered("digits", len(pixels)), labels, classes)})


def _unwrap(folder: Path, found: Found) -> Path:
    """Descend through folders whose only content is one folder of folders, as unpacked archives often have."""
    while True:
        entries = list_folder(folder)
        folders = [e for e in entries if e.is_dir()]
        if len(folders) != 1 or any(_is_image(e.name) for e in entries) or split_of(folders[0].name) == "train":
            return folder
        inner = list_folder(Path(folders[0].path))
        if any(_is_image(e.name) for e in inner) or not any(e.is_dir() for e in inner):
            return folder
        found.notes.append(f"Stepped into {printable(folders[0].name)}, the only folder there.")
        folder = Path(folders[0].path)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split folders by split; empty if the folder is not organized by splits (a class may also be called "train")."""
    splits: dict[str, Path] = {}
    others = 0
    for entry in list_folder(folder):
        if not entry.is_dir():
            others += _is_image(entry.name)
            continue
        split = split_of(entry.name)
        exact = split is not None and entry.name.casefold() in SPLITS[split]
        if split is not None and exact and split not in splits:
            splits[split] = Path(entry.path)
        else:
            others += 1
    return splits if "train" in splits and (not others or len(splits) > 1) else {}


def _one_set(folder: Path, top: Path, found: Found, tally: Counter[str]) -> ImageSet | None:
    paths: list[str] = []
    owners: list[str | None] = []
    loose = 0
    for path, below in _walk(folder, found, tally, set()):
        paths.append(path)
        owners.append(below[0] if below else None)
        loose += not below
    if not paths:
        return None
    names = [printable(os.path.relpath(path, top)) for path in paths]
    if loose == len(paths):
        return EncodedImages(Files(paths), names)
    if loose:
        found.notes.append(
            f"{_count(loose, 'image')} beside the class folders of {printable(folder.name)} are unlabeled."
        )
    labels, classes = numbered(owners)
    return EncodedImages(Files(paths), names, labels, tuple(map(printable, classes)))


def _walk(folder: Path, found: Found, tally: Counter[str], seen: set[tuple[int, int]]):
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
            elif (reason := _unusable(entry)) is not None:
                found.skipped.append(Skipped(printable(entry.path), reason))
            else:
                yield entry.path, below
        # Depth first in natural order: a stack.
        stack.extend((Path(e.path), (*below, e.name)) for e in reversed(entries) if e.is_dir())


def _unusable(entry: os.DirEntry[str]) -> str | None:
    try:
        if not entry.is_file():
            return "broken link" if entry.is_symlink() else "not a regular file"
        return None if entry.stat().st_size else "zero bytes"
    except OSError as error:
        return error.strerror or str(error)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 (a million Path objects are slow)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
