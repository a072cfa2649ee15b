"""Test and validation sets that agree with the training set: its classes, and labels to judge by."""

from __future__ import annotations

import difflib
import re

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted, plural
from sensorium.data.images.sets import Found, ImageSet, View, subset
from sensorium.errors import SensoriumError

_NUMBER = re.compile(r"-?\d+")


def agree(train: ImageSet, other: ImageSet, where: str) -> ImageSet:
    """``other`` with its labels numbered as in ``train``: by name, or by number if one side has only numbers."""
    if other.labels is None or not train.classes or other.classes == train.classes:
        return other
    if other.classes == ("-1",):  # how test sets with hidden labels are published
        return View(other, np.arange(len(other)), None, ())
    theirs = list(other.classes)
    if all(name.isdecimal() for name in theirs) and not any(name.isdecimal() for name in train.classes):
        theirs = [train.classes[int(n)] if int(n[:9]) < len(train.classes) else n for n in theirs]
    elif all(name.isdecimal() for name in train.classes) and not any(_NUMBER.fullmatch(name) for name in theirs):
        theirs = [str(i) for i in range(len(theirs))]
    number = {name: i for i, name in enumerate(train.classes)}
    used = set(np.unique(other.labels[other.labels >= 0]).tolist())
    unknown = [other.classes[i] for i, name in enumerate(theirs) if name not in number and i in used]
    if unknown:
        near = difflib.get_close_matches(unknown[0], train.classes, 1)
        hint = f" (is it '{near[0]}'?)" if near else ""
        raise SensoriumError(
            f"{printable(where)}: class '{unknown[0]}' is unknown to the training set{hint}, whose classes are "
            f"{', '.join(train.classes[:12])}{' ...' if len(train.classes) > 12 else ''}."
        )
    table = np.array([number.get(name, -1) for name in theirs] + [-1], np.int64)  # the last entry is what -1 indexes
    return View(other, np.arange(len(other)), table[other.labels], train.classes)


def of_known_classes(train: ImageSet, other: ImageSet, split: str, notes: list[str]) -> ImageSet:
    """``other`` without the images of classes that the training set beside it has not, if it has some of the others."""
    if other.labels is None or not train.classes or not set(other.classes) & set(train.classes):
        return other
    unknown = [i for i, name in enumerate(other.classes) if name not in train.classes]
    lost = np.isin(other.labels, unknown)
    if not lost.any():
        return other
    names = [other.classes[i] for i in unknown if (other.labels == i).any()]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
    notes.append(
        f"{counted(int(lost.sum()), f'{split} image')} {plural(int(lost.sum()), 'is')} left aside: the training set has no image of {listed} "
        f"({counted(len(names), 'class')})."
    )
    return subset(other, np.flatnonzero(~lost))


def judged(train: ImageSet, other: ImageSet, split: str, notes: list[str]) -> ImageSet:
    """``other`` without its images that have no label, as nothing can be judged by them; if none has, none by name."""
    if not train.classes or other.labels is None or (known := other.labels >= 0).all():
        return other
    if not known.any():
        return View(other, np.arange(len(other)), None, ())
    lost = int((~known).sum())
    notes.append(
        f"{counted(lost, f'{split} image')} {plural(lost, 'has')} no label and {plural(lost, 'is')} left aside: "
        "nothing can be judged by them."
    )
    return subset(other, np.flatnonzero(known))


def without_labels(found: Found) -> list[str]:
    """A sentence for each place whose name says that its training images have no label."""
    use = ": methods without labels learn from them, too" if found.sets["train"].classes else ""
    return [
        f"{counted(count, 'picture')} in '{printable(name)}' {plural(count, 'has')} no label{use}."
        for name, count in found.unlabeled.items()
        if count
    ]
