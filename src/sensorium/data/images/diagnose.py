"""Diagnosis of image data: sizes, classes, duplicates, overlap of training and test set, broken files.

Every image is decoded once, up to a limit per set (20,000 encoded images, 200,000 in memory, 2,000 generated ones),
evenly spaced; for larger sets the findings are of this sample, with a note. Duplicates are those of
:mod:`sensorium.data.images.duplicates`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from sensorium.base.words import counted
from sensorium.data.images.decode import BadImage
from sensorium.data.images.duplicates import THUMB, groups_of_equal, near_pairs, thumbnails
from sensorium.data.images.sets import ArrayImages, EncodedImages, ImageSet, Opened, View, header, picture
from sensorium.data.log import Skipped

MAX_ENCODED = 20_000
MAX_ARRAYS = 200_000
MAX_GENERATED = 2_000
SHOWN = 20
_DARK = 31  # an eighth of the range
_FLAT = 2  # maximum range of gray levels of a constant image

Progress = Callable[[int, int], None]


@dataclass
class Findings:
    """The result of :func:`diagnose`. Names are those of the images; lists of examples have at most 20, counts are
    complete.

    :func:`sensorium.data.look.look` adds the ``kind`` of data, the ``unit`` in which classes are counted, further
    ``facts``, what was ``skipped`` by reason, and the ``commands`` that use the data, ``also`` as other kinds.
    """

    path: str
    layout: str
    counts: dict[str, int]
    decoded: dict[str, int]
    sizes: dict[str, Any] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    imbalance: dict[str, Any] | None = None
    duplicates: dict[str, Any] = field(default_factory=dict)
    near_duplicates: dict[str, Any] = field(default_factory=dict)
    overlap: dict[str, Any] = field(default_factory=dict)
    conflicts: dict[str, Any] = field(default_factory=dict)
    constant: dict[str, Any] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)
    dark: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    kind: str = "images"
    unit: str = "images"
    facts: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    also: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return dict(vars(self))

    def render(self) -> Any:
        """A renderable for rich."""
        from sensorium.data.images.findings import render

        return render(self)


@dataclass
class _Survey:
    """The result of one pass over the sample of a set; arrays are aligned with ``indices`` (without broken ones)."""

    indices: np.ndarray
    shapes: list[tuple[int, int]]
    modes: Counter[str]
    digests: np.ndarray
    thumbs: np.ndarray
    flat: np.ndarray
    dark: np.ndarray
    broken: list[Skipped]
    sampled: int


def diagnose(
    opened: Opened, *, progress: Progress | None = None, max_encoded: int = MAX_ENCODED, labels: bool = True
) -> Findings:
    """Diagnose all sets of ``opened``. A broken image does not raise: it is listed in ``broken``. Without ``labels``
    there is no advice about classes."""
    sets = {split: images for split in ("train", "test", "val") if (images := getattr(opened, split)) is not None}
    surveys: dict[str, _Survey] = {}
    total = sum(len(_sample_of(images, max_encoded)) for images in sets.values())
    done = 0
    for split, images in sets.items():
        surveys[split] = _survey(images, max_encoded, lambda n, at=done: progress(at + n, total) if progress else None)
        done += surveys[split].sampled
    findings = Findings(
        opened.path,
        opened.layout,
        {split: len(images) for split, images in sets.items()},
        {split: len(survey.indices) for split, survey in surveys.items()},
        notes=list(opened.notes),
    )
    for split, survey in surveys.items():
        if survey.sampled < len(sets[split]):
            findings.notes.append(
                f"{survey.sampled:,} of the {counted(len(sets[split]), f'{split} image')} were examined, evenly spaced; "
                "sizes, modes, copies and broken files are of these."
            )
    broken = [*opened.skipped, *(skip for survey in surveys.values() for skip in survey.broken)]
    findings.broken = [{"file": skip.file, "reason": skip.reason} for skip in broken]
    _sizes_and_modes(findings, list(surveys.values()))
    _classes(findings, sets)
    _copies(findings, sets, surveys)
    dark = [sets[s].names[int(i)] for s, survey in surveys.items() for i in survey.indices[survey.dark]]
    findings.dark = _some(dark[:SHOWN], len(dark))
    from sensorium.data.images.findings import advise

    findings.advice = advise(findings, labels=labels)
    return findings


def _sample_of(images: ImageSet, max_encoded: int) -> np.ndarray:
    """Indices to examine: all, or evenly spaced ones."""
    base = images.base if isinstance(images, View) else images
    if isinstance(base, ArrayImages):
        most = MAX_ARRAYS
    else:
        most = max_encoded if isinstance(base, EncodedImages) else MAX_GENERATED
    return (
        np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(np.int64))
        if len(images)
        else np.zeros(0, np.int64)
    )


def _survey(images: ImageSet, max_encoded: int, progress: Callable[[int], None]) -> _Survey:
    sample = _sample_of(images, max_encoded)
    survey = _Survey(
        sample[:0],
        [],
        Counter(),
        np.zeros(0, np.uint64),
        np.zeros((0, THUMB, THUMB, 3), np.uint8),
        np.zeros(0, bool),
        np.zeros(0, bool),
        [],
        len(sample),
    )
    indices, digests, thumbs, flat, dark = [], [], [], [], []
    done = 0
    for part in _looks(images, sample):
        for look in part:
            if isinstance(look, Skipped):
                survey.broken.append(look)
                continue
            indices.append(look[0])
            survey.shapes.append(look[1])
            survey.modes[look[2]] += 1
            digests.append(look[3])
            thumbs.append(look[4])
            flat.append(look[5])
            dark.append(look[6])
        done += len(part)
        progress(done)
    if indices:
        survey.indices, survey.digests = np.array(indices), np.array(digests, np.uint64)
        survey.thumbs, survey.flat, survey.dark = np.stack(thumbs), np.array(flat), np.array(dark)
    return survey


_Look = tuple[int, tuple[int, int], str, int, np.ndarray, bool, bool]


def _looks(images: ImageSet, sample: np.ndarray) -> Iterator[Sequence[_Look | Skipped]]:
    """(index, (width, height), mode, digest, thumbnail, whether it is constant, whether it is a nearly black one of more
    than 8 bits) of each image, in chunks."""
    base = images.base if isinstance(images, View) else images
    chunks = [sample[start : start + 512] for start in range(0, len(sample), 512)]
    if isinstance(base, ArrayImages):
        for chunk in chunks:
            where = images.indices[chunk] if isinstance(images, View) else chunk
            yield _look_at_arrays(base, where, chunk)
    elif isinstance(base, EncodedImages):
        with ThreadPoolExecutor(4) as pool:
            for chunk in chunks:
                yield list(pool.map(lambda index: _look(images, int(index)), chunk))
    else:
        for chunk in chunks:
            yield [_look(images, int(index)) for index in chunk]


def _look(images: ImageSet, index: int) -> _Look | Skipped:
    try:
        mode = header(images, index)[2] if isinstance(getattr(images, "base", images), EncodedImages) else "RGB"
        image = picture(images, index)
    except BadImage as bad:
        return Skipped(bad.name, bad.reason)
    pixels = np.asarray(image)
    thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BILINEAR, reducing_gap=3.0))
    flat = bool((pixels.max((0, 1)).astype(np.int16) - pixels.min((0, 1)) <= _FLAT).all())
    dark = (mode.startswith("I") or mode == "F" or ";16" in mode) and int(pixels.max()) <= _DARK
    return index, image.size, mode, _digest(pixels), thumb, flat, dark


def _look_at_arrays(base: ArrayImages, where: np.ndarray, indices: np.ndarray) -> list[_Look | Skipped]:
    width, height, mode = base.header(0)
    block = base.pixels[where]
    if block.ndim == 3 or block.shape[3] in (1, 3):
        rgb = np.repeat(block.reshape(*block.shape[:3], -1), 3 if mode == "L" else 1, axis=3)
    else:
        rgb = np.stack([np.asarray(base[int(i)]["image"]).transpose(1, 2, 0) for i in where])
    thumbs = thumbnails(rgb)
    flat = (rgb.max((1, 2)).astype(np.int16) - rgb.min((1, 2)) <= _FLAT).all(1)
    return [
        (int(index), (width, height), mode, _digest(rgb[k]), thumbs[k], bool(flat[k]), False)
        for k, index in enumerate(indices)
    ]


def _digest(pixels: np.ndarray) -> int:
    """64-bit hash of pixels [H, W, 3] and their shape."""
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


def _sizes_and_modes(findings: Findings, surveys: list[_Survey]) -> None:
    shapes = [shape for survey in surveys for shape in survey.shapes]
    findings.modes = dict(sum((survey.modes for survey in surveys), Counter()).most_common())
    if not shapes:
        return
    by_area = sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))
    findings.sizes = {
        "min": list(by_area[0]),
        "median": list(by_area[len(by_area) // 2]),
        "max": list(by_area[-1]),
        "different": len(set(shapes)),
        "common": [{"size": list(shape), "images": count} for shape, count in Counter(shapes).most_common(5)],
    }


def _classes(findings: Findings, sets: dict[str, ImageSet]) -> None:
    train = sets["train"]
    if train.labels is None:
        return
    known = {split: images.labels for split, images in sets.items() if images.labels is not None}
    tally = {split: np.bincount(y[y >= 0], minlength=len(train.classes)) for split, y in known.items()}
    findings.classes = [
        {"name": name, **{split: int(counts[number]) for split, counts in tally.items()}}
        for number, name in enumerate(train.classes)
    ]
    unlabelled = int((train.labels < 0).sum())
    if unlabelled:
        findings.notes.append(
            f"{counted(unlabelled, 'training image')} {'has' if unlabelled == 1 else 'have'} no label."
        )
    counts = tally["train"]
    if len(counts):
        low, high = int(counts.argmin()), int(counts.argmax())
        findings.imbalance = {
            "ratio": float(counts[high] / counts[low]) if counts[low] else None,
            "smallest": {"name": train.classes[low], "images": int(counts[low])},
            "largest": {"name": train.classes[high], "images": int(counts[high])},
        }


def _copies(findings: Findings, sets: dict[str, ImageSet], surveys: dict[str, _Survey]) -> None:
    """Exact and near copies, within the training set and between it and the others."""
    splits = list(surveys)
    owner = np.concatenate([np.full(len(surveys[s].indices), k) for k, s in enumerate(splits)])
    index = np.concatenate([surveys[s].indices for s in splits]).astype(np.int64)
    digests = np.concatenate([surveys[s].digests for s in splits])
    flat = np.concatenate([surveys[s].flat for s in splits])

    def name(k: int) -> str:
        return sets[splits[owner[k]]].names[int(index[k])]

    def label(k: int) -> int:
        labels = sets[splits[owner[k]]].labels
        return -1 if labels is None else int(labels[index[k]])

    groups = groups_of_equal(digests)
    findings.constant = _some([name(k) for k in np.flatnonzero(flat)[:SHOWN]], int(flat.sum()))
    within = [group[owner[group] == 0] for group in groups]
    within = [group for group in within if len(group) > 1]
    findings.duplicates = _some(
        [[name(k) for k in group[:4]] for group in within[:SHOWN]], sum(len(g) - 1 for g in within)
    )
    findings.duplicates["groups"] = len(within)
    odd = [group for group in groups if len({label(k) for k in group} - {-1}) > 1 and not flat[group[0]]]
    findings.conflicts = _some([[name(k) for k in group[:4]] for group in odd[:SHOWN]], len(odd))

    leaking = [group for group in groups if (owner[group] == 0).any() and (owner[group] > 0).any()]
    leaked = [k for group in leaking for k in group if owner[k] > 0]
    exact = [[name(group[0]), name(next(k for k in group if owner[k] > 0))] for group in leaking[:SHOWN]]

    # One of each group of exact duplicates, preferably of the training set, represents it in the search for near ones.
    spare = np.zeros(len(digests), bool)
    for group in groups:
        spare[group[1:]] = True
    rows = np.flatnonzero(~spare & ~flat)
    near = near_pairs(np.concatenate([surveys[s].thumbs for s in splits])[rows])
    pairs = rows[near.pairs]
    sides = owner[pairs]
    inside = pairs[(sides == 0).all(1)]
    across = pairs[(sides == 0).any(1) & (sides > 0).any(1)]
    findings.near_duplicates = _some([[name(a), name(b)] for a, b in inside[:SHOWN]], len(inside))
    findings.near_duplicates["complete"] = near.complete
    beyond = {int(b if owner[a] == 0 else a) for a, b in across}
    findings.overlap = {
        "exact": len(leaked),
        "near": len(beyond - set(map(int, leaked))),
        "exact_examples": exact,
        "near_examples": [[name(a), name(b)] if owner[a] == 0 else [name(b), name(a)] for a, b in across[:SHOWN]],
    }


def _some(examples: list, count: int) -> dict[str, Any]:
    return {"count": int(count), "examples": examples}
