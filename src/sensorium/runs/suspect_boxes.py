"""Which training boxes are doubtful: what a comparison's best detector finds on the training pictures, against their boxes.

The detections are compared with the annotations (:mod:`sensorium.metrics.box_doubts`): boxes that are missing, of another class,
beside their object, or of nothing that the detector finds. It has learned from the boxes that it judges, wrong ones too, so that it
doubts too few rather than too many, the fewer the longer it was trained. One detector judges, the best by the score that decides: where
two are asked for agreement, the weaker one decides what is found. At most as long as half the judging may take, pictures are looked at
in a random order.

OUT/suspects.csv    rank, image (its number among the training pictures), picture, kind, given and likely class, doubt (0 to 1),
                    ObjectLab's score of the kind, the annotated box (of a missing one the detected), and the detected one, in pixels
"""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.abilities import Detector
from sensorium.base.files import write_text
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.data.boxes.cache import Boxed
from sensorium.data.images.decode import BadImage
from sensorium.judge.boxes import detections
from sensorium.metrics.box_doubts import KINDS, Doubt, doubts, usual
from sensorium.metrics.object_labels import NOBODY, Compared, compared
from sensorium.pictures.boxes import crop_with
from sensorium.pictures.images import save_picture
from sensorium.recipe.boxes import sight_of
from sensorium.runs.results import BoxSuspect, BoxSuspects
from sensorium.runs.run import Run

FILE, FOLDER = "suspects.csv", "suspects"
LISTED, CLEAR = 0.5, 0.8  # doubts from which on a box is listed, and counted as clear
SHOWN = 24  # crops of the report
CHUNK = 64  # pictures between two looks at the clock
IN_CROWD = 0.5  # the share of a detection within a crowd box from which on it is of that crowd
COLUMNS = (
    "rank", "image", "picture", "kind", "given", "likely", "doubt", "objectlab", "left", "top", "right", "bottom",
    "found_left", "found_top", "found_right", "found_bottom",
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class _Looked:
    """Pictures that were looked at: their indices among the training pictures, and what was compared of each."""

    where: np.ndarray
    pictures: list[Compared]


def keep_box_suspects(run: Run, ready: Any, folder: Path, seconds: float | None, say: Say) -> BoxSuspects | None:
    """Write ``folder/suspects.csv`` and crops; None if the run is no detector, or finds too little to judge boxes by.

    seconds: of looking at training pictures; None for as long as it takes.
    """
    if not isinstance(ready.train, Boxed) or not isinstance(run.method, Detector):
        return None
    say("which boxes are doubtful")
    looked = _look(run, ready.train, seconds)
    known = usual(looked.pictures, len(ready.train.classes))
    if known is None:
        return None
    found = [one for one in doubts(looked.pictures, known) if one.doubt >= LISTED]
    write_text(folder / FILE, _table(found, looked, ready.train))
    counts = Counter(one.kind for one in found)
    return BoxSuspects(
        FILE,
        run.folder.name,
        {kind: counts[kind] for kind in KINDS},
        sum(one.doubt >= CLEAR for one in found),
        sum(len(one.given) for one in looked.pictures),
        len(looked.where),
        len(ready.train),
        _shown(found, looked, ready.train, folder),
    )


def _look(run: Run, train: Boxed, seconds: float | None) -> _Looked:
    order = np.random.default_rng(0).permutation(len(train))
    sight, begun = sight_of(run.method, run.situation), time.monotonic()
    where: list[int] = []
    pictures = []
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        seen, truth, indices = detections(run.method, train.some(chosen), sight, device=device_name())
        pictures += [compare(one, true) for one, true in zip(seen, truth, strict=True)]
        where += chosen[indices].tolist()
        if seconds is not None and time.monotonic() - begun > seconds:
            break
    return _Looked(np.array(where, np.int64), pictures)


def compare(seen: dict[str, Any], truth: dict[str, Any]) -> Compared:
    """Detections and annotations of one picture, without crowd boxes and what is found within them."""
    boxes, given, crowd = (truth[name].numpy() for name in ("boxes", "labels", "crowd"))
    found = {name: seen[name].numpy() for name in ("boxes", "labels", "scores")}
    if crowd.any():
        mine, theirs = found["boxes"][:, None], boxes[crowd][None]
        sides = np.minimum(mine[..., 2:], theirs[..., 2:]) - np.maximum(mine[..., :2], theirs[..., :2])
        area = np.maximum(np.prod(mine[..., 2:] - mine[..., :2], axis=-1), 1e-9)
        free = (np.prod(np.maximum(sides, 0), axis=-1) / area).max(axis=1, initial=0.0) <= IN_CROWD
        found = {name: value[free] for name, value in found.items()}
    return compared(boxes[~crowd], given[~crowd], found["boxes"], found["labels"], found["scores"])


def _boxes(one: Doubt, picture: Compared) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The annotated and the detected box of a doubt, None for none."""
    given = None if one.box == NOBODY else picture.boxes[one.box]
    return given, None if one.detection == NOBODY else picture.found_boxes[one.detection]


def _classes(one: Doubt, picture: Compared) -> tuple[int | None, int | None]:
    """The annotated class and the likely one, None for none."""
    given = None if one.box == NOBODY else int(picture.given[one.box])
    return given, None if one.detection == NOBODY else int(picture.found[one.detection])


def _table(found: Sequence[Doubt], looked: _Looked, train: Boxed) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    names = train.truth.names
    for rank, one in enumerate(found, 1):
        picture, index = looked.pictures[one.picture], int(looked.where[one.picture])
        named = ["" if k is None else train.classes[k] for k in _classes(one, picture)]
        given, seen = _boxes(one, picture)
        box = seen if given is None else given
        edges = [f"{edge:.1f}" for edge in (() if box is None else box)]
        edges += [""] * 4 if seen is None else [f"{edge:.1f}" for edge in seen]
        score = "" if one.score is None else f"{one.score:.4f}"
        writer.writerow([rank, index, printable(names[index]), one.kind, *named, f"{one.doubt:.4f}", score, *edges])
    return table.getvalue()


def _shown(found: Sequence[Doubt], looked: _Looked, train: Boxed, folder: Path) -> tuple[BoxSuspect, ...]:
    """The most doubtful with their crops: as many of each kind as there are, so that none hides the others."""
    for old in (folder / FOLDER).glob("[0-9][0-9][0-9].jpg"):
        old.unlink()
    first: list[Doubt] = []
    each = {kind: [one for one in found if one.kind == kind] for kind in KINDS}
    while len(first) < min(SHOWN, len(found)):
        first += [some.pop(0) for some in each.values() if some]
    shown = []
    for one in sorted(first[:SHOWN], key=lambda one: KINDS.index(one.kind)):
        picture, index = looked.pictures[one.picture], int(looked.where[one.picture])
        try:
            image = train.truth[index]["image"]
        except BadImage:
            continue
        file = f"{FOLDER}/{len(shown) + 1:03}.jpg"
        edges = [None if box is None else box.tolist() for box in _boxes(one, picture)]
        crop = crop_with(Image.fromarray(image.permute(1, 2, 0).numpy()), edges[0], edges[1])
        save_picture(crop, folder / file)
        shown.append(BoxSuspect(index, one.kind, *_classes(one, picture), one.doubt, file))
    return tuple(shown)
