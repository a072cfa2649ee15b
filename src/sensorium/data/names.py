"""What names of files and folders say: which are litter, and which split they belong to. One rule for all readers.

A name is *of* a split if it is one of its words and nothing else but numbers and neutral words: "train", "Test",
"val2017", "training_set", "test_images", "train-00000-of-00001.parquet". A name with further words ("wiki.test.txt",
"imagenet_train") counts only beside another that has the same further words and is of the training split, so that a
class called "test tube" stays a class, and a document with that title a document.

A name *says that labels are missing* if it does by one of the usual words, again with nothing but numbers, neutral words
and those of the training split beside it: "unlabeled", "Unlabelled_images", "no-labels", "train_unlabeled",
"unsupervised". What lies there is for learning without labels: no class, and never test data. "unknown", "other" and
"unclassified" are names of real classes, and don't say so.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sensorium.base.reading import printable
from sensorium.data.log import Log
from sensorium.errors import SensoriumError

SPLITS = {
    "train": ("train", "training", "trainset", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "valset", "validset", "minival"),
    "test": ("test", "testing", "t10k", "testset", "eval", "evaluation", "evalset"),
}
BUILT_IN = ("digits", "scenes", "shapes")
_OF = {word: split for split, words in SPLITS.items() for word in words}
_NEUTRAL = frozenset(
    [
        "set",
        "sets",
        "split",
        "splits",
        "data",
        "dataset",
        "images",
        "image",
        "imgs",
        "img",
        "pictures",
        "pics",
        "photos",
        "frames",
        "files",
        "text",
        "texts",
        "txt",
        "labels",
        "annotations",
        "annotation",
        "ann",
        "instances",
        "captions",
        "shard",
        "shards",
        "part",
        "parts",
        "of",
        "full",
        "all",
        "original",
        "raw",
        "jpegs",
        "jpeg",
        "jpg",
        "png",
        "x",
        "y",
        "rgb",
        "labeled",
        "labelled",
    ]
)
_MISSING = re.compile(
    r"\b(un ?(labell?ed|annotated|supervised)|unsup|no ?(labell?s?|annotations?)|(not|non) ?labell?ed"
    r"|without ?labell?s?|labell?less)\b"
)
_LITTER = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin",
     "lost+found", "system volume information", "__pycache__", "node_modules",
     "sensorium-runs", "sensorium-compare", "sensorium-ablate", "sensorium-demo", "sensorium-signal", "sensorium-rates",
     "sensorium-cache"}
)  # fmt: skip
_NUMBERS = re.compile(r"(\d+)")


def litter(name: str) -> bool:
    """Whether it is hidden, or made by an operating system, by an editor or by commands of ours at their default
    places: never data."""
    return name.startswith((".", "~$")) or name.casefold() in _LITTER or name.endswith(("~", ".crdownload", ".swp"))


def natural_key(text: str) -> tuple:
    """Sorting key under which "img2" precedes "img10"."""
    parts = _NUMBERS.split(text)  # every other one is a number
    key: list[int | str] = [1, 0, parts[0].casefold()] if parts[0] else []
    for at in range(1, len(parts), 2):
        # A number sorts by its length and then its digits: no int(), which refuses very long ones.
        digits = parts[at].lstrip("0")
        key += 0, len(digits), digits
        if parts[at + 1]:
            key += 1, 0, parts[at + 1].casefold()
    return tuple(key), text


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Entries in natural order, without litter. Raises SensoriumError if the folder can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not litter(e.name)), key=lambda e: natural_key(e.name))
    except OSError as error:
        raise SensoriumError(f"{printable(str(folder))}: {error.strerror or error}; cannot list this folder.") from None


def files_below(folder: Path, log: Log) -> Iterator[Path]:
    """The files of a folder and those below it, in natural order, without litter. Links are followed, loops are not; a
    folder below that can't be read is logged."""
    stack, seen = [folder], set()
    while stack:
        here = stack.pop()
        try:
            place = here.stat()
            entries = list_folder(here) if (place.st_dev, place.st_ino) not in seen else []
        except (OSError, SensoriumError):
            if here == folder:
                raise
            log.skip(str(here), "folder cannot be read")
            continue
        seen.add((place.st_dev, place.st_ino))
        yield from (Path(e.path) for e in entries if not e.is_dir())
        stack.extend(Path(e.path) for e in reversed(entries) if e.is_dir())


def split_of(name: str) -> str | None:
    """The split whose word is in a name, with whatever else: "train-00001.tar" -> "train"; None without one."""
    return next((_OF[word] for word in _words(name) if word in _OF), None)


