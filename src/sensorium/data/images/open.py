"""open_data: detect the layout of a path and open its images.

The layouts are those of :mod:`folders`, :mod:`arrays` (.npz, IDX), :mod:`tables` (CSV, Parquet) and
:mod:`shards` (WebDataset tars), and three that need no file: ``digits``, ``scenes`` and ``shapes``. If a labeled set has no test
images, a fifth of it is held out, always the same.
"""

from __future__ import annotations

import difflib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.images.agree import agree, judged, of_known_classes, without_labels
from sensorium.data.images.arrays import idx_pairs, is_idx_images, join, read_idx, read_npz
from sensorium.data.images.endings import EXTENSIONS
from sensorium.data.images.folders import read_digits, read_folder, unread
from sensorium.data.images.json_table import ENDINGS
from sensorium.data.images.sets import ArrayImages, Found, ImageSet, Opened, View, measure, subset
from sensorium.data.images.shards import read_tars
from sensorium.data.images.tables import read_csv, read_parquet
from sensorium.data.images.values import Scale
from sensorium.data.log import Log, Skipped
from sensorium.data.names import (
    BUILT_IN,
    about_alike,
    divide,
    is_built_in,
    is_unlabeled,
    list_folder,
    split_folders,
    split_of,
)
from sensorium.errors import NothingOfItsKind, SensoriumError

HELD_OUT = 0.2
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *ENDINGS)
_LOOKED_FOR = (
    "a folder of images (flat or one folder per class), .npz, IDX (.gz), .csv, .jsonl or .parquet of paths and labels, "
    ".tar shards, or the names digits, scenes and shapes"
)


def open_data(
    path: str | Path, *, test: str | Path | None = None, limit: int | None = None, scale: Scale | None = None
) -> Opened:
    """Find the layout of ``path`` and open its images.

    ``test`` opens a second path as the test set; its classes are matched by name. ``limit`` keeps at most that many
    images of each set, with the classes in proportion. ``scale``: of 16-bit and float images, that of a run; by default
    it is measured. Images are decoded only if a reader needs it: broken images
    are found by :func:`sensorium.data.images.cache.cache` and :func:`sensorium.data.images.diagnose.diagnose`.
    Raises SensoriumError for a user's error: a wrong path, an unknown layout, a damaged file.
    """
    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {counted(limit, 'image')} is too few; must be at least 1.")
    found = _read(path)
    if "train" not in found.sets:
        raise SensoriumError(f"{printable(str(path))}: no training images, only {', '.join(found.sets)}.")
    train = found.sets["train"]
    notes = [*found.notes, *without_labels(found)]
    sets = {
        split: agree(train, of_known_classes(train, images, split, notes), f"{path}: {split}")
        for split, images in found.sets.items()
        if split != "train"
    }
    if test is not None:
        second = _read(test)
        if "test" in sets:
            notes.append("The test set given replaces the one found beside the training set.")
        sets["test"] = agree(train, second.sets.get("test") or second.sets["train"], str(test))
        notes += second.notes
        found.skipped += second.skipped
    sets = {split: judged(train, images, split, notes) for split, images in sets.items()}
    notes += _skips(found.skipped)
    notes += about_alike(train.classes)
    scale, scaled = measure([train, *sets.values()], scale)
    notes += filter(None, [scaled])
    opened = Opened(
        printable(str(path)), found.layout, train, sets.get("test"), sets.get("val"), tuple(found.skipped), scale=scale
    )
    opened = _with_test(opened, notes, given=test is not None)
    if len(train.classes) == 1:
        notes.append(f"There is one class only, '{train.classes[0]}': nothing to classify.")
    if limit is not None:
        cut = {
            split: _limited(images, limit) for split in ("train", "test", "val") if (images := getattr(opened, split))
        }
        opened = replace(opened, **cut)
    return replace(opened, notes=tuple(dict.fromkeys(notes)))


def stratified_order(labels: np.ndarray | None, count: int, seed: int = 0) -> np.ndarray:
    """A random order of 0..count-1 of which every prefix has the classes in proportion. int64 [count]."""
    shuffled = np.random.default_rng(seed).permutation(count)
    if labels is None:
        return shuffled
    place = np.empty(count)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def hold_out(images: ImageSet, fraction: float = HELD_OUT, seed: int = 0) -> tuple[View, View | None]:
    """Split a labeled set in (kept, held out), class by class; a class of one image keeps it, unlabeled ones stay.

    Held out is None if no class has two images.
    """
    labels = images.labels
    assert labels is not None
    held = []
    shuffled = np.random.default_rng(seed).permutation(len(images))
    for label in range(len(images.classes)):
        members = shuffled[labels[shuffled] == label]
        if len(members) > 1:
            held.append(members[: max(1, round(fraction * len(members)))])
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    kept = np.setdiff1d(np.arange(len(images)), out)
    return subset(images, kept), subset(images, out) if len(out) else None


