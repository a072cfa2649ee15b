"""WebDataset shards: tars whose members with one key are one sample ("0017.png", "0017.cls", "0017.txt").

By the convention a key ends at the first dot of the base name. Where pictures would share a key for that ("22.05.png",
"22.06.png"), it ends at the last dot, if nothing is lost. Shards are indexed once by their headers and then read at
offsets, so they are map-style; nothing is ever extracted, so a member's path can't escape.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from sensorium.base.memory import Headroom
from sensorium.base.reading import brief, open_regular, parse_json, printable, utf8
from sensorium.base.words import counted
from sensorium.data.columns import SEVERAL
from sensorium.data.images.endings import EXTENSIONS
from sensorium.data.images.sets import Digest, Found
from sensorium.data.images.tables import Gathered, apart, first_skipped
from sensorium.data.log import Log
from sensorium.data.names import divide, is_unlabeled, litter
from sensorium.errors import NothingOfItsKind, SensoriumError

_SMALL = 1 << 20
_MOST_PICTURE = 1 << 30
_LABEL_KEYS = ("cls", "label", "class", "target", "category", "class_name", "fine_label")
_TEXT_KEYS = ("caption", "text")
_ANNOTATIONS = ("cls", "txt", "json", "caption", "text")
_PACKED = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z", b"Rar!": "rar",
}  # fmt: skip


class Slices:
    """Encoded images at offsets of tar files."""

    def __init__(self, tars: list[Path], places: np.ndarray):
        self.tars, self.places = tars, places  # places: int64 [N, 3] of (tar, offset, size)

    def read(self, index: int) -> bytes:
        tar, offset, size = (int(v) for v in self.places[index])
        if size > _MOST_PICTURE:
            raise ValueError(f"{size / 2**30:,.1f} GiB; at most {_MOST_PICTURE >> 30} GiB are read")
        with self.tars[tar].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for path in self.tars:
            stat = path.stat()
            digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns};".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.places[indices]).data)


class Sample(NamedTuple):
    """Members of one key: (offset, size) by extension in lower case; ``picture`` is the extension of the image."""

    key: str
    members: dict[str, tuple[int, int]]
    picture: str | None


def read_tars(files: Mapping[str, Sequence[Path]]) -> Found:
    """Shards by split. Labels come from .cls, else from a key of .json; .txt (or a caption there) is the text."""
    pairs = [(split, tar) for split, tars in files.items() for tar in tars]
    log, where = Log(), printable(", ".join(str(tar) for _, tar in pairs[:3]))
    gathered, others = Gathered("webdataset", where, log), Counter[str]()
    for number, (split, tar) in enumerate(pairs):
        samples = read_samples(tar, log)
        of = splits_within(samples)
        with open_regular(tar) as file:
            for one in samples:
                if one.picture is None:
                    others.update(extension.rpartition(".")[2] or "without ending" for extension in one.members)
                    continue
                name = f"{tar.name}/{one.key}.{one.picture}"
                label, text, reason = _annotations(file, one.members)
                place = (number, *one.members[one.picture])
                bare = next((part for part in one.key.split("/")[:-1] if is_unlabeled(part)), apart(tar, len(pairs)))
                gathered.add(name, place, label, text, of.get(one.key, split), reason, bare)
    if others:
        told = ", ".join(f"{count:,} .{printable(kind[:20])}" for kind, count in others.most_common(4))
        log.notes.append(
            f"{counted(sum(others.values()), 'member')} {'belongs' if sum(others.values()) == 1 else 'belong'} to no picture ({told})."
        )
    if not gathered.rows:
        raise NothingOfItsKind(
            f"{where}: no images{first_skipped(log)}; looked for members such as 0001.jpg with 0001.cls, .txt or .json."
        )
    tars = [tar for _, tar in pairs]
    found = gathered.found(lambda places: Slices(tars, np.array(places, np.int64)))
    if not any(images.classes for images in found.sets.values()):
        found.notes += _class_folders([name for images in found.sets.values() for name in images.names])
    return found


class _Bounded(io.FileIO):
    """A file that limits reads to its length, because a header may give any length."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.held if size is None or size < 0 else min(size, self.held)) or b""


