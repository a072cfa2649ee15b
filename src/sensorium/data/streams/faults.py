"""What is wrong with recordings: frames that are no numbers, channels that are dead, sensors that hang, classes that are rare,
missing or flicker, hours of background, recordings of the test set that are trained on.

Values are read once, at most 2^26 of each set: whole recordings, from the first on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sensorium.base.words import counted, plural
from sensorium.data.faults import Fault, share, some
from sensorium.data.streams.files import UNKNOWN
from sensorium.data.streams.open import AnyStream, Stream, Streams

NO_ACTION = ("background", "none", "null", "nothing", "no action", "no_action", "idle", "other", "unknown", "ambiguous")
MOST_VALUES = 1 << 26
RATIO = 10  # of the steps of the most and the least frequent action
MOSTLY = 0.9  # of the steps that are background
FLICKER, FLICKER_SHARE = (
    3,
    0.1,
)  # steps of an action that may be an error of labeling, and the least share of such actions
HANGING, SECONDS = 16, 1.0  # steps, and seconds where the rate is known, of equal frames
UNLABELED = 0.2
BLOCK = 16  # steps in sequence that are equal in two recordings only if one is part of the other
_ODD = np.uint64(0x9E3779B97F4A7C15)


def background(classes: Sequence[str]) -> int | None:
    """The class that is no action: the first, if its name says so."""
    return 0 if classes and classes[0].strip().casefold() in NO_ACTION else None


def facts(opened: Streams) -> dict[str, str]:
    """How long actions last, and how much is background."""
    known = {}
    lasting = np.concatenate([np.zeros(0, np.int64), *(each for _, each in _lengths(opened))])
    if len(lasting):
        steps = np.quantile(lasting, (0.05, 0.5, 0.95))
        unit, by = (" steps", 1.0) if not opened.rate else (" s", opened.rate)
        shown = [f"{step / by:.3g}" for step in steps]
        known["an action lasts"] = (
            f"{shown[0]} to {shown[2]}{unit} (9 of 10), median {shown[1]}{unit}, {len(lasting):,} in train"
        )
    if (nothing := background(opened.classes)) is not None:
        labels = _labels(opened.train)
        known["background"] = f"{share(int((labels == nothing).sum()), len(labels))} of the training steps"
    return known


def faults(opened: Streams) -> list[Fault]:
    """The faults of the recordings, the most serious first."""
    blocks = {"train": _Read(opened.train, opened.rate), "test": _Read(opened.test, opened.rate)}
    found = [_shared(opened, blocks), _groups(opened), _broken(opened), *_channels(opened, blocks["train"])]
    found += [_hanging(opened, blocks["train"]), *_classes(opened), _flicker(opened), _unlabeled(opened), _rate(opened)]
    return [one for one in found if one is not None]


class _Read:
    """One pass over recordings: of each its name, whether each channel is constant, the steps of the longest hanging runs, and
    the hashes of its blocks."""

    def __init__(self, streams: Sequence[AnyStream], rate: float | None) -> None:
        least = max(HANGING, round(SECONDS * rate)) if rate else HANGING
        self.names: list[str] = []
        self.dead: list[np.ndarray] = []
        self.hung: list[int] = []
        self.blocks: list[np.ndarray] = []
        left = MOST_VALUES
        for stream in streams:
            if left < len(stream) * stream.width and self.names:
                break
            left -= len(stream) * stream.width
            rows = stream.frames(0, len(stream))
            still = (rows[1:] == rows[:-1]).all(axis=1)
            self.names.append(stream.name)
            self.dead.append((rows == rows[:1]).all(axis=0))
            self.hung.append(0 if still.all() else int(sum(n for n in _runs(still) if n + 1 >= least)))
            self.blocks.append(_hashes(rows, still))


def _runs(flags: np.ndarray) -> np.ndarray:
    """The lengths of runs of true flags [N]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return edges[1::2] - edges[::2]