def _read(path: str | Path) -> Found:
    """One path, any layout. Errors of a damaged file become one line that names it."""
    text = str(path)
    if is_built_in(text):
        return _built_in(text)
    place = Path(path).expanduser()
    where = printable(text)
    try:
        exists = place.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise SensoriumError(f"{where}: no such file or folder{_nearest(place)}")
    try:
        return _read_folder(place) if place.is_dir() else _read_file(place)
    except SensoriumError:
        raise
    except PermissionError:
        raise SensoriumError(f"{where}: no permission to read it.") from None
    except (OSError, ValueError, EOFError, RuntimeError, KeyError, SyntaxError, struct.error, zlib.error) as error:
        raise SensoriumError(
            f"{where}: damaged or not of the type in its name ({_brief(error)}); fetch the file again."
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError, MemoryError, TypeError) as error:
        raise SensoriumError(
            f"{where}: damaged or not of the type in its name ({_brief(error)}); fetch the file again."
        ) from None


def _read_folder(folder: Path) -> Found:
    """Data files in a folder, by their kind; else images below it."""
    files = [Path(e.path) for e in list_folder(folder) if e.is_file()]

    def having(*suffixes: str) -> list[Path]:
        return [f for f in files if f.name.lower().endswith(suffixes)]

    if pairs := idx_pairs(folder):
        return read_idx(pairs)
    if tars := having(".tar"):
        return read_tars(divide(tars, folder))
    inner = folder / "data"
    parquets = having(".parquet") or (sorted(inner.glob("*.parquet")) if inner.is_dir() else [])
    arrays, more, rest = _by_split(having(".npz"), folder)
    tables, further, others = _by_split(having(*_TABLES), folder)
    pictures = any(f.suffix.lower() in EXTENSIONS for f in files)
    beside = not pictures and not split_folders(folder)[0]
    failed: list[SensoriumError] = []
    readers = (
        (parquets, NothingOfItsKind, lambda: read_parquet(divide(parquets, folder))),
        (arrays, NothingOfItsKind, lambda: _told(_with(_several(arrays, read_npz), more), rest)),
        (tables if beside else {}, SensoriumError, lambda: _told(read_csv(_beside(tables, further)), others)),
    )
    for given, passed, read in readers:
        try:
            if given:
                return read()
        except passed as error:
            failed.append(error)
    try:
        found = read_folder(folder)
    except SensoriumError:
        if failed:
            raise failed[0] from None
        raise
    found.notes += [f"{told} The images are read without it." for told in failed]
    if not any(images.classes for images in found.sets.values()):
        tried = {*parquets, *(tables.values() if beside else ())}
        found.notes += unread([table for table in found.tables if table not in tried], (*_TABLES, ".parquet"))
    return found


def _read_file(path: Path) -> Found:
    name = path.name.lower()
    where = printable(str(path))
    if path.is_file() and path.stat().st_size == 0:
        raise SensoriumError(f"{where}: zero bytes; fetch the file again.")
    if name.endswith(".npz"):
        return read_npz(path)
    if is_idx_images(path.name):
        return read_idx({"train": path})
    if name.endswith(_TABLES):
        return read_csv({"train": path})
    if name.endswith(".parquet"):
        return read_parquet({"train": [path]})
    if name.endswith(".tar"):
        return read_tars({"train": [path]})
    if name.endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")):
        raise SensoriumError(f"{where}: a compressed tar cannot be read at offsets; uncompress it to .tar first.")
    if path.suffix.lower() in EXTENSIONS:
        raise SensoriumError(f"{where}: one image; give the folder that holds the images.")
    if "labels" in name and ("idx" in name or name.endswith("ubyte")):
        raise SensoriumError(f"{where}: only labels; give the images file, or the folder of both.")
    if name.endswith((".zip", ".rar", ".7z")):
        raise NothingOfItsKind(f"{where}: an archive; unpack it and give the folder.")
    raise NothingOfItsKind(f"{where}: a file of unknown type. Looked for {_LOOKED_FOR}.")