def read_samples(tar: Path, log: Log) -> list[Sample]:
    """The samples of a tar in the order of their first members; ``log`` gets what is lost and which dot decided."""
    room = Headroom(printable(str(tar)), "split it into smaller tars.")
    names: dict[str, tuple[int, int]] = {}
    twice = 0
    for name, offset, size in _members(tar, log):
        room.check()
        parts = name.split("/")
        if any(litter(part) for part in parts if part not in ("", ".", "..")) or parts[0].startswith("PaxHeader"):
            continue
        twice += name in names
        names[name] = (offset, size)  # as unpacking does: of equal names the last stays
    where = printable(tar.name)
    if twice:
        log.notes.append(
            f"{where}: {counted(twice, 'member')} {'has' if twice == 1 else 'have'} the name of another; the last of each name is read."
        )
    first, last = _grouped(names, str.partition), None
    shared = sum(count for members in first.values() if (count := _pictures(members)) > 1)
    if shared:
        last = _grouped(names, _at_the_last)
        told = f"{shared:,} of {sum(map(_pictures, first.values())):,} pictures share a key with another"
        if (
            sum(map(_alone, last.values())) <= sum(map(_alone, first.values()))
            and all(_pictures(members) <= 1 for members in last.values())
            and not any(map(_composed, first.values()))
        ):
            log.notes.append(f"{where}: keys end at the last dot; at the first, {told}.")
            first = last
        else:
            log.notes.append(f"{where}: {told} (a key ends at the first dot of the name): one of each key is read.")
    return [Sample(key, members, _picture(members)) for key, members in first.items()]


def splits_within(samples: Sequence[Sample]) -> dict[str, str]:
    """The split of each key that lies in a folder of one within the tar."""
    folders = {one.key: Path(one.key.strip("/")).with_name("_") for one in samples if "/" in one.key.strip("/")}
    if not folders or len(folders) < len(samples):
        return {}
    of = {path: split for split, paths in divide(dict.fromkeys(folders.values()), Path()).items() for path in paths}
    return {key: of[folder] for key, folder in folders.items()} if len(set(of.values())) > 1 else {}


