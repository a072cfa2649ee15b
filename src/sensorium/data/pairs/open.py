"""Images with captions: pairs from a path, decoded on demand.

open_pairs reads WebDataset tars (KEY.png or .jpg beside KEY.txt, or KEY.json with a "caption"), a folder with a
captions file (.csv, .tsv, .jsonl or .txt of file and caption, or .json as of COCO; paths relative to it, or found in
the folders beside it), KEY.txt beside KEY.jpg, and Parquet (paths or image bytes, and a caption); several files, or folders called train, val
and test, are splits by name. A "caption" may be a list, or several columns with numbers: its image then gives several
pairs. Without a test set the validation set is used, or a tenth of the pairs is held out, which share no image or
caption with the rest. Broken entries are skipped and counted: captions missing or not UTF-8 when a path is opened,
images when they are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.images.decode import BadImage
from sensorium.data.images.sets import Digest, EncodedImages, Source, measure
from sensorium.data.images.tables import first_skipped
from sensorium.data.images.values import Scale
from sensorium.data.log import Log, Skipped
from sensorium.data.names import divide, list_folder, litter
from sensorium.data.pairs.files import KINDS, OF_ANOTHER_KIND, read_tables
from sensorium.data.pairs.gathered import Gathered
from sensorium.errors import NothingOfItsKind, SensoriumError

HELD_OUT = 0.1
_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip", ".rar", ".7z")
_LOOKED_FOR = (
    "tars of KEY.png or .jpg with KEY.txt or .json, a folder with a .csv, .tsv or .jsonl of file and caption, "
    "a .json of captions as of COCO, .txt files beside images of their names, or .parquet"
)


class Pairs(EncodedImages):
    """Map-style: ``{"image": uint8 [3, H, W], "text": str}``; ``texts`` and ``names`` are known without decoding."""

    texts: Sequence[str]

    def __init__(self, source: Source, names: Sequence[str], texts: Sequence[str], scale: Scale | None = None) -> None:
        super().__init__(source, names, scale=scale)
        self.texts = texts

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises :class:`BadImage` for an image that cannot be decoded."""
        sample = super().__getitem__(index)
        del sample["label"]
        return sample

    def readable(self, skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
        """The samples in order; an image that cannot be decoded is added to ``skipped`` instead."""
        for index in range(len(self)):
            try:
                sample = self[index]
            except BadImage as bad:
                skipped.append(Skipped(bad.name, bad.reason))
            else:
                yield sample

    def subset(self, indices: np.ndarray) -> Pairs:
        """The pairs at ``indices`` (int [n]), in that order."""
        rows = np.asarray(indices, np.int64)
        names, texts = ([str(of[int(i)]) for i in rows] for of in (self.names, self.texts))
        return Pairs(_Some(self.source, rows), names, texts, self.scale)

    def without(self, skipped: Iterable[Skipped]) -> Pairs:
        """The pairs whose images are not among ``skipped``: those that ``cache`` kept, in its order."""
        lost = {one.file for one in skipped}
        return self.subset(np.array([i for i, name in enumerate(self.names) if name not in lost], np.int64))

    def groups(self) -> np.ndarray:
        """Groups of pairs: int64 [N], equal if they share an image or a caption, directly or through other pairs."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        n = len(self)
        ends = [np.unique(np.array(list(of), dtype=object), return_inverse=True)[1] for of in (self.names, self.texts)]
        graph = coo_matrix((np.ones(n, np.int8), (ends[0], ends[1] + n)), shape=(2 * n, 2 * n))
        parts = connected_components(graph, directed=False)[1][ends[0]]
        first = {part: number for number, part in enumerate(dict.fromkeys(parts.tolist()))}
        return np.array([first[part] for part in parts.tolist()], np.int64)


@dataclass(frozen=True)
class OpenedPairs:
    """The result of :func:`open_pairs`. ``notes`` are sentences, including the count of skipped entries;
    ``scale``: of 16-bit and float images, None if there are none."""

    path: str
    layout: str
    train: Pairs
    test: Pairs | None = None
    val: Pairs | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    scale: Scale | None = None


def open_pairs(
    path: str | Path, *, test: str | Path | None = None, limit: int | None = None, scale: Scale | None = None
) -> OpenedPairs:
    """Find the layout of ``path`` and open its pairs; ``test`` opens a second path as the test set.

    ``limit`` keeps at most that many pairs of each set, the first ones. ``scale``: of 16-bit and float images, that of
    a run; by default it is measured. Raises SensoriumError for a user's error.
    """
    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {counted(limit, 'pair')} is too few; must be at least 1.")
    log = Log()
    layout, sets = read(Path(path).expanduser(), log)
    if test is not None:
        second = read(Path(test).expanduser(), log)[1]
        if "test" in sets:
            log.notes.append("The test set given replaces the one found beside the training set.")
        sets["test"] = second.get("test") or second["train"]
    notes = log.notes
    scale, scaled = measure(sets.values(), scale)
    notes += filter(None, [scaled])
    if "test" not in sets and "val" in sets:
        sets["test"] = sets.pop("val")
        notes.append("There is no test set; the validation set is used as one.")
    if "test" not in sets:
        kept, held = _hold_out(sets["train"])
        if held is None:
            notes.append("No test set was given, and all pairs share images or captions: nothing is held out.")
        else:
            sets |= {"train": kept, "test": held}
            notes.append(
                f"No test set was given: {len(held):,} of {counted(len(kept) + len(held), 'pair')} {plural(len(held), 'is')} held out."
            )
    notes += log.sentences()
    if limit is not None:
        sets = {split: pairs.subset(np.arange(min(limit, len(pairs)))) for split, pairs in sets.items()}
    found = printable(str(path))
    return OpenedPairs(
        found,
        layout,
        sets["train"],
        sets.get("test"),
        sets.get("val"),
        tuple(log.skipped),
        tuple(dict.fromkeys(notes)),
        scale,
    )


def _hold_out(pairs: Pairs, seed: int = 0) -> tuple[Pairs, Pairs | None]:
    groups = pairs.groups()
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    left, chosen = max(1, round(HELD_OUT * len(pairs))), []
    for group in order.tolist():
        if sizes[group] <= left:
            chosen.append(group)
            left -= sizes[group]
    held = np.isin(groups, chosen)
    if not held.any() or held.all():
        return pairs, None
    return pairs.subset(np.flatnonzero(~held)), pairs.subset(np.flatnonzero(held))


def read(place: Path, log: Log) -> tuple[str, dict[str, Pairs]]:
    """(layout, pairs by split) of a path: of its files, else of those in the folders in it. Raises SensoriumError."""
    where = printable(str(place))
    try:
        exists = place.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise SensoriumError(f"there is nothing at '{where}'. Give {_LOOKED_FOR}.")
    root = place if place.is_dir() else place.parent
    files = [Path(e.path) for e in list_folder(place) if e.is_file()] if place.is_dir() else [place]
    errors = []
    for found in (files, _in_folders(place) if place.is_dir() else []):
        for layout, fits, gather in KINDS:
            chosen, gathered = [file for file in found if fits(file)], Gathered(where, log)
            if files == [place] and place.suffix.casefold() in (".txt", ".token"):
                chosen = files if gather is read_tables else []
            try:
                if chosen:
                    gather(divide(chosen, root), gathered)
            except SensoriumError as error:
                errors.append(error)
            if gathered.rows:
                rest = [printable(f.name) for f in found if f not in chosen and any(fit(f) for _, fit, _ in KINDS)]
                if rest:
                    log.notes.append(f"Not read, as {printable(chosen[0].name)} is: {', '.join(rest[:4])}.")
                return layout, {split: Pairs(*part) for split, part in gathered.sets().items()}
    if errors:
        raise errors[0]
    packed = [file.name for file in files if file.name.casefold().endswith(_PACKED)]
    hint = f" {printable(packed[0])} must be unpacked first (a tar to a plain .tar)." if packed else ""
    first = first_skipped(log).removeprefix("; ")
    told = f" {first[0].upper()}{first[1:]}." if first else ""
    damaged = set(log.counts) - {OF_ANOTHER_KIND}
    raise (SensoriumError if damaged else NothingOfItsKind)(
        f"'{where}' has no pictures with captions. Looked for {_LOOKED_FOR}.{told}{hint}"
    )


def _in_folders(place: Path) -> list[Path]:
    """Files of the folders in a folder that a reader knows."""
    found = []
    for folder in list_folder(place):
        if folder.is_dir():
            try:
                with os.scandir(folder.path) as entries:
                    inner = [Path(e.path) for e in entries if not litter(e.name) and not e.is_dir()]
            except OSError:
                continue
            found += sorted(file for file in inner if any(fits(file) for _, fits, _ in KINDS))
    return found


class _Some:
    """A selection of another source's images, in a given order."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def read(self, index: int) -> bytes | Path:
        return self.source.read(int(self.rows[index]))

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        self.source.sign(digest, self.rows[indices])