def _built_in(text: str) -> Found:
    """The digits of scikit-learn, and generated sets: scenes, and shapes, which are scenes without clutter."""
    name, colon, number = text.partition(":")
    same = [f"{text} is the built-in set; for the folder of that name write ./{text}."] if Path(text).exists() else []
    if name == "digits":
        return replace(read_digits(), notes=same)
    digits = number.replace("_", "")
    if colon and (not digits.isdecimal() or not 1 <= int(digits[:12]) <= 100_000_000):
        raise SensoriumError(f"{printable(text)}: not a number of {name}; write {name}:20000, for example.")
    count = int(digits[:12]) if colon else 10_000
    from sensorium.data.scenes.scenes import Scenes

    cluttered = name == "scenes"
    held = min(2_000, max(1, count // 5))
    train, test = (Scenes(n, seed, cluttered=cluttered) for seed, n in enumerate((count, held)))
    return Found(name, {"train": train, "test": test}, notes=same)


def _by_split(files: list[Path], folder: Path) -> tuple[dict[str, Path], list[Path], list[str]]:
    """(one file for each split, those of training images without labels, sentences about the others) by their names; a
    single file of another name is the training set, and none of several is."""
    chosen: dict[str, Path] = {}
    left: list[Path] = []
    bare = [file for file in files if is_unlabeled(file.name)]
    if not files or len(bare) == len(files) > 1:
        return {}, [], []
    if len(bare) < len(files):
        files = [file for file in files if file not in bare]
    else:
        bare = []
    for split, group in divide(files, folder).items():
        named = [file for file in group if split_of(file.name) == split]
        if split == "train" and not named and len(group) > 1:
            return {}, [], []
        chosen[split] = (named or group)[0]
        left += [file for file in group if file != chosen[split]]
    listed = ", ".join(printable(file.name) for file in left[:8]) + (" ..." if len(left) > 8 else "")
    return chosen, bare, [f"Beside {printable(chosen['train'].name)}, not read: {listed}."] if left else []


def _beside(tables: dict[str, Path], further: list[Path]) -> dict[str, list[Path]]:
    """Tables by split, with those of training images without labels."""
    return {split: [path, *(further if split == "train" else ())] for split, path in tables.items()}


def _with(found: Found, files: list[Path]) -> Found:
    """``found`` with the images of arrays without labels."""
    for file in files:
        images = read_npz(file).sets["train"]
        assert isinstance(images, ArrayImages)
        join(found, images, file.name, printable(str(file)))
    return found


def _told(found: Found, notes: list[str]) -> Found:
    found.notes += notes
    return found


def _several(files: dict[str, Path], read: Callable[[Path], Found]) -> Found:
    """One set per file; a single file may contain splits."""
    parts = {split: read(path) for split, path in files.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    sets = {split: part.sets["train"] for split, part in parts.items()}
    return Found(
        parts["train"].layout,
        sets,
        [skip for part in parts.values() for skip in part.skipped],
        [note for part in parts.values() for note in part.notes],
    )


def _with_test(opened: Opened, notes: list[str], *, given: bool) -> Opened:
    """Choose test images: the test set, else the validation set, else a fifth of the training set."""
    train, test, val = opened.train, opened.test, opened.val
    labelled = train.labels is not None
    if test is not None and labelled and test.labels is None:
        if given:
            raise SensoriumError("test: the test set has no labels, the training set has; give a labeled test set.")
        notes.append(
            f"The test set has no labels, so it can't be used for evaluation: its {counted(len(test), 'image')} {plural(len(test), 'is')} ignored."
        )
        test = None
    if test is None and val is not None and (val.labels is not None or not labelled):
        notes.append("There is no test set; the validation set is used as one.")
        return replace(opened, test=val, val=None)
    if test is None and labelled:
        kept, held = hold_out(train)
        if held is not None:
            notes.append(
                f"There is no test set; {counted(len(held), 'image')}, a fifth of each class, {plural(len(held), 'is')} held out as one."
            )
            return replace(opened, train=kept, test=held)
        notes.append("There is no test set, and no class has enough images to hold one out.")
    return replace(opened, test=test)


def _skips(skipped: list[Skipped]) -> list[str]:
    """Sentences about skipped entries, counted by reason."""
    log = Log()
    for skip in skipped:
        reason, _, detail = skip.reason.partition(": ")
        log.skip(skip.file, reason, detail)
    return log.sentences()


def _limited(images: ImageSet, limit: int) -> ImageSet:
    if len(images) <= limit:
        return images
    return subset(images, np.sort(stratified_order(images.labels, len(images))[:limit]))


def _nearest(place: Path) -> str:
    """ "; did you mean ...?" for a missing path: the name most similar to its first missing part."""
    missing = place
    try:
        while not missing.parent.exists() and missing.parent != missing:
            missing = missing.parent
        names = [entry.name for entry in list_folder(missing.parent)] if missing.parent.is_dir() else []
    except (OSError, ValueError, SensoriumError):
        names = []
    lower = {name.casefold(): name for name in [*names, *BUILT_IN]}
    near = difflib.get_close_matches(missing.name.casefold(), lower, 1, 0.6)
    if not near:
        return f". Looked for {_LOOKED_FOR}."
    name = lower[near[0]]
    return f"; did you mean {printable(str(missing.with_name(name)) if name in names else name)}?"


def _brief(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:120] or type(error).__name__
