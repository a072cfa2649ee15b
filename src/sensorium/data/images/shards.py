"""WebDataset shards: tars whose members with one stem are one sample ("0017.png", "0017.cls", "0017.txt").

Shards are indexed once by their headers and then read at offsets, so they are map-style; nothing is ever extracted, so
a member's path can't escape.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.decode import EXTENSIONS
from sensorium.data.images.sets import Digest, EncodedImages, Found, numbered
from sensorium.data.log import Skipped
from sensorium.errors import SensoriumError

_SMALL = 1 << 20
_LABEL_KEYS = ("cls", "label", "class", "target", "category")
_TEXT_KEYS = ("caption", "text")


class Slices:
    """Encoded images at offsets of tar files."""

    def __init__(self, tars: list[Path], places: np.ndarray):
        self.tars, self.places = tars, places  # places: int64 [N, 3] of (tar, offset, size)

    def read(self, index: int) -> bytes:
        tar, offset, size = (int(v) for v in self.places[index])
        with self.tars[tar].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for path in self.tars:
            stat = path.stat()
            digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
        digest.update(np.ascontiguousarray(self.places[indices]).data)


def read_tars(files: dict[str, list[Path]]) -> Found:
    """Shards by split. Labels come from .cls, else from a key of .json; .txt (or a caption there) is the text."""
    found = Found("webdataset", {})
    for split, tars in files.items():
        names, places, labels, texts = [], [], [], []
        for number, tar in enumerate(tars):
            for stem, members in _samples(tar, found):
                image = next((ext for ext in members if f".{ext.rpartition('.')[2]}" in EXTENSIONS), None)
                if image is None:
                    continue
                names.append(f"{printable(tar.name)}/{printable(stem)}.{printable(image)}")
                places.append((number, *members[image]))
                label, text = _annotations(tar, members)
                labels.append(None if label is None else printable(label))
                texts.append(text)
        if not names:
            continue
        images = EncodedImages(Slices(tars, np.array(places, np.int64)), names)
        if any(label is not None for label in labels):
            images.labels, images.classes = numbered(labels)
        images.texts = texts if any(texts) else None
        found.sets[split] = images
    if "train" not in found.sets:
        where = printable(", ".join(str(tar) for tar in files["train"][:3]))
        why = f" ({found.skipped[0].reason})" if found.skipped else ""
        raise SensoriumError(
            f"{where}: no images{why}; looked for members such as 0001.jpg with 0001.cls, .txt or .json."
        )
    return found


class _Bounded(io.FileIO):
    """A file that limits reads to its length, because a header may give any length."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left)) or b""


def _samples(tar: Path, found: Found) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """(stem, {extension: (offset, size)}) of each run of members with one stem."""
    stem, members = None, {}
    for name, offset, size in _members(tar, found):
        folder, _, base = name.rpartition("/")
        if base.startswith("."):
            continue
        first, _, extension = base.partition(".")
        key = f"{folder}/{first}" if folder else first
        if key != stem:
            if stem is not None:
                yield stem, members
            stem, members = key, {}
        members[extension.lower()] = (offset, size)
    if stem is not None:
        yield stem, members


def _members(tar: Path, found: Found) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the regular files of a tar; for a damaged one, those before the damage."""
    count, last, held = 0, -1, tar.stat().st_size
    try:
        with _Bounded(tar) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] (a million members need not be kept)
                if member.offset_data <= last:
                    raise ValueError("a member lies before the one it follows")
                last = member.offset_data
                if not member.isreg() or member.issparse():
                    continue
                if member.size < 0 or member.offset_data + member.size > held:
                    raise ValueError("the file ends within a member")
                count += 1
                yield member.name, member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        found.skipped.append(Skipped(printable(str(tar)), f"damaged after {count:,} members: {reason}"))


def _annotations(tar: Path, members: dict[str, tuple[int, int]]) -> tuple[str | None, str | None]:
    """(class name, text) of a sample; either may be None."""
    label, text = _text(tar, members.get("cls")), _text(tar, members.get("txt"))
    if (label is None or text is None) and "json" in members:
        try:
            stored = json.loads(_text(tar, members["json"]) or "null")
        except (ValueError, RecursionError):
            stored = None
        if isinstance(stored, dict):
            label = label if label is not None else _first(stored, _LABEL_KEYS)
            text = text if text is not None else _first(stored, _TEXT_KEYS)
    return label, text


def _first(stored: dict, keys: tuple[str, ...]) -> str | None:
    value = next((stored[key] for key in keys if isinstance(stored.get(key), str | int)), None)
    return None if value is None else str(value)


def _text(tar: Path, place: tuple[int, int] | None) -> str | None:
    if place is None or place[1] > _SMALL:
        return None
    with tar.open("rb") as file:
        file.seek(place[0])
        return file.read(place[1]).decode("utf-8", "replace").strip() or None
