"""What is wrong with boxes: too small for a detector, outside their pictures, given twice, too many, of classes too rare, of
odd shapes, or missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sensorium.base.words import counted, plural
from sensorium.data.boxes.open import OpenedBoxes
from sensorium.data.boxes.prepare import RARE, SIZES, TINY, natural_size
from sensorium.data.boxes.sets import BoxSet
from sensorium.data.faults import Fault, share, some

TINY_SHARE = 0.01
RATIO = 10  # of the boxes of the most and the least frequent class
EMPTY = 0.2  # the least share of pictures without a box that is told
CROWD = 100  # detections of a picture that count
LONG, LONG_SHARE = 8.0, 0.01  # the longer side over the shorter one
WHOLE, WHOLE_SHARE = 0.95, 0.2  # the share of a picture's area
SAME, OTHER = 0.9, 0.95  # overlaps of two boxes of one object, of its class and of two
REPORTED = {  # reason of the reader: what it may come from
    "box outside the image": "are x, y, width and height taken for corners, or pixels for fractions? Otherwise correct or remove them.",
    "box cut to the image": "the part outside is cut off; check whether boxes and pictures were resized alike.",
    "box without width or height": "remove them, or draw them again.",
    "box not finite": "remove them, or draw them again.",
    "box that is given twice": "they are used once; remove the copies.",
    "box of an unknown class": "name their class in the list of classes, or remove them.",
}  # fmt: skip
_MOST_PAIRS = 300  # boxes of a picture that are compared with one another


def faults(opened: OpenedBoxes) -> list[Fault]:
    """The faults of all sets, the most serious first."""
    train = opened.train
    found = [*_reported(opened.counts), *_twice(train), *_classes(opened)]
    found += [
        one for one in (_tiny(train), _crowded(train), _long(train), _whole(train), _empty(train)) if one is not None
    ]
    return found


def _reported(counts: Mapping[str, int]) -> list[Fault]:
    """What the reader dropped or changed, with a way out."""
    found = []
    for reason, way in REPORTED.items():
        if n := counts.get(reason, 0):
            rest = reason.removeprefix("box ").removeprefix("that ")
            verb = "" if rest.startswith("is ") else f"{plural(n, 'is')} "
            words = rest.replace("is given", plural(n, "is") + " given")
            found.append(Fault(reason, n, f"{counted(n, 'box')} {verb}{words}: {way}"))
    return found


def _own(part: BoxSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes without crowd: float64 [M, 4], their labels, and the index of their picture."""
    picture = np.repeat(np.arange(len(part)), np.diff(part.starts))
    kept = ~part.crowd
    return part.boxes[kept].astype(np.float64), part.labels[kept], picture[kept]


def _tiny(train: BoxSet) -> Fault | None:
    """Boxes that are next to nothing at the size that training chooses."""
    boxes, _, picture = _own(train)
    if not len(boxes):
        return None
    size = natural_size(train)
    longer = train.sizes.max(axis=1)[picture]
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)) / longer
    tiny = sides * size < TINY
    count = int(tiny.sum())
    if count < TINY_SHARE * len(boxes):
        return None
    wanted = TINY / max(float(np.quantile(sides, 0.01)), 1e-9)
    larger = next((one for one in SIZES if one >= wanted), None)
    way = (
        f"--image-size {larger} shows nearly all of them"
        if larger
        else "cut the pictures into tiles, or leave these boxes out"
    )
    return Fault(
        "tiny boxes", count,
        f"{counted(count, 'training box')} ({share(count, len(boxes))}) {plural(count, 'is')} smaller than {TINY:.0f} pixels at {size} pixels, where "
        f"they are trained on by default, less than the finest stride of a detector: {way}.", _named(train, picture[tiny]),
    )  # fmt: skip


def _twice(train: BoxSet) -> list[Fault]:
    """Boxes that cover one another almost: of one class, or of two."""
    same, other = [], []
    for i in range(len(train)):
        rows = slice(int(train.starts[i]), int(train.starts[i + 1]))
        kept = ~train.crowd[rows]
        boxes, labels = train.boxes[rows][kept][:_MOST_PAIRS].astype(np.float64), train.labels[rows][kept][:_MOST_PAIRS]
        if len(boxes) < 2:
            continue
        overlap = np.triu(_overlap(boxes), 1)
        alike = labels[:, None] == labels
        same += [i] * int((alike & (overlap >= SAME)).sum())
        other += [i] * int((~alike & (overlap >= OTHER)).sum())
    found = []
    for where, name, what, way in (
        (other, "objects of two classes", "boxes of two classes at one place", "keep the right class of each"),
        (same, "objects with two boxes", "boxes of one class that overlap by 0.9 or more", "remove one of each"),
    ):
        if where:
            n = len(where)
            found.append(
                Fault(
                    name, n, f"There {plural(n, 'is')} {counted(n, 'pair')} of training {what}, as in {train.names[where[0]]}: {way}.",
                    _named(train, np.array(where)),
                )
            )  # fmt: skip
    return found


