"""Classifying pictures by names of classes that are given now, with a system trained on pictures and captions.

The picture gets the class whose description is most similar to it (:mod:`sensorium.judge.zero_shot`); probabilities are
the softmax over the classes of s times the similarity, s being the scale that the system was trained with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.base.precision import device_name
from sensorium.base.reading import lines, printable
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.data.images.cache import Pixels
from sensorium.data.images.decode import BadImage, square
from sensorium.data.images.gathered import pictures_at
from sensorium.data.images.given import given, is_one
from sensorium.data.images.sets import picture
from sensorium.data.images.values import Scale
from sensorium.errors import SensoriumError
from sensorium.judge.zero_shot import PLAIN, class_embeddings
from sensorium.use.search import Looker, open_looker

TOGETHER = 64  # pictures in a batch
NAMED = 8  # classes and broken pictures in a summary

Named = tuple[str, np.ndarray | str]  # a picture's name; uint8 [3, S, S], or why it can't be read


@dataclass(frozen=True)
class Guess:
    """The ``classes`` of a ``picture``, the likeliest first, with their ``probabilities`` and cosine ``similarities``;
    none if it could not be read, for the reason ``problem``."""

    picture: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    similarities: tuple[float, ...] = ()
    problem: str = ""


def zero_shot_table(
    run: Any,
    paths: Any,
    classes: Sequence[str],
    templates: Sequence[str] = PLAIN,
    *,
    top: int | None = None,
    progress: bool = False,
) -> list[Guess]:
    """The likeliest of ``classes`` for each picture, all of them or the ``top`` ones.

    run: a run or its folder, or a checkpoint. paths: a picture or several: files, folders, data sets (tar, Parquet ...),
    PIL images, uint8 tensors [3, H, W] or arrays [H, W, 3]. templates: sentences with {} where the name goes; a class
    is the mean of its sentences. Raises SensoriumError for a run that doesn't compare pictures with texts.
    """
    names, found, looker = checked_classes(classes), [], _looker(run)
    texts = class_embeddings(looker.method, _tokenize(looker), names, templates, device=device_name())
    scale, top = looker.method.similarity_scale(), min(top or len(names), len(names))
    with bar("classifying", progress) as advance:
        for done, (batch, total) in enumerate(_batches(_pictures(paths, looker.scale), looker.size), 1):
            read = [array for _, array in batch if not isinstance(array, str)]
            similarity = torch.from_numpy(looker.of_pictures(_pixels(read))) @ texts.T if read else texts[:0]
            rows = iter(_ranked(similarity, scale, names, top))
            for name, array in batch:
                found.append(Guess(name, problem=array) if isinstance(array, str) else Guess(name, *next(rows)))
            if advance is not None:
                advance(min(done * TOGETHER, total), total)
    return found


def _ranked(similarity: Tensor, scale: float, names: Sequence[str], top: int) -> Iterator[tuple[Any, ...]]:
    """Similarities [N, K] -> the classes of each row, their probabilities and similarities, best first."""
    for row, chances in zip(similarity, (scale * similarity).softmax(1), strict=True):
        best = row.argsort(descending=True)[:top]
        yield tuple(names[k] for k in best.tolist()), tuple(chances[best].tolist()), tuple(row[best].tolist())


def _looker(run: Any) -> Looker:
    looker = open_looker(run, "zeroshot")
    if looker.tokens is None:
        raise SensoriumError("a network alone has no tokens for class names: give its folder, or a run.")
    return looker


def _tokenize(looker: Looker) -> Any:
    tokens = looker.tokens
    assert tokens is not None  # `_looker` checks it
    return lambda texts: tokens.encode(list(texts), looker.context)


def classes_of(text: str) -> tuple[str, ...]:
    """Names of ``--classes``: separated by commas, or one a line of a text file."""
    path = Path(text)
    if "," not in text and path.is_file():
        words = (line.decode(errors="replace").strip() for _, line in lines(path))
        return checked_classes([word for word in words if word])
    return checked_classes([name.strip() for name in text.split(",") if name.strip()])


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """At least two different names. Raises SensoriumError."""
    names = tuple(dict.fromkeys([classes] if isinstance(classes, str) else classes))
    if len(names) < 2 or not all(name.strip() for name in names):
        raise SensoriumError('--classes: give at least two names, "cat,dog", or a text file with one name a line.')
    return names


def columns(top: int) -> list[str]:
    """Names of the columns of a table of guesses."""
    more = [name for k in range(2, top + 1) for name in (f"class_{k}", f"probability_{k}")]
    return ["picture", "class", "probability", *more, "similarity", "problem"]


def numbers(top: int) -> list[str]:
    """Those of the columns that hold numbers."""
    return [name for name in columns(top) if name.startswith(("probability", "similarity"))]


def row(one: Guess, top: int) -> list[Any]:
    """A row of the table."""
    pairs = [value for pair in list(zip(one.classes, one.probabilities, strict=True))[:top] for value in pair]
    near = one.similarities[0] if one.similarities else None
    return [one.picture, *pairs, *[None] * (2 * top - len(pairs)), near, one.problem or None]


def told(found: Sequence[Guess]) -> str:
    """How many pictures got each class, and which could not be read."""
    read, broken = [one for one in found if not one.problem], [one for one in found if one.problem]
    each = Counter(one.classes[0] for one in read).most_common(NAMED)
    said = counted(len(read), "picture") + (": " + ", ".join(f"{n:,} {name}" for name, n in each) if each else "")
    names = "; ".join(f"{one.picture}: {one.problem}" for one in broken[:NAMED])
    return f"{said}\n{len(broken):,} could not be read: {names}" if broken else said


def _pixels(arrays: Sequence[np.ndarray]) -> Pixels:
    zero = (0.0, 0.0, 0.0)  # `of_pictures` puts the network's own
    return Pixels(np.stack(arrays), None, (), zero, zero)


def _batches(pictures: Iterable[tuple[str, Any, int]], size: int) -> Iterator[tuple[list[Named], int]]:
    batch: list[Named] = []
    total = 0
    for name, read, total in pictures:
        try:
            batch.append((name, square(read(2 * size), size)))
        except BadImage as bad:
            batch.append((name, bad.reason))
        if len(batch) == TOGETHER:
            yield batch, total
            batch = []
    if batch:
        yield batch, total


def _pictures(paths: Any, scale: Scale | None) -> Iterator[tuple[str, Any, int]]:
    """Of each picture: its name, a function that decodes it for a side, and how many there are (so far). ``scale``: of
    more than 8 bits."""
    sets = [_of_path(str(one), scale) if isinstance(one, (str, Path)) else [("", one)] for one in _several(paths)]
    found = [one for each in sets for one in each]
    if not found:
        raise SensoriumError('give pictures: sensorium zeroshot RUN PICTURES... --classes "cat,dog"')
    for number, (name, source) in enumerate(found):
        yield name or f"picture {number}", _reader(source, scale), len(found)


def _several(paths: Any) -> list[Any]:
    return [paths] if is_one(paths) else list(paths)


def _reader(source: Any, scale: Scale | None) -> Any:
    if isinstance(source, tuple):
        return lambda least: picture(source[0], source[1], least)
    return lambda least: given(source, scale).image


def _of_path(text: str, scale: Scale | None) -> list[tuple[str, Any]]:
    """The names of the pictures at a path, with the set and the index of each."""
    sets = pictures_at(text, scale)
    return [(printable(str(name)), (one, index)) for one in sets for index, name in enumerate(one.names)]
