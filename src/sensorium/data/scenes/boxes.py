"""Scenes with boxes, in the form of :mod:`sensorium.data.boxes.open`.

Boxes are tight around the visible part of an object at the rendered size, and are known without rendering. Objects
hidden by more than five sixths are marked ``crowd``: they are ignored in training and evaluation.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from sensorium.base.files import cache_for, write_bytes
from sensorium.data.boxes.open import BoxSet, OpenedBoxes
from sensorium.data.images.open import open_data
from sensorium.data.scenes.layout import lay_out
from sensorium.data.scenes.render import outlines
from sensorium.data.scenes.scenes import SIZES, Scenes
from sensorium.data.scenes.scenes import _boxes as tight
from sensorium.errors import SensoriumError

VISIBLE = 1 / 6
_AT_ONCE = 64
_VERSION = 1
_KEPT = ("starts", "boxes", "labels", "crowd", "areas")


def is_scenes(path: str | Path) -> bool:
    """Whether a path is a name of scenes: "scenes" or "scenes:N"."""
    return str(path) == "scenes" or str(path).startswith("scenes:")


def open_scene_boxes(
    path: str,
    size: int,
    folder: Path,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OpenedBoxes:
    """Training and test scenes of ``size`` pixels a side with their boxes, which are computed once and kept in
    ``folder``.

    Raises SensoriumError for an invalid number, an unsupported size, a ``limit`` below 1.
    """
    if limit is not None and limit < 1:
        raise SensoriumError(f"limit: {limit} scenes is too few; must be at least 1.")
    if not SIZES[0] <= size <= SIZES[1]:
        raise SensoriumError(f"--image-size {size}: scenes need {SIZES[0]} to {SIZES[1]} pixels.")
    opened = open_data(path)
    sets = []
    for scenes in (opened.train, opened.test):
        assert isinstance(scenes, Scenes)
        few = Scenes(min(len(scenes), limit or len(scenes)), scenes.seed, size)
        sets.append(box_set(few, folder, progress))
    return OpenedBoxes(opened.path, "scenes", sets[0], sets[1])


def box_set(scenes: Scenes, folder: Path, progress: Callable[[int, int], None] | None = None) -> BoxSet:
    """``scenes`` as a set of images with boxes. ``id`` of a scene is its number, from 1."""
    name = f"scene-boxes-{_VERSION}-{scenes.seed}-{len(scenes)}-{scenes.size}.npz"
    path = cache_for(folder, name) / name
    columns = _read(path, len(scenes))
    if columns is None:
        columns = find_boxes(scenes, progress)
        write_bytes(path, lambda file: np.savez(file, **columns))
    count = len(scenes)
    return BoxSet(
        cast(Any, scenes), np.arange(count), range(1, count + 1), scenes.classes, np.full((count, 2), scenes.size),
        **columns,
    )  # fmt: skip


def find_boxes(scenes: Scenes, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """``starts`` [N + 1], ``boxes`` [M, 4], ``labels`` [M], ``crowd`` [M] and ``areas`` [M], as of :class:`BoxSet`."""
    counts, boxes, labels, crowd, areas = [], [], [], [], []
    for start in range(0, len(scenes), _AT_ONCE):
        layout = lay_out(scenes.seed, np.arange(start, min(start + _AT_ONCE, len(scenes))))
        owner, alone = outlines(layout, scenes.size)
        masks = owner[:, None] == np.arange(layout.kind.shape[1])[:, None, None]  # [n, O, S, S]
        seen = masks.sum(axis=(2, 3))
        shown = seen > 0
        counts.append(shown.sum(axis=1))
        boxes.append(tight(masks[shown]))
        labels.append(layout.kind[shown].astype(np.int64))
        crowd.append(seen[shown] < VISIBLE * alone[shown])
        areas.append(seen[shown].astype(np.float32))
        if progress is not None:
            progress(start + len(owner), len(scenes))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    each = (np.concatenate(parts) for parts in (boxes, labels, crowd, areas))
    return dict(zip(_KEPT, (starts, *each), strict=True))


def _read(path: Path, count: int) -> dict[str, Any] | None:
    """The cached arrays; None if they are not intact."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            columns = {name: kept[name] for name in _KEPT}
        lengths = {len(columns[name]) for name in _KEPT[1:]}
        return columns if len(columns["starts"]) == count + 1 and lengths == {int(columns["starts"][-1])} else None
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error):
        return None
