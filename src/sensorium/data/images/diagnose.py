"""Diagnosis of image data: sizes, classes, duplicates, overlap of training and test set, broken and doubtful pictures.

Every image is decoded once, up to a limit per set (20,000 encoded images, 200,000 in memory, 2,000 generated ones),
evenly spaced; for larger sets the findings are of this sample, with a note. Duplicates are those of
:mod:`sensorium.data.images.duplicates`, blurred, dark and odd pictures those of :mod:`sensorium.data.images.quality`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sensorium.base.words import counted
from sensorium.data.faults import Fault
from sensorium.data.images.decode import BadImage
from sensorium.data.images.duplicates import THUMB, groups_of_equal, near_pairs, thumbnails
from sensorium.data.images.findings import advise, usual
from sensorium.data.images.quality import TINY, Measures, judge, levels_of_each, sampled, sharpness
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

    ``unlabeled``: training images without a label, beside others that have one. ``dark``: nearly black ones of more than
    8 bits. ``quality``: doubtful images by kind (:mod:`sensorium.data.images.quality`), the worst first; ``usual``: kinds that
    many are. A kind that can't be said of such images is in neither.

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
    unlabeled: int = 0
    imbalance: dict[str, Any] | None = None
    duplicates: dict[str, Any] = field(default_factory=dict)
    near_duplicates: dict[str, Any] = field(default_factory=dict)
    overlap: dict[str, Any] = field(default_factory=dict)
    conflicts: dict[str, Any] = field(default_factory=dict)
    constant: dict[str, Any] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)
    dark: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, dict[str, Any]] = field(default_factory=dict)
    usual: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: str = "images"
    unit: str = "images"
    facts: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    also: dict[str, list[str]] = field(default_factory=dict)

    def take(self, faults: Sequence[Fault]) -> None:
        """Faults of the kind of data: counts by name, and advice after that about pictures."""
        self.faults |= {one.name: _some(list(one.examples), one.count) for one in faults}
        self.advice += [one.said for one in faults]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return dict(vars(self))

    def render(self) -> Any:
        """A renderable for rich."""
        from sensorium.data.images.findings import render

        return render(self)


class _Look(NamedTuple):
    """What is kept of one image. ``flat``: of one color; ``dark``: a nearly black one of more than 8 bits."""

    index: int
    size: tuple[int, int]
    mode: str
    digest: int
    thumb: np.ndarray
    flat: bool
    dark: bool
    sharpness: float


@dataclass
class Survey:
    """The result of one pass over the sample of a set; arrays are aligned with ``indices`` (without broken ones).
    ``levels``: of brightness and entropy, :func:`sensorium.data.images.quality.levels`."""

    indices: np.ndarray
    shapes: list[tuple[int, int]]
    modes: Counter[str]
    digests: np.ndarray
    thumbs: np.ndarray
    flat: np.ndarray
    dark: np.ndarray
    sharpness: np.ndarray
    levels: np.ndarray
    broken: list[Skipped]
    sampled: int


def diagnose(
    opened: Opened, *, progress: Progress | None = None, max_encoded: int = MAX_ENCODED, labels: bool = True
) -> Findings:
    """Diagnose all sets of ``opened``. A broken image does not raise: it is listed in ``broken``. Without ``labels``
    there is no advice about classes."""
    sets = {split: images for split in ("train", "test", "val") if (images := getattr(opened, split)) is not None}
    surveys: dict[str, Survey] = {}
    total = sum(len(_sample_of(images, max_encoded)) for images in sets.values())
    done = 0
    for split, images in sets.items():
        surveys[split] = take_survey(
            images, max_encoded, lambda n, at=done: progress(at + n, total) if progress else None
        )
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
    _quality(findings, sets, surveys)
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


def take_survey(images: ImageSet, max_encoded: int, progress: Callable[[int], None]) -> Survey:
    """Look at each image of the sample of a set; ``progress`` is told how many were."""
    sample = _sample_of(images, max_encoded)
    looks: list[_Look] = []
    broken: list[Skipped] = []
    levels = [np.zeros((0, 3), np.float32)]
    for part in _looks(images, sample):
        broken += [one for one in part if isinstance(one, Skipped)]
        seen = [one for one in part if not isinstance(one, Skipped)]
        looks += [look for look, _ in seen]
        levels.append(levels_of_each([pixels for _, pixels in seen]))
        progress(len(looks) + len(broken))
    return Survey(
        np.array([look.index for look in looks], np.int64),
        [look.size for look in looks],
        Counter(look.mode for look in looks),
        np.array([look.digest for look in looks], np.uint64),
        np.stack([look.thumb for look in looks]) if looks else np.zeros((0, THUMB, THUMB, 3), np.uint8),
        np.array([look.flat for look in looks], bool),
        np.array([look.dark for look in looks], bool),
        np.array([look.sharpness for look in looks], np.float32),
        np.concatenate(levels),
        broken,
        len(sample),
    )


def _looks(images: ImageSet, sample: np.ndarray) -> Iterator[Sequence[tuple[_Look, np.ndarray] | Skipped]]:
    """A look at each image and some of its pixels, in chunks."""
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


def _look(images: ImageSet, index: int) -> tuple[_Look, np.ndarray] | Skipped:
    try:
        mode = header(images, index)[2] if isinstance(getattr(images, "base", images), EncodedImages) else "RGB"
        image = picture(images, index)
    except BadImage as bad:
        return Skipped(bad.name, bad.reason)
    pixels = np.asarray(image)
    some = sampled(pixels).copy()  # a view would keep all the pixels
    thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BILINEAR, reducing_gap=3.0))
    flat = bool(_even(thumb[None])[0]) and bool(_even(pixels[None])[0])  # averages differ less than what they are of
    dark = (mode.startswith("I") or mode == "F" or ";16" in mode) and int(pixels.max()) <= _DARK
    return _Look(index, image.size, mode, _digest(pixels), thumb, flat, dark, sharpness(image)), some


def _look_at_arrays(base: ArrayImages, where: np.ndarray, indices: np.ndarray) -> list[tuple[_Look, np.ndarray]]:
    width, height, mode = base.header(0)
    block = base.pixels[where]
    if block.ndim == 3 or block.shape[3] in (1, 3):
        rgb = np.repeat(block.reshape(*block.shape[:3], -1), 3 if mode == "L" else 1, axis=3)
    else:
        rgb = np.stack([np.asarray(base[int(i)]["image"]).transpose(1, 2, 0) for i in where])
    thumbs, some = thumbnails(rgb), sampled(rgb)
    flat = _even(thumbs)
    flat[flat] = _even(rgb[flat])
    sharp = [sharpness(Image.fromarray(one)) for one in rgb] if max(width, height) >= TINY else [np.nan] * len(rgb)
    return [
        (_Look(int(index), (width, height), mode, _digest(rgb[k]), thumbs[k], bool(flat[k]), False, sharp[k]), some[k])
        for k, index in enumerate(indices)
    ]


def _even(pixels: np.ndarray) -> np.ndarray:
    """Which of the images uint8 [n, H, W, 3] are of one color, but for noise, bool [n]."""
    return (pixels.max((1, 2)).astype(np.int16) - pixels.min((1, 2)) <= _FLAT).all(1)


def _digest(pixels: np.ndarray) -> int:
    """64-bit hash of pixels [H, W, 3] and their shape."""
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


def _sizes_and_modes(findings: Findings, surveys: list[Survey]) -> None:
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
    findings.unlabeled = int((train.labels < 0).sum())
    counts = tally["train"]
    if len(counts):
        low, high = int(counts.argmin()), int(counts.argmax())
        findings.imbalance = {
            "ratio": float(counts[high] / counts[low]) if counts[low] else None,
            "smallest": {"name": train.classes[low], "images": int(counts[low])},
            "largest": {"name": train.classes[high], "images": int(counts[high])},
        }


def _copies(findings: Findings, sets: dict[str, ImageSet], surveys: dict[str, Survey]) -> None:
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


def measures_of(surveys: Iterable[Survey]) -> tuple[Measures, np.ndarray]:
    """The measures of the images of all ``surveys``, one after another, and which of them are told of as blank or badly scaled."""
    each = list(surveys)
    high, low, entropy = np.concatenate([one.levels for one in each]).T
    sizes = np.array([shape for one in each for shape in one.shapes], np.float64).reshape(-1, 2)
    sharp = np.concatenate([one.sharpness for one in each])
    return Measures(high, low, entropy, sharp, sizes), np.concatenate([one.flat | one.dark for one in each])


def _quality(findings: Findings, sets: dict[str, ImageSet], surveys: dict[str, Survey]) -> None:
    """Doubtful images of all sets, judged beside one another."""
    owner = [(split, int(index)) for split, one in surveys.items() for index in one.indices]
    doubtful = judge(*measures_of(surveys.values()))
    for said, kinds in ((findings.quality, doubtful.told), (findings.usual, doubtful.usual)):
        for kind, found in kinds.items():
            names = [sets[split].names[index] for split, index in (owner[int(k)] for k in found[:SHOWN])]
            said[kind] = _some(names, len(found))
    findings.notes += usual(findings)


def _some(examples: list, count: int) -> dict[str, Any]:
    return {"count": int(count), "examples": examples}