def _hashes(rows: np.ndarray, still: np.ndarray) -> np.ndarray:
    """A hash of each block of steps, uint64 [N - 15], without those of one value: these are equal by chance."""
    count = len(rows) - BLOCK + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    bits = np.ascontiguousarray(rows + np.float32(0)).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, rows.shape[1]).astype(np.uint64) | np.uint64(1)
    with np.errstate(over="ignore"):
        each = (bits * factors).sum(axis=1, dtype=np.uint64)
        each ^= each >> np.uint64(29)
        total, power = np.zeros(count, np.uint64), np.uint64(1)
        for k in range(BLOCK):
            total += each[k : k + count] * power
            power *= _ODD
    moved = np.concatenate([[0], np.cumsum(~still)])
    return total[moved[BLOCK - 1 :] - moved[:count] >= BLOCK // 2]


def _shared(opened: Streams, read: dict[str, _Read]) -> Fault | None:
    """Test recordings of which a part is trained on."""
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *read["train"].blocks]))
    found = [
        (name, float(np.isin(blocks, known).mean()))
        for name, blocks in zip(read["test"].names, read["test"].blocks, strict=True)
        if len(blocks)
    ]
    found = [(name, much) for name, much in found if much > 0]
    if not found:
        return None
    n = len(found)
    return Fault(
        "test recordings in training", n,
        f"{counted(n, 'test recording')} of {len(opened.test):,} {plural(n, 'is')} trained on, too, in whole or in part ({found[0][0]}: "
        f"{share(found[0][1], 1)}): scores are too good; divide by recording, not by step.", some([name for name, _ in found]),
    )  # fmt: skip


def _groups(opened: Streams) -> Fault | None:
    """Subjects of both sets, where the file names subjects."""
    train, test = ({s.group for s in part if s.group and s.group != s.name} for part in (opened.train, opened.test))
    both = sorted(train & test)
    if not both:
        return None
    return Fault(
        "subjects in both sets", len(both),
        f"{counted(len(both), 'subject')} {plural(len(both), 'is')} in training and test set, the first {both[0]}: scores don't say how new subjects do; "
        "divide by subject.", some(both),
    )  # fmt: skip


def _broken(opened: Streams) -> Fault | None:
    each = [(s.name, s.broken) for s in (*opened.train, *opened.test) if isinstance(s, Stream) and s.broken]
    total = sum(n for _, n in each)
    if not total:
        return None
    return Fault(
        "steps that are not finite", total,
        f"{counted(total, 'step')} in {counted(len(each), 'recording')} {plural(total, 'has')} a value that is NaN or infinite (most in "
        f"{max(each, key=lambda one: one[1])[0]}): the last good one is used and the label is ignored; look for a sensor that failed.",
        some([name for name, _ in each]),
    )  # fmt: skip


def _channels(opened: Streams, train: _Read) -> Iterator[Fault]:
    dead = np.array(train.dead)
    always = np.flatnonzero(dead.all(axis=0))
    if len(always):
        yield Fault(
            "constant channels", len(always),
            f"{counted(len(always), 'value')} of a step ({_numbers(always)}, counted from 0) {plural(len(always), 'is')} the same in all training "
            f"recordings: {plural(len(always), 'it')} {'says' if len(always) == 1 else 'say'} nothing; leave {'it' if len(always) == 1 else 'them'} out.",
            some([str(k) for k in always]),
        )  # fmt: skip
    sometimes = dead & ~dead.all(axis=0)
    where = np.flatnonzero(sometimes.any(axis=1))
    if len(where):
        first = int(where[0])
        yield Fault(
            "recordings with a dead channel", len(where),
            f"{counted(len(where), 'training recording')} {plural(len(where), 'has')} a value that never changes in it, as value "
            f"{int(np.flatnonzero(sometimes[first])[0])} of {train.names[first]}: a sensor was not connected; leave the recording out.",
            some([train.names[i] for i in where]),
        )  # fmt: skip


def _numbers(which: np.ndarray) -> str:
    return ", ".join(str(k) for k in which[:5]) + (", ..." if len(which) > 5 else "")


def _hanging(opened: Streams, train: _Read) -> Fault | None:
    total = sum(train.hung)
    if not total:
        return None
    where = [name for name, n in zip(train.names, train.hung, strict=True) if n]
    least = f"{SECONDS:.0f} s" if opened.rate and SECONDS * opened.rate > HANGING else f"{HANGING} steps"
    return Fault(
        "hanging values", total,
        f"{counted(total, 'training step')} in {counted(len(where), 'recording')} repeat{'s' if total == 1 else ''} the one before for {least} or more, as in "
        f"{where[0]}: the sensor hung or a gap was filled; cut it out, or label it -1.", some(where),
    )  # fmt: skip


