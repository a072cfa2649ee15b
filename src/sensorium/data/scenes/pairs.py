"""Pairs from other data: scenes with captions, and labeled images with class names as captions.

open_captioned reads everything that :func:`sensorium.data.pairs.open_pairs` reads, ``scenes`` and ``scenes:N``, and the
labeled images of :func:`sensorium.data.images.open.open_data`, with the class name as caption.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.base.reading import printable
from sensorium.base.words import counted
from sensorium.data.images import open as opening
from sensorium.data.images import sets as fields
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import Digest, EncodedImages, ImageSet, measure
from sensorium.data.images.values import Scale
from sensorium.data.log import Log
from sensorium.data.pairs import open as reading
from sensorium.data.pairs.open import OpenedPairs, Pairs, open_pairs
from sensorium.data.scenes.layout import lay_out, text_draws
from sensorium.data.scenes.scenes import Scenes
from sensorium.data.scenes.words import caption
from sensorium.errors import SensoriumError

_AT_ONCE = 1024


class FromImages:
    """The images of any set as files: PNG bytes made on demand. ``images`` is the set itself, which is faster."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def read(self, index: int) -> bytes:
        """Raises BadImage if the set does."""
        out = io.BytesIO()
        fields.picture(self.images, index).save(out, "PNG", compress_level=1)
        return out.getvalue()

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        base, at = self.images, indices
        if isinstance(base, fields.View):
            base, at = base.base, base.indices[indices]
        if isinstance(base, EncodedImages | fields.ArrayImages):
            base.sign(digest, at)
        names = "\0".join(self.images.names[int(i)] for i in indices)
        digest.update(f"{type(base).__qualname__}:{names};".encode("utf-8", "surrogateescape"))


def open_captioned(
    path: str | Path, *, test: str | Path | None = None, limit: int | None = None, scale: Scale | None = None
) -> OpenedPairs:
    """Find the layout of ``path`` and open its pairs; ``test`` opens a second path as the test set.

    ``limit`` keeps at most that many pairs of each set. ``scale``: of 16-bit and float images, that of a run; by
    default it is measured. Raises SensoriumError for a user's error.
    """
    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {counted(limit, 'pair')} is too few; must be at least 1.")
    if not (_is_scenes(path) or (test is not None and _is_scenes(test))):
        try:
            return open_pairs(path, test=test, limit=limit, scale=scale)
        except SensoriumError:
            named = _by_class(path, limit, scale) if test is None else None
            if named is not None:
                return named
            if test is None:
                raise
    first = _scenes(str(path), limit) if _is_scenes(path) else open_captioned(path, limit=limit, scale=scale)
    return first if test is None else _with_test(first, test, limit, scale or first.scale)


def scene_captions(scenes: Scenes) -> list[str]:
    """The captions of all ``scenes``, without rendering them."""
    found = []
    for start in range(0, len(scenes), _AT_ONCE):
        indices = np.arange(start, min(start + _AT_ONCE, len(scenes)))
        layout = lay_out(scenes.seed, indices)
        found += [caption(layout.take(np.array([k])), text_draws(scenes.seed, int(i))) for k, i in enumerate(indices)]
    return found


def plain_images(pairs: Pairs) -> ImageSet:
    """The images of ``pairs`` as a set for fast caching: the set itself if they were made from one."""
    return pairs.source.images if isinstance(pairs.source, FromImages) else pairs


def _is_scenes(path: str | Path) -> bool:
    return str(path) == "scenes" or str(path).startswith("scenes:")


def _scenes(path: str, limit: int | None) -> OpenedPairs:
    opened = open_data(path)
    sets = []
    for images in (opened.train, opened.test):
        assert isinstance(images, Scenes)
        few = Scenes(min(len(images), limit or len(images)), images.seed, images.size)
        sets.append(Pairs(FromImages(few), few.names, scene_captions(few)))
    return OpenedPairs(opened.path, opened.layout, sets[0], sets[1])


def _by_class(path: str | Path, limit: int | None, scale: Scale | None) -> OpenedPairs | None:
    """Labeled images with their class names; None if there are none."""
    try:
        opened = open_data(path, limit=limit, scale=scale)
    except SensoriumError:
        return None
    if opened.train.labels is None or len(opened.train.classes) < 2:
        return None
    train, test, val = (None if one is None else _named(one) for one in (opened.train, opened.test, opened.val))
    assert train is not None
    notes = ("There are no captions: class names are used as captions.", *opened.notes)
    return OpenedPairs(opened.path, opened.layout, train, test, val, opened.skipped, notes, opened.scale)


def _named(images: ImageSet) -> Pairs:
    assert images.labels is not None
    known = np.flatnonzero(np.asarray(images.labels) >= 0)
    if len(known) < len(images):
        images = fields.subset(images, known)
    assert images.labels is not None
    texts = [images.classes[k].replace("_", " ") for k in images.labels]
    if isinstance(images, EncodedImages):
        return Pairs(images.source, images.names, texts, images.scale)
    if isinstance(images, fields.View) and isinstance(images.base, EncodedImages):
        base: Sequence[str] = [""] * len(images.base)
        return _picked(Pairs(images.base.source, images.base.names, base, images.base.scale), images.indices, texts)
    return Pairs(FromImages(images), images.names, texts)


def _picked(pairs: Pairs, indices: np.ndarray, texts: Sequence[str]) -> Pairs:
    some = pairs.subset(indices)
    return Pairs(some.source, some.names, texts, some.scale)


def _with_test(first: OpenedPairs, path: str | Path, limit: int | None, scale: Scale | None) -> OpenedPairs:
    """``first`` with the test set of ``path``, another layout; its own test set is ignored."""
    log = Log()
    if _is_scenes(path):
        held = _scenes(str(path), None).test
    else:
        try:
            sets = reading.read(Path(path).expanduser(), log)[1]
            held = sets.get("test") or sets["train"]
        except SensoriumError as error:
            held = _all_named(path, error)
    assert held is not None
    scale, scaled = measure([plain_images(held)], scale)
    if limit is not None:
        held = held.subset(np.arange(min(limit, len(held))))
    notes = [*first.notes, *log.notes, *filter(None, [scaled]), *log.sentences()]
    if first.test is not None:
        notes.append(f"The test set is {printable(str(path))}; {first.path} has its own, which is ignored.")
    return replace(
        first, test=held, val=first.test, skipped=(*first.skipped, *log.skipped), notes=tuple(notes), scale=scale
    )


def _all_named(path: str | Path, error: SensoriumError) -> Pairs:
    """The test set of labeled images, or all of them; else raise the ``error`` of the reader of captions."""
    try:
        sets = opening._read(path).sets
    except SensoriumError:
        raise error from None
    images = sets.get("test", sets["train"])
    if images.labels is None:
        raise error from None
    return _named(images)