def _overlap(boxes: np.ndarray) -> np.ndarray:
    """IoU of boxes [N, 4] with each other, [N, N]."""
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return both / np.maximum(area[:, None] + area - both, 1e-9)


def _classes(opened: OpenedBoxes) -> list[Fault]:
    classes = opened.train.classes
    counts = np.bincount(_own(opened.train)[1], minlength=len(classes))
    found = []
    rare = [k for k in np.argsort(counts, kind="stable").tolist() if counts[k] < RARE]
    if rare:
        told = ", ".join(f"'{classes[k]}' {counts[k]:,}" for k in rare[:5]) + (", ..." if len(rare) > 5 else "")
        found.append(
            Fault(
                "rare classes", len(rare),
                f"{counted(len(rare), 'class')} {plural(len(rare), 'has')} fewer than {RARE} training boxes ({told}): annotate more, or leave "
                "the class out.", some([classes[k] for k in rare]),
            )
        )  # fmt: skip
    elif len(classes) > 1 and counts.max() >= RATIO * counts.min():
        low, high = int(counts.argmin()), int(counts.argmax())
        found.append(
            Fault(
                "imbalanced classes", round(counts[high] / counts[low]),
                f"'{classes[high]}' has {counts[high] / counts[low]:,.0f} times the training boxes of '{classes[low]}': AP is the mean over classes, so "
                "look at each class's; more pictures with the rare ones help most.", some([classes[low]]),
            )
        )  # fmt: skip
    if opened.test is not None:
        tested = np.bincount(_own(opened.test)[1], minlength=len(classes))
        absent = [name for name, n in zip(classes, tested.tolist(), strict=True) if not n]
        if absent and len(absent) < len(classes):
            found.append(
                Fault(
                    "classes without test boxes", len(absent),
                    f"{counted(len(absent), 'class')} {plural(len(absent), 'has')} no box in the test set, the first '{absent[0]}': no score says "
                    "how they are found; move pictures with them there.", some(absent),
                )
            )  # fmt: skip
    return found


def _crowded(train: BoxSet) -> Fault | None:
    each = np.bincount(_own(train)[2], minlength=len(train))
    many = np.flatnonzero(each > CROWD)
    if not len(many):
        return None
    return Fault(
        "crowded pictures", len(many),
        f"{counted(len(many), 'training picture')} {plural(len(many), 'has')} more than {CROWD} boxes, up to {each.max():,}: AP counts at most {CROWD} "
        "detections of a class in a picture; cut them into tiles.", _named(train, many),
    )  # fmt: skip


def _long(train: BoxSet) -> Fault | None:
    boxes, _, picture = _own(train)
    sides = boxes[:, 2:] - boxes[:, :2]
    odd = sides.max(axis=1, initial=0) > LONG * np.maximum(sides.min(axis=1, initial=np.inf), 1e-9)
    count = int(odd.sum())
    if not count or count < LONG_SHARE * len(boxes):
        return None
    return Fault(
        "long boxes", count,
        f"{counted(count, 'training box')} ({share(count, len(boxes))}) {plural(count, 'is')} more than {LONG:.0f} times as long as wide, as in "
        f"{train.names[picture[odd][0]]}: a small error of place halves their overlap; check them, or annotate in parts.", _named(train, picture[odd]),
    )  # fmt: skip


def _whole(train: BoxSet) -> Fault | None:
    boxes, _, picture = _own(train)
    area = np.prod(train.sizes, axis=1)[picture]
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) >= WHOLE * area
    count = int(whole.sum())
    if not count or count < WHOLE_SHARE * len(boxes):
        return None
    return Fault(
        "boxes of whole pictures", count,
        f"{counted(count, 'training box')} ({share(count, len(boxes))}) {plural(count, 'is')} as large as the whole picture: these are labels of pictures, "
        "which a classifier learns better.", _named(train, picture[whole]),
    )  # fmt: skip


def _empty(train: BoxSet) -> Fault | None:
    each = np.diff(train.starts)
    empty = np.flatnonzero(each == 0)
    if len(empty) < max(1, EMPTY * len(train)):
        return None
    return Fault(
        "pictures without boxes", len(empty),
        f"{counted(len(empty), 'training picture')} ({share(len(empty), len(train))}) {plural(len(empty), 'has')} no box: are they without objects, or not "
        "annotated yet? A detector learns to find nothing in them.", _named(train, empty),
    )  # fmt: skip


def _named(train: BoxSet, pictures: np.ndarray) -> tuple[str, ...]:
    """Names of the first pictures, each once."""
    names = train.names
    return some([names[int(i)] for i in dict.fromkeys(pictures.tolist())])