def _labels(streams: Sequence[AnyStream]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(stream.labels for stream in streams)])


def _lengths(opened: Streams) -> Iterator[tuple[str, np.ndarray]]:
    """The steps of each action in each training recording, without background and unknown ones."""
    nothing = background(opened.classes)
    for stream in opened.train:
        labels = stream.labels
        edges = np.concatenate([[0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]])
        of = labels[edges[:-1]] if len(labels) else np.zeros(0, np.int64)
        yield stream.name, np.diff(edges)[: len(of)][(of != UNKNOWN) & (of != (-2 if nothing is None else nothing))]


def _classes(opened: Streams) -> Iterator[Fault]:
    nothing, names = background(opened.classes), opened.classes
    train, test = (
        np.bincount(labels[labels >= 0], minlength=len(names))
        for labels in (_labels(opened.train), _labels(opened.test))
    )
    actions = [k for k in range(len(names)) if k != nothing]
    for counts, name, where, way in (
        (
            train,
            "classes without training steps",
            "training",
            "they can't be learned; move recordings with them there, or remove the class",
        ),
        (
            test,
            "classes without test steps",
            "test",
            "no score says how they are recognized; move recordings with them there",
        ),
    ):
        absent = [names[k] for k in actions if not counts[k]]
        if absent and len(absent) < len(actions):
            yield Fault(
                name, len(absent),
                f"{counted(len(absent), 'class')} {plural(len(absent), 'is')} in no {where} step, the first '{absent[0]}': {way}.", some(absent),
            )  # fmt: skip
    there = [k for k in actions if train[k]]
    if len(there) > 1 and max(train[there]) >= RATIO * min(train[there]):
        low, high = min(there, key=lambda k: train[k]), max(there, key=lambda k: train[k])
        yield Fault(
            "imbalanced classes", round(train[high] / train[low]),
            f"'{names[high]}' has {train[high] / train[low]:,.0f} times the training steps of '{names[low]}': mAP is the mean over classes, so look at each "
            "class's; more recordings with the rare ones help most.", some([names[low]]),
        )  # fmt: skip
    if nothing is not None and train[nothing] > MOSTLY * train.sum():
        yield Fault(
            "mostly background", int(train[nothing]),
            f"{share(int(train[nothing]), int(train.sum()))} of the labeled training steps are '{names[nothing]}': what happens is seen seldom; cut "
            "background away in training recordings, not in the test set.", some([names[nothing]]),
        )  # fmt: skip


def _flicker(opened: Streams) -> Fault | None:
    each = list(_lengths(opened))
    every = np.concatenate([np.zeros(0, np.int64), *(lasting for _, lasting in each)])
    short = int((every < FLICKER).sum())
    if short < max(2, FLICKER_SHARE * len(every)):
        return None
    where = [name for name, lasting in each if (lasting < FLICKER).any()]
    return Fault(
        "very short actions", short,
        f"{counted(short, 'action')} of {len(every):,} in training ({share(short, len(every))}) last{'s' if short == 1 else ''} fewer than {FLICKER} steps, "
        f"as in {where[0]}: labels that flicker can't be learned; smooth them, or label fewer and longer actions.", some(where),
    )  # fmt: skip


def _unlabeled(opened: Streams) -> Fault | None:
    labels = _labels(opened.train)
    unknown = int((labels == UNKNOWN).sum())
    if unknown < max(1, UNLABELED * len(labels)):
        return None
    return Fault(
        "steps without a label", unknown,
        f"{counted(unknown, 'training step')} ({share(unknown, len(labels))}) {plural(unknown, 'has')} no label: what is trained without labels "
        "learns from them, too, a detector of actions doesn't; label them if they are meant to be background.",
    )  # fmt: skip


def _rate(opened: Streams) -> Fault | None:
    if opened.rate:
        return None
    return Fault(
        "no sampling rate", 1,
        "The steps a second are not given: delays are told in steps, and recordings of another rate are not noticed; add 'sample_rate_hz' to an .npz, "
        "or 'rate' to labels.json.",
    )  # fmt: skip
