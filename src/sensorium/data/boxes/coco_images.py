"""Where the images of a COCO file are: in a folder or an uncompressed .tar near it, under names of any machine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.images.folders import Files
from sensorium.data.images.sets import Found, Source
from sensorium.data.images.shards import Slices, _members
from sensorium.data.log import Log
from sensorium.data.names import Index, Tails, file_at, is_split, name_parts
from sensorium.errors import SensoriumError

_FOLDERS = ("images", "data", "image", "imgs", "img", "JPEGImages", "pictures", "photos", ".")
_OF_ANNOTATIONS = frozenset({"annotations", "annotation", "labels", "json", "jsons", "ann", "anns"})
_TRIED = 50  # names


def images_of(file: Path, names: list[str], log: Log) -> tuple[Source, dict[str, int]]:
    """The folder or tar of a COCO file's images, and the image of each listed name: of the usual places, the one that
    has most of some of the names, as they are or by their last part. Raises SensoriumError if none has any."""
    stem = re.sub(r"^_?(instances|annotations|person_keypoints)[_.]?|\.coco$", "", file.name.partition(".json")[0])
    wanted = [name for name in dict.fromkeys([stem, f"images_{stem}", f"images/{stem}", *_FOLDERS]) if name]
    up = file.absolute().parent.parent if file.parent.name in ("", "..") else file.parent.parent
    near = [base / name for base in (file.parent, up) for name in wanted]
    tars = (place.with_name(f"{place.name}.tar") for place in near if place.name)
    stores: list[_Folder | _Tar] = [_Folder(place, place != up) for place in near if place.is_dir()]
    stores += [_Tar(tar, log) for tar in dict.fromkeys(tars) if tar.is_file()]
    tried = (
        [names[int(i)] for i in np.unique(np.linspace(0, max(len(names) - 1, 0), _TRIED).astype(int))] if names else []
    )
    best = max(stores, key=lambda store: store.score(tried), default=None)
    if names and (best is None or not any(best.score(tried))):
        # Below the folder of the file, or of its "annotations", at any depth.
        apart = file.parent.name.casefold() in _OF_ANNOTATIONS or is_split(file.parent.name) is not None
        best = _Folder(up if apart else file.parent, True)
        stores.append(best)
    places = {} if best is None else {name: place for name in dict.fromkeys(names) if (place := best.find(name))}
    if best is None or (names and not places):
        looked = ", ".join(dict.fromkeys(printable(str(store.path)) for store in stores)) or "no folder"
        first = f" (the first is called {printable(names[0])[:100]})" if names else ""
        raise SensoriumError(f"{printable(str(file))}: none of its images was found{first}; looked in {looked}.")
    if best.outside:
        n = best.outside
        log.notes.append(
            f"{counted(n, 'image')} {plural(n, 'lies')} outside {printable(str(best.path))}, "
            f"where {plural(n, 'its path')} {plural(n, 'says')}."
        )
    distinct: dict[Any, int] = {place: i for i, place in enumerate(dict.fromkeys(places.values()))}
    return best.source(distinct), {name: distinct[place] for name, place in places.items()}


class _Folder:
    """Images in a folder. ``deep``: those of another path are looked for below it by the last part of their name."""

    def __init__(self, path: Path, deep: bool):
        self.path, self.deep, self.outside, self._index = path, deep, 0, Index(path)

    def score(self, names: list[str]) -> tuple[int, int]:
        """How many of the names there are in it, and how many of them by their full name."""
        full = [self._full(name) is not None for name in names]
        flat = [file_at(self.path, (name_parts(name) or [""])[-1]) is not None for name in names]
        return sum(a or b for a, b in zip(full, flat, strict=True)), sum(full)

    def find(self, name: str) -> Path | None:
        """The image of a name. A relative one is never outside the folder; an absolute one that exists is followed."""
        if found := self._full(name):
            return found
        if not self.deep:
            return file_at(self.path, (name_parts(name) or [""])[-1])
        plain = name.strip()
        if Path(plain).is_absolute() and (found := file_at(self.path, plain)):
            self.outside += not found.resolve().is_relative_to(self.path.resolve())
            return found
        return self._index.find("/".join(name_parts(name)))

    def _full(self, name: str) -> Path | None:
        parts = name_parts(name)
        if found := file_at(self.path, "/".join(parts)):
            return found
        return file_at(self.path, name) if "\\" in name and "/" not in name else None

    def source(self, places: Iterable[Path]) -> Source:
        return Files([str(place) for place in places])


class _Tar:
    """Images in a tar, by their full name or its last parts."""

    def __init__(self, path: Path, log: Log):
        self.path, self.outside, self.members, self.tails = path, 0, {}, Tails()
        found = Found("tar", {})
        for name, offset, size in _members(path, found):
            parts = name_parts(name)
            if parts:
                self.members["/".join(parts)] = (offset, size)
        for name, place in self.members.items():
            self.tails.add(name.split("/"), place)
        for skipped in found.skipped:
            log.skip(skipped.file, "tar is damaged", skipped.reason)

    def score(self, names: list[str]) -> tuple[int, int]:
        full = sum("/".join(name_parts(name)) in self.members for name in names)
        return sum(self.find(name) is not None for name in names), full

    def find(self, name: str) -> tuple[int, int] | None:
        parts = name_parts(name)
        return self.members.get("/".join(parts)) or self.tails.find(parts)

    def source(self, places: Iterable[tuple[int, int]]) -> Source:
        return Slices([self.path], np.array([(0, *place) for place in places], np.int64).reshape(-1, 3))
