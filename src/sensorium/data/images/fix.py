"""A list of the pictures worth training on: `sensorium data DIR --fix OUT`.

OUT/keep.csv (path, label, and split where the data have sets of their own) is read like any table of pictures; OUT/removed.csv
says of each other picture why it is not among them. Nothing of the data is changed. Left out are files that can't be read, of
equal training pictures all but the first, and training pictures that are also test or validation pictures; the doubtful
ones of :mod:`sensorium.data.images.quality` only if asked, since whether something can be recognized in them is for a person to say.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sensorium.base.files import disk_errors, write_text
from sensorium.base.reading import is_text, printable
from sensorium.base.words import counted
from sensorium.data.images.diagnose import Survey, measures_of, take_survey
from sensorium.data.images.duplicates import groups_of_equal
from sensorium.data.images.findings import DOUBTFUL
from sensorium.data.images.folders import Files
from sensorium.data.images.open import open_data
from sensorium.data.images.quality import judge
from sensorium.data.images.sets import EncodedImages, ImageSet, Opened, View, root
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError

LINKS = "pictures"
_CALLED = {"test": "test set", "val": "validation set"}
Place = tuple[str, int]  # the set, and the index in it
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fixed:
    """The files written; how many pictures are ``kept`` and, by reason, ``removed``; the folder of ``links``, if asked."""

    keep: Path
    reasons: Path
    kept: int
    removed: dict[str, int]
    links: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    def lines(self) -> list[str]:
        """What was written, in words."""
        why = ", ".join(f"{count:,} {reason}" for reason, count in self.removed.items())
        linked = [f"{self.links}: links to what is kept."] if self.links else []
        return [
            f"{self.keep}: {counted(self.kept, 'image')} kept; `sensorium data` and `--data` read it.",
            f"{self.reasons}: {counted(sum(self.removed.values()), 'image')} left out{f' ({why})' if why else ''}.",
            *linked,
        ]


class _Row(NamedTuple):
    path: str
    label: str
    split: str


def check_fix(out: str | Path, *data: str | Path | None, links: bool = False) -> Path:
    """``out``, if the lists may be written there. Raises SensoriumError, before any work."""
    place = check_place(out, *data, option="--fix", folder=True)
    if links and (place / LINKS).exists():
        raise SensoriumError(f"{printable(str(place / LINKS))} is there already; remove it, or give another --fix.")
    return place


def fix(
    path: str | Path,
    out: str | Path,
    *,
    test: str | Path | None = None,
    limit: int | None = None,
    quality: bool = False,
    links: bool = False,
    progress: Progress | None = None,
) -> Fixed:
    """Write the lists into the folder ``out``. ``quality`` leaves out doubtful pictures too, ``links`` makes a folder of links
    to what is kept, in folders of classes. Raises SensoriumError if the pictures are no files of their own."""
    place = check_fix(out, path, test, links=links)
    opened = open_data(path, test=test, limit=limit)
    sets = _sets(opened)
    for images in sets.values():
        _check_files(images, opened)
    total, surveys = sum(map(len, sets.values())), dict[str, Survey]()
    for split, images in sets.items():
        done = sum(len(sets[other]) for other in surveys)
        report = (lambda n, at=done: progress(at + n, total)) if progress else lambda n: None
        surveys[split] = take_survey(images, len(images), report)
    reasons = _reasons(sets, surveys)
    if quality:
        for where, why in _doubtful(surveys).items():
            reasons.setdefault(where, why)
    kept, removed, tally = _divided(sets, reasons)
    removed += [(skip.file, skip.reason) for skip in opened.skipped]
    tally["unreadable"] += len(opened.skipped)
    if not kept:
        raise SensoriumError(f"{printable(str(path))}: no picture would be kept.")
    header = ["path", *(["label"] if any(row.label for row in kept) else []), *(["split"] if len(sets) > 1 else [])]
    keep = _write(place / "keep.csv", header, ([row._asdict()[name] for name in header] for row in kept))
    told = _write(place / "removed.csv", ["path", "reason"], removed)
    linked = _link(place / LINKS, kept, several=len(sets) > 1) if links else None
    return Fixed(keep, told, len(kept), {kind: count for kind, count in tally.most_common() if count}, linked)


def _sets(opened: Opened) -> dict[str, ImageSet]:
    """The sets by split. Test pictures that were held out here go back to the others: whoever reads the list holds out anew."""
    sets = {split: images for split in ("train", "test", "val") if (images := getattr(opened, split)) is not None}
    train, test = opened.train, opened.test
    if isinstance(train, View) and isinstance(test, View) and train.base is test.base:
        indices = np.concatenate([train.indices, test.indices])
        order = np.argsort(indices, kind="stable")
        known = train.labels is not None and test.labels is not None
        labels = np.concatenate([train.labels, test.labels])[order] if known else None  # pyright: ignore[reportCallIssue, reportArgumentType]
        sets = {**sets, "train": View(train.base, indices[order], labels, train.classes)}
        del sets["test"]
    return sets


def _check_files(images: ImageSet, opened: Opened) -> None:
    base = images.base if isinstance(images, View) else images
    if not (isinstance(base, EncodedImages) and isinstance(base.source, Files)):
        raise SensoriumError(
            f"{opened.path}: its pictures are not files of their own ({opened.layout}), and --fix writes lists of files."
        )


def _row(images: ImageSet, index: int, split: str) -> _Row:
    base, at = root(images, index)
    assert isinstance(base, EncodedImages)
    assert isinstance(base.source, Files)
    number = -1 if images.labels is None else int(images.labels[index])
    return _Row(str(base.source.read(at).absolute()), images.classes[number] if number >= 0 else "", split)


def _reasons(sets: dict[str, ImageSet], surveys: dict[str, Survey]) -> dict[Place, tuple[str, str]]:
    """(kind of reason, reason) of what is left out in any case."""
    reasons: dict[Place, tuple[str, str]] = {}
    for split, one in surveys.items():
        unread = np.setdiff1d(np.arange(len(sets[split])), one.indices)
        for index, skip in zip(unread, one.broken, strict=True):
            reasons[split, int(index)] = "unreadable", skip.reason

    def name(where: Place) -> str:
        return sets[where[0]].names[where[1]]

    def label(where: Place) -> int:
        labels = sets[where[0]].labels
        return -1 if labels is None else int(labels[where[1]])

    places = _places(surveys)
    for group in groups_of_equal(np.concatenate([one.digests for one in surveys.values()])):
        equal = [places[int(k)] for k in group]
        trained, others = ([one for one in equal if (one[0] == "train") == mine] for mine in (True, False))
        for one in trained if others else ():
            reasons[one] = "also in test or validation", f"also in the {_CALLED[others[0][0]]}: {name(others[0])}"
        for one in () if others else trained[1:]:
            first = trained[0]
            reasons[one] = (
                "copies",
                f"copy of {name(first)}" + (", which has another label" if label(one) != label(first) else ""),
            )
    return reasons


def _doubtful(surveys: dict[str, Survey]) -> dict[Place, tuple[str, str]]:
    """The same for doubtful and blank pictures, but not for what is usual in the data."""
    measures, spared = measures_of(surveys.values())
    places = _places(surveys)
    found = {
        places[int(k)]: ("doubtful", DOUBTFUL[kind][0])
        for kind, told in judge(measures, spared).told.items()
        for k in told
    }
    blank = np.flatnonzero(np.concatenate([one.flat for one in surveys.values()]))
    return {**{places[int(k)]: ("doubtful", "one color only") for k in blank}, **found}


def _places(surveys: dict[str, Survey]) -> list[Place]:
    return [(split, int(index)) for split, one in surveys.items() for index in one.indices]


def _divided(
    sets: dict[str, ImageSet], reasons: dict[Place, tuple[str, str]]
) -> tuple[list[_Row], list[tuple[str, str]], Counter[str]]:
    """(what is kept, path and reason of the rest, how many by kind of reason)."""
    kept: list[_Row] = []
    removed: list[tuple[str, str]] = []
    tally = Counter[str]()
    for split, images in sets.items():
        for index in range(len(images)):
            row = _row(images, index, split)
            reason = reasons.get((split, index))
            if reason is None and (not is_text(row.path) or row.path != row.path.strip() or not row.path.isprintable()):
                reason = (
                    "of a name that no table can hold",
                    "rename it: its name has bytes or characters that a table can't hold",
                )
            if reason is None:
                kept.append(row)
            else:
                removed.append((row.path, reason[1]))
                tally[reason[0]] += 1
    return kept, removed, tally


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return write_text(path, text.getvalue())


def _link(folder: Path, rows: Sequence[_Row], *, several: bool) -> Path:
    """Links to the pictures: folder / split, if there are several / class / name, with a number where names are equal."""
    taken = set[Path]()
    try:
        with disk_errors(folder):
            for row in rows:
                source = Path(row.path)
                home = folder / row.split if several else folder
                home = home / _folder_name(row.label) if row.label else home
                place, number = home / source.name, 2
                while place in taken:
                    place, number = home / f"{source.stem}-{number}{source.suffix}", number + 1
                taken.add(place)
                home.mkdir(parents=True, exist_ok=True)
                place.symlink_to(source)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise
    return folder


def _folder_name(label: str) -> str:
    """A class as the name of a folder that is read: no separators, and not hidden."""
    name = "".join("_" if c in '/\\:*?"<>|' else c for c in label)
    return f"_{name}" if name.startswith((".", "~")) else name