def is_split(name: str) -> str | None:
    """The split that a name is of, having nothing but its word, numbers and neutral words; None if it is of none."""
    words = _words(name)
    found = {_OF[word] for word in words if word in _OF}
    return found.pop() if len(found) == 1 and all(word in _OF or word in _NEUTRAL for word in words) else None


def is_unlabeled(name: str) -> bool:
    """Whether the name of a folder, a file or a class says that labels are missing, by the rule above."""
    rest = beside_unlabeled(name)
    return rest is not None and all(word in _NEUTRAL or _OF.get(word) == "train" for word in rest)


def beside_unlabeled(name: str) -> list[str] | None:
    """The words of a name beside those that say that labels are missing; None if none say so."""
    rest, found = _MISSING.subn(" ", " ".join(_words(_stem(name))))
    return rest.split() if found else None


def is_neutral(name: str) -> bool:
    """Whether a name says no more than that data lie there: "images", "All_Pictures", "data-1"."""
    words = _words(name)
    return bool(words) and all(word in _NEUTRAL for word in words)


def split_names(names: Iterable[str]) -> dict[str, str]:
    """The split of each name that has one, by the rule above; empty if none is of the training split."""
    names = list(names)
    found = {name: split for name in names if (split := is_split(name))}
    kin: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        if name not in found and (split := split_of(name)):
            rest = tuple(word for word in _words(name) if word not in _OF and word not in _NEUTRAL)
            kin.setdefault(rest, {})[name] = split
    for alike in kin.values():
        if "train" in alike.values() and len(set(alike.values())) > 1:
            found |= alike
    return found if "train" in found.values() else {}


