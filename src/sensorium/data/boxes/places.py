"""The files of a folder with boxes, read once: pictures, texts, XML and YAML files, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from sensorium.base.reading import printable, read_bytes
from sensorium.base.words import counted, plural
from sensorium.data.images.endings import EXTENSIONS
from sensorium.data.log import Log
from sensorium.data.names import files_below, folded, folder_splits, is_split, list_folder
from sensorium.errors import SensoriumError

SMALL = 16 << 20  # maximum bytes of an image's annotation


class Scan:
    """The files below ``root``, in natural order."""

    def __init__(self, root: Path, log: Log) -> None:
        self.root = root
        self.pictures: list[Path] = []
        self.texts: list[Path] = []
        self.xmls: list[Path] = []
        self.others: list[Path] = []
        kinds = {".txt": self.texts, ".xml": self.xmls} | dict.fromkeys(EXTENSIONS, self.pictures)
        for file in files_below(root, log):
            kinds.get(file.suffix.lower(), self.others).append(file)

    @cached_property
    def by_stem(self) -> dict[str, list[Path]]:
        """Pictures by their stem, in any case."""
        found: dict[str, list[Path]] = {}
        for picture in self.pictures:
            found.setdefault(folded(picture.stem), []).append(picture)
        return found

    @staticmethod
    def lines(file: Path, log: Log) -> list[str]:
        """The lines of a small text file that aren't empty."""
        try:
            text = read_bytes(file, most=SMALL).decode("utf-8", "replace")
        except SensoriumError as error:
            log.skip(file.name, "annotation cannot be read", str(error).partition(": ")[2])
            return []
        return [line for line in text.replace("\r", "\n").split("\n") if line.strip("\0 \t\v\f\x1a")]


def parted(files: Sequence[Path], root: Path, log: Log) -> dict[str, list[Path]]:
    """Files by the split of the folders they are in; all are training data if no folder is of a split.

    Raises SensoriumError if there are test or validation data and nothing else.
    """
    of = folder_splits(list(files), root)
    if not of:
        said = [next((s for p in f.relative_to(root).parts[:-1] if (s := is_split(p))), None) for f in files]
        if files and all(said):
            raise SensoriumError(
                f"'{printable(str(root))}': no training images; there are {', '.join(sorted({s for s in said if s}))}."
            )
        return {"train": list(files)}
    splits: dict[str, list[Path]] = {}
    beside = []
    for file in files:
        (splits.setdefault(of[file], []) if file in of else beside).append(file)
    if beside:
        n = len(beside)
        log.notes.append(
            f"{counted(n, 'file')} beside the folders of splits {plural(n, 'is')} not used, the first is "
            f"{printable(str(beside[0].relative_to(root)))}."
        )
    return splits


def unwrapped(folder: Path, log: Log) -> Path:
    """The folder below that has everything, if there is nothing else, as in unpacked archives."""
    while True:
        entries = list_folder(folder)
        below = [entry for entry in entries if entry.is_dir()]
        if len(entries) != 1 or not below or is_split(below[0].name):
            return folder
        inner = list_folder(Path(below[0].path))
        if not any(entry.is_dir() for entry in inner):
            return folder
        log.notes.append(f"Stepped into {printable(below[0].name)}, the only folder there.")
        folder = Path(below[0].path)
