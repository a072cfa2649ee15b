"""Image files that rows of a table name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from sensorium.base.reading import is_text, printable
from sensorium.base.words import counted, plural
from sensorium.data.images.endings import EXTENSIONS
from sensorium.data.names import Index, is_split, litter, name_parts, sharing
from sensorium.errors import SensoriumError

_FOR_TABLES = frozenset({
    "annotations", "annotation", "ann", "labels", "captions", "metadata", "meta", "csv", "csvs", "tables",
    "splits",
})  # fmt: skip
"""Folders that hold tables alone: the images lie beside such a folder."""


class Pictures:
    """Finds images by the names in a table's rows: relative to it, in folders beside it, or as other tools write them.

    Of several files with one name that in the folder of the row's split is taken. A name may lack its ending, as in
    Kaggle's tables, or have another ending or case, if one file fits.
    """

    def __init__(self, table: Path, split: str = "train") -> None:
        folder = table.parent
        above = [folder.resolve().parent] if folder.resolve().name.casefold() in _FOR_TABLES else []
        self.index, self.folder = Index(folder, *above), folder
        self.split = is_split(table.name.split(".")[0]) or split
        self.renamed = 0  # found under another ending or case
        self._known: dict[tuple[str, str | None], Path | str] = {}
        self._stems: dict[str, list[Path]] | None = None

    def find(self, name: str | None, split: str | None = None) -> Path | str:
        """The file of that name, or the reason why there is none. ``split``: the row's own, if it has one."""
        if not name:
            return "no path in this row"
        asked = name, split
        if asked not in self._known:
            self._known[asked] = self._find(name, split or self.split)
        return self._known[asked]

    def notes(self, where: str) -> list[str]:
        """What was found elsewhere than the table says."""
        told = []
        if self.renamed:
            told.append(
                f"{where}: {counted(self.renamed, 'name')} {'has' if self.renamed == 1 else 'have'} another ending or case than the file."
            )
        if self.index.outside:
            told.append(
                f"{where}: {counted(self.index.outside, 'name')} {'leads' if self.index.outside == 1 else 'lead'} outside the table's folder."
            )
        return told

    def _find(self, name: str, split: str) -> Path | str:
        if "://" in name[:12]:
            return "an address on the web, not a file"
        if (
            "\0" in name
            or len(name) > 4096
            or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in name.split("/"))
        ):
            return "not a path"
        try:
            if found := self.index.find(name):
                return found
            fit = self._narrowed(self.index.alike(name), split) or self._by_stem(name, split)
        except (OSError, ValueError, SensoriumError):
            return "not a path"
        if len(fit) == 1:
            return fit[0]
        if fit:
            return "several files have this name"
        if (self.folder / name).is_dir():
            return "not a file"
        return "no such file" if is_text(name) else "no such file, and the name is not UTF-8"

    def _narrowed(self, paths: list[Path], split: str) -> list[Path]:
        """Of several files those below the table's own folder; of these those in a folder of the split, without one
        those in no folder of another."""
        if len(paths) < 2:
            return paths
        paths = [path for path in paths if path.is_relative_to(self.folder)] or paths
        of = {}
        for path in paths:
            root = next((root for root in self.index.folders if path.is_relative_to(root)), path.parent)
            parts = path.relative_to(root).parts[:-1]
            of[path] = next((found for part in reversed(parts) if (found := is_split(part))), None)
        return [p for p in paths if of[p] == split] or [p for p in paths if of[p] is None] or paths

    def _by_stem(self, name: str, split: str) -> list[Path]:
        if self._stems is None:
            self._stems = {}
            for path in self.index.files():
                if _ending(path.name):
                    self._stems.setdefault(_stem(path.name), []).append(path)
        parts = name_parts(name)
        if not parts:
            return []
        fit = self._narrowed(sharing(self._stems.get(_stem(parts[-1]), []), parts), split)
        self.renamed += len(fit) == 1 and bool(_ending(parts[-1]))
        return fit


def unnamed(paths: Iterable[str]) -> list[str]:
    """Notes about images that lie beside ``paths`` and are not among them."""
    by_folder: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        by_folder.setdefault(folder, set()).add(name)
    left, first = 0, ""
    for folder, names in by_folder.items():
        try:
            with os.scandir(folder or ".") as entries:
                others = [e.name for e in entries if _ending(e.name) and e.name not in names and not litter(e.name)]
        except OSError:
            continue
        left += len(others)
        first = first or (os.path.join(os.path.basename(folder), min(others)) if others else "")  # noqa: PTH118, PTH119
    return (
        [f"{counted(left, 'image')} beside these {plural(left, 'is')} in no row (the first: {printable(first)})."]
        if left
        else []
    )


def _stem(name: str) -> str:
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    return unicodedata.normalize("NFC", stem if ending.casefold() in EXTENSIONS else name).casefold()


def _ending(name: str) -> bool:
    return os.path.splitext(name)[1].casefold() in EXTENSIONS  # noqa: PTH122