def _grouped(
    names: dict[str, tuple[int, int]], cut: Callable[[str, str], tuple[str, str, str]]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Members by key and extension; ``cut`` divides a base name. Of one key and extension the first stays."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, place in names.items():
        folder, _, base = name.rpartition("/")
        stem, _, extension = cut(base, ".")
        members = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
        extension = extension.lower()
        while extension in members:  # "a.JPG" beside "a.jpg"
            extension = f"again.{extension}"
        members[extension] = place
    return found


def _at_the_last(base: str, dot: str) -> tuple[str, str, str]:
    stem, _, extension = base.rpartition(dot)
    return (stem, dot, extension) if stem else (base, "", "")


def _is_picture(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in EXTENSIONS


def _pictures(members: dict[str, tuple[int, int]]) -> int:
    return sum(map(_is_picture, members))


def _alone(members: dict[str, tuple[int, int]]) -> int:
    """Annotations without a picture, or that several of one kind share; and pictures without annotations."""
    kinds = Counter(kind for extension in members if (kind := extension.rpartition(".")[2]) in _ANNOTATIONS)
    if not kinds or not _pictures(members):
        return sum(kinds.values()) + _pictures(members)
    return sum(count - 1 for count in kinds.values())


def _composed(members: dict[str, tuple[int, int]]) -> bool:
    """Whether a sample has an image and others about it: "0001.jpg" and "0001.mask.png"."""
    dots = [extension.count(".") for extension in members if _is_picture(extension)]
    return 0 in dots and max(dots) > 0


def _picture(members: dict[str, tuple[int, int]]) -> str | None:
    """The extension of the image: the plainest, so that "0001.jpg" goes before "0001.mask.png"."""
    return min(filter(_is_picture, members), key=lambda extension: extension.count("."), default=None)


def _members(tar: Path, found: Found | Log) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the regular files of a tar; for a damaged one, those before the damage."""
    log = found if isinstance(found, Log) else Log(found.skipped)
    count, last = 0, -1
    with open_regular(tar) as file:
        head, held = file.read(8), os.fstat(file.fileno()).st_size
    if packed := next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None):
        log.skip(str(tar), f"packed with {packed}, which cannot be read at offsets; unpack it to a plain .tar first")
        return
    try:
        with _Bounded(tar) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] (a million members need not be kept)
                if member.offset_data <= last:
                    raise ValueError("a member lies before the one it follows")
                last = member.offset_data
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        log.skip(f"{tar.name}/{member.name}", "a link or special file in a tar")
                    continue
                if member.size < 0 or member.offset_data + member.size > held:
                    raise ValueError("the file ends within a member")
                count += 1
                yield member.name, member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        log.skip(str(tar), f"damaged after {counted(count, 'member')}", brief(error))


def _class_folders(names: Sequence[str]) -> list[str]:
    """A note if pictures lie in folders within the tars, which might be classes."""
    folders = Counter(parts[-2] for name in names if len(parts := name.split("/")) > 2)
    if not 2 <= len(folders) <= max(2, len(names) // 2):
        return []
    listed = ", ".join(printable(folder) for folder in list(folders)[:4])
    return [f"Folders within the tars ({listed}) are not used as labels; unpack the tars to use them as classes."]


def _annotations(file: BinaryIO, members: dict[str, tuple[int, int]]) -> tuple[str | None, str | None, str]:
    """(class name, text, reason) of a sample; either may be None, the reason is that of a label that can't be used."""
    label, reason = _text(file, members.get("cls"), "label")
    text, _ = _text(file, members.get("txt"), "text")
    if "json" in members and (text is None or (label is None and not reason)):
        stored, why = _object(file, members["json"])
        text = text if text is not None else _first(stored, _TEXT_KEYS)
        if label is None and not reason:
            label = _first(stored, _LABEL_KEYS)
            reason = why if label is None else ""
            if label is None and any(isinstance(stored.get(key), list | dict) and stored[key] for key in _LABEL_KEYS):
                reason = SEVERAL
    return label, text, reason


def _object(file: BinaryIO, place: tuple[int, int]) -> tuple[dict, str]:
    """(the JSON object, "") or ({}, reason)."""
    data, reason = _bytes(file, place)
    if reason:
        return {}, f".json {reason}"
    try:
        stored = parse_json(data or b"null", "")
    except SensoriumError:
        return {}, ".json cannot be read"
    return (stored, "") if isinstance(stored, dict) else ({}, ".json is not an object")


def _first(stored: dict, keys: tuple[str, ...]) -> str | None:
    value = next((stored[key] for key in keys if isinstance(stored.get(key), str | int | float)), None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


def _text(file: BinaryIO, place: tuple[int, int] | None, what: str) -> tuple[str | None, str]:
    """(text, "") or (None, reason)."""
    data, reason = (b"", "") if place is None else _bytes(file, place)
    try:
        return data.decode().strip() or None, reason and f"{what} {reason}"
    except UnicodeDecodeError:
        return None, f"{what} is not UTF-8"


def _bytes(file: BinaryIO, place: tuple[int, int]) -> tuple[bytes, str]:
    """(a small member as UTF-8, "") or (b"", reason)."""
    if place[1] > _SMALL:
        return b"", "of more than 1 MiB"
    file.seek(place[0])
    return utf8(file.read(place[1])), ""