def split_folders(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """(folders of each split, names of the other folders) if a folder is organized by splits, else ({}, []).

    It is if it has a training folder and one of another split, or a training folder and nothing else but folders whose
    names say that labels are missing.
    """
    entries = list_folder(folder)
    folders = [e for e in entries if e.is_dir()]
    of = split_names(e.name for e in folders if not is_unlabeled(e.name))
    splits: dict[str, list[Path]] = {}
    for entry in folders:
        if entry.name in of:
            splits.setdefault(of[entry.name], []).append(Path(entry.path))
    others = [e.name for e in folders if e.name not in of]
    return (splits, others) if len(splits) > 1 or (splits and all(map(is_unlabeled, others))) else ({}, [])


def divide(files: Iterable[Path], root: Path, log: Log | None = None) -> dict[str, list[Path]]:
    """Files below ``root`` by split: the one of the first folder on their way that is organized by splits, else that of
    their own name. All are training data if none is by name; ``log`` gets a note that says which names decided."""
    files = list(files)
    splits: dict[str, list[Path]] = {}
    by_folder = folder_splits(files, root)
    by_name: dict[Path, dict[str, str]] = {}
    for file in files:
        by_name.setdefault(file.parent, {})[file.name] = ""
    for parent, names in by_name.items():
        of = split_names(_stem(name) for name in names)
        if not of:  # a lone "test.txt" beside others is a test set; a lone "the test of time.txt" is not
            of = {stem: split for name in names if (split := is_split(stem := _stem(name)))}
        by_name[parent] = {name: of.get(_stem(name), "") for name in names}
    for file in files:
        split = by_folder.get(file) or by_name[file.parent][file.name] or "train"
        splits.setdefault(split, []).append(file)
    if "train" not in splits:
        return {"train": files}
    if log is not None and len(splits) > 1:
        told = ", ".join(f"{len(splits[s]):,} {s}" for s in SPLITS if s in splits)
        log.notes.append(f"Files are divided by the splits in their names: {told}.")
    return splits


def folder_splits(files: list[Path], root: Path) -> dict[Path, str]:
    """The split of each file that lies in a folder of one, at any depth; none if no folder is of the training split."""
    children: dict[Path, set[str]] = {}
    for file in files:
        here = root
        for part in file.relative_to(root).parts[:-1]:
            children.setdefault(here, set()).add(part)
            here /= part
    splits = {here / name: split for here, names in children.items() for name, split in split_names(names).items()}
    found = {}
    for file in files:
        split = next((splits[place] for place in reversed(file.parents) if place in splits), None)
        if split is not None:
            found[file] = split
    return found


class Tails:
    """Things by the last parts of their names, in any case and any Unicode normal form."""

    def __init__(self) -> None:
        self._by_last: dict[str, list[tuple[tuple[str, ...], Any]]] = {}

    def add(self, parts: Iterable[str], thing: Any) -> None:
        parts = tuple(parts)
        self._by_last.setdefault(folded(parts[-1]), []).append((parts, thing))

    def alike(self, parts: Sequence[str]) -> list[Any]:
        """The things with the last of ``parts`` that share most of those before it."""
        alike = [
            (their, tuple(map(folded, their)), thing)
            for their, thing in (self._by_last.get(folded(parts[-1]), ()) if parts else ())
        ]
        wanted = tuple(map(folded, parts))
        for length in range(len(parts), 0, -1):
            fit = [one for one in alike if one[1][-length:] == wanted[-length:]]
            if len(fit) > 1:  # two that differ by their case
                fit = [one for one in fit if one[0][-length:] == tuple(parts[-length:])] or fit
            if fit:
                return [thing for _, _, thing in fit]
        return []

    def find(self, parts: Sequence[str]) -> Any:
        """The thing that shares most of the last ``parts``; None if there is none, or more than one."""
        fit = self.alike(parts)
        return fit[0] if len(fit) == 1 else None

    def things(self) -> Iterator[Any]:
        """All that was added."""
        return (thing for same in self._by_last.values() for _, thing in same)


class Index:
    """Finds files by names that other tools wrote: absolute, with backslashes, in another case, or with folders of
    another machine."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.outside = 0  # files found that lie below none of the folders
        self._tails: Tails | None = None

    def find(self, name: str) -> Path | None:
        """The file of that name: below one of the folders as it says, else the only one with its last part."""
        plain = name.strip().replace("\\", "/")
        for folder in self.folders:
            if (path := file_at(folder, plain)) or (path := file_at(folder, name.strip())):
                self.outside += Path(plain).is_absolute() or ".." in plain.split("/")
                return path
        return self._all().find(name_parts(name))

    def alike(self, name: str) -> list[Path]:
        """The files with its last part, and with as many of its folders as one of them shares."""
        return self._all().alike(name_parts(name))

    def files(self) -> list[Path]:
        """All files below the folders."""
        return list(self._all().things())

    def _all(self) -> Tails:
        if self._tails is None:
            self._tails = Tails()
            each = (files_below(folder, Log()) for folder in dict.fromkeys(self.folders) if folder.is_dir())
            for path in dict.fromkeys(itertools.chain.from_iterable(each)):
                self._tails.add(path.parts, path)
        return self._tails


def sharing(paths: list[Path], parts: list[str]) -> list[Path]:
    """Those of ``paths`` whose folders agree with the most of ``parts``, from the last; the names are not compared."""
    for length in range(len(parts) - 1, 0, -1):
        if fit := [path for path in paths if list(path.parts[-length - 1 : -1]) == parts[-length - 1 : -1]]:
            return fit
    return paths


def name_parts(name: str) -> list[str]:
    """Folders and file of a name of any system: "C:\\set\\..\\a.jpg" -> ["set", "a.jpg"]."""
    parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return parts[1:] if parts and re.fullmatch(r"[A-Za-z]+:", parts[0]) else parts


def folded(name: str) -> str:
    """A key under which names are equal that differ in case or Unicode normal form alone."""
    return name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def is_built_in(path: str | Path) -> bool:
    """Whether a path is the name of a built-in set of images: digits, scenes, scenes:N, shapes, shapes:N."""
    name, _, number = str(path).partition(":")
    return name in BUILT_IN and not (name == "digits" and number)


def about_alike(classes: Iterable[str]) -> list[str]:
    """A note about names of classes that are the same but for case, spaces and Unicode form; none if there are none."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(classes):
        groups.setdefault(" ".join(folded(name).split()), []).append(f"'{printable(name[:80])}'")
    alike = [" = ".join(names[:6]) for names in groups.values() if len(names) > 1]
    more = f" and {len(alike) - 6:,} more" if len(alike) > 6 else ""
    return (
        [
            f"Names of classes differ only in case, spaces or Unicode form: {', '.join(alike[:6])}{more}; "
            "are they one class?"
        ]
        if alike
        else []
    )


def file_at(folder: Path, name: str) -> Path | None:
    """The file of a name, if there is one: below ``folder`` if it is relative."""
    try:
        path = folder / name
        return path if name and path.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return None


def _words(name: str) -> list[str]:
    return re.findall(r"t10k|[^\W\d_]+", name.casefold())


def _stem(name: str) -> str:
    """A file's name without its known endings: "train.csv.gz" -> "train"; "wiki.test.txt" -> "wiki.test"."""
    return re.sub(r"(\.[a-z]\w{0,6})(\.gz)?$", "", name, flags=re.IGNORECASE) if "." in name else name
