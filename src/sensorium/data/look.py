"""What lies at a path: the kinds of data that can be read from it, its diagnosis, and the commands that use it.

A path is tried as boxes, captioned images, images, streams and text, the more specific first; pictures of any kind get
the diagnosis of :mod:`sensorium.data.images.diagnose`, and each kind its own faults (``data/KIND/faults.py``).
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import there
from sensorium.catalogue import systems
from sensorium.data.boxes.checks import UNREADABLE
from sensorium.data.images.diagnose import Findings, diagnose
from sensorium.data.images.findings import FRACTIONS
from sensorium.data.images.sets import ImageSet, Opened, View
from sensorium.data.log import Skipped
from sensorium.data.names import is_built_in
from sensorium.errors import NothingOfItsKind, SensoriumError

_READ = {
    "boxes": "sensorium.data.boxes.open:open_boxes",
    "pairs": "sensorium.data.pairs.open:open_pairs",
    "images": "sensorium.data.images.open:open_data",
    "streams": "sensorium.data.streams.open:open_streams",
    "text": "sensorium.data.text.open:open_text",
}
_WORDS = {"boxes": "boxes", "pairs": "captions", "images": "images", "streams": "recordings", "text": "text"}
_LABELED = ("webdataset", "parquet", "csv", "json lines")  # layouts whose labels are written, not names of folders
_OWN_ERROR = {
    ".txt": "text", ".md": "text", ".text": "text", ".jsonl": "pairs", ".ndjson": "text", ".json": "boxes",
    ".csv": "pairs", ".tsv": "pairs",
}  # fmt: skip
Progress = Callable[[int, int], None]


def look(
    path: str | Path, *, test: str | Path | None = None, limit: int | None = None, progress: Progress | None = None
) -> Findings:
    """Read ``path`` as whatever it is, and diagnose it. Raises SensoriumError if it is nothing that can be read."""
    found, failed = _readable(path, test, limit)
    if not found:
        raise failed[_the_error(Path(path), failed)]
    name, *others = found
    findings = _DESCRIBE[name](found[name], progress)
    findings.kind = name
    findings.notes += [
        f"Not read as {_WORDS[kind]}: {error}"
        for kind, error in failed.items()
        if not isinstance(error, NothingOfItsKind)
    ]
    where = f"--data {shlex.quote(str(path))}" + (f" --test {shlex.quote(str(test))}" if test is not None else "")
    labeled = _labeled(name, findings)
    findings.commands = _commands(name, where, labeled, _fractions(findings) if name == "images" and labeled else "")
    findings.also = {_WORDS[kind]: _commands(kind, where, labeled)[-1:] for kind in others}
    return findings


def _readable(
    path: str | Path, test: str | Path | None, limit: int | None
) -> tuple[dict[str, Any], dict[str, SensoriumError]]:
    """What each kind's reader opened, the most specific first, and the errors of the others."""
    found: dict[str, Any] = {}
    failed: dict[str, SensoriumError] = {}
    for kind in ("images",) if is_built_in(path) or not there(path) else _READ:
        if found and (kind in ("streams", "text") or (kind == "images" and "boxes" in found)):
            continue
        module, _, function = _READ[kind].partition(":")
        limits = {} if kind in ("streams", "text") else {"limit": limit}
        try:
            found[kind] = getattr(import_module(module), function)(path, test=test, **limits)
        except SensoriumError as error:
            failed[kind] = error
    if "boxes" in found:
        found.pop("pairs", None)
    if {"pairs", "images"} <= found.keys():
        images = found["images"]
        if len(images.train.classes) > 1 and images.layout in _LABELED:
            found = {"images": images, "pairs": found["pairs"]}
        else:
            del found["images"]
    return found, failed


def _the_error(path: Path, failed: dict[str, SensoriumError]) -> str:
    """The kind whose error is told when none could read the path."""
    damaged = [kind for kind, error in failed.items() if not isinstance(error, NothingOfItsKind) and kind != "images"]
    own = _OWN_ERROR.get(Path(path.name.lower().removesuffix(".gz")).suffix, "images")
    return own if own in failed else damaged[0] if damaged else "images"


def _labeled(kind: str, findings: Findings) -> bool:
    """Whether a system that needs labels can learn from it."""
    if kind == "streams":
        return any(one["train"] for one in findings.classes)
    return kind != "images" or len(findings.classes) > 1


def _fractions(findings: Findings) -> str:
    """The option that leaves out label fractions that would leave a class without an image; empty if none would, and
    there are no images without labels."""
    smallest = min((one["train"] for one in findings.classes if one["train"]), default=0)
    fitting = [f"{share:.0%}" for share, _ in FRACTIONS if share * smallest >= 1]
    return f" --labels {','.join([*fitting, '100%'])}" if len(fitting) < len(FRACTIONS) or findings.unlabeled else ""


def _commands(kind: str, where: str, labeled: bool, fractions: str = "") -> list[str]:
    fitting = [one for one in systems() if one.data == kind and one.trains and (labeled or not one.labels)]
    # of other data than pictures, first what does what these are for, then what learns features
    last = "selfsup" if kind != "images" else ""
    names = [system.name for system in sorted(fitting, key=lambda s: (not s.starter, s.family == last))]
    starters = [system.name for system in fitting if system.starter]
    compared = [f"sensorium compare {' '.join(starters)} {where} --budget 10m{fractions}"] if len(starters) > 1 else []
    others = f"   (or {', '.join(names[1:6])}{' ...' if len(names) > 6 else ''})" if names[1:] else ""
    return [*compared, *(f"sensorium train {name} {where}{others}" for name in names[:1])]


# ------------------------------------------------------------------------------------------------------ kinds of data


def _images(opened: Opened, progress: Progress | None) -> Findings:
    findings = diagnose(opened, progress=progress)
    findings.skipped = _reasons(opened.skipped)
    return findings


def _boxes(opened: Any, progress: Progress | None) -> Findings:
    from sensorium.data.boxes.faults import faults

    sets = _sets(opened)
    pictures = {split: View(part.images, part.rows, None, ()) for split, part in sets.items()}
    findings = _of_pictures(opened, pictures, progress)
    counts = {split: np.bincount(part.labels[~part.crowd], minlength=len(part.classes)) for split, part in sets.items()}
    findings.unit = "boxes"
    findings.classes = [
        {"name": name, **{split: int(each[k]) for split, each in counts.items()}}
        for k, name in enumerate(opened.train.classes)
    ]
    empty = sum(int((np.diff(part.starts) == 0).sum()) for part in sets.values())
    findings.facts = {
        "boxes": ", ".join(f"{len(part.boxes):,} {split}" for split, part in sets.items()),
        "images without a box": f"{empty:,}",
        "masks": "yes" if any(part.outlines is not None for part in sets.values()) else "no",
    }
    findings.take(faults(opened))
    findings.skipped = dict(opened.counts)
    unread = [one for one in opened.skipped if one.reason.startswith(UNREADABLE)]  # and no longer among the pictures
    findings.broken = [*findings.broken, *({"file": one.file, "reason": one.reason} for one in unread)]
    return findings


def _pairs(opened: Any, progress: Progress | None) -> Findings:
    from sensorium.data.pairs.faults import facts, faults

    sets = _sets(opened)
    pictures: dict[str, ImageSet] = {}
    for split, part in sets.items():  # an image of several captions counts once
        first = np.sort(np.unique(np.array(list(part.names), dtype=object), return_index=True)[1])
        pictures[split] = View(part, first, None, ())
    findings = _of_pictures(opened, pictures, progress)
    findings.unit = "pairs"
    lengths = np.array([len(text.split()) for text in sets["train"].texts])
    findings.facts = {
        "pairs": ", ".join(f"{len(part):,} {split}" for split, part in sets.items()),
        "different captions": f"{len(set(sets['train'].texts)):,} of {len(lengths):,} in train",
        "words a caption": f"{lengths.min():,} to {lengths.max():,}, median {np.median(lengths):,.0f}",
    } | facts(opened.train)
    findings.take(faults(opened.train))
    findings.skipped = _reasons(opened.skipped)
    return findings


def _streams(opened: Any, progress: Progress | None) -> Findings:
    from sensorium.data.streams.faults import facts, faults

    sets = {"train": opened.train, "test": opened.test}
    counts = {split: sum(map(len, streams)) for split, streams in sets.items()}
    known: dict[str, np.ndarray] = {}
    for split, streams in sets.items():
        labels = np.concatenate([np.zeros(0, np.int64), *(stream.labels for stream in streams)])
        known[split] = np.bincount(labels[labels >= 0], minlength=len(opened.classes))
    findings = Findings(opened.path, opened.layout, counts, {}, unit="steps", notes=list(opened.notes))
    findings.classes = [
        {"name": name, **{split: int(each[k]) for split, each in known.items()}}
        for k, name in enumerate(opened.classes)
    ]
    findings.facts = {
        "recordings": ", ".join(f"{len(streams):,} {split}" for split, streams in sets.items()),
        "values a step": f"{opened.train[0].width:,}" + (f" ({opened.encoder})" if opened.encoder else ""),
        "steps a second": f"{opened.rate:g}" if opened.rate else "not given",
    } | facts(opened)
    findings.take(faults(opened))
    findings.skipped = _reasons(opened.skipped)
    findings.broken = [{"file": one.file, "reason": one.reason} for one in opened.skipped]
    return findings


def _text(opened: Any, progress: Progress | None) -> Findings:
    from sensorium.data.text.faults import facts, faults

    sets = {"train": opened.train, "test": opened.test}
    findings = Findings(
        opened.path, opened.layout, {split: sum(map(len, part)) for split, part in sets.items()}, {}, unit="bytes"
    )
    findings.notes = list(opened.notes)
    findings.facts = {"documents": ", ".join(f"{len(part):,} {split}" for split, part in sets.items())} | facts(opened)
    findings.take(faults(opened))
    findings.skipped = _reasons(opened.skipped)
    return findings


_DESCRIBE: dict[str, Callable[[Any, Progress | None], Findings]] = {
    "boxes": _boxes, "pairs": _pairs, "images": _images, "streams": _streams, "text": _text,
}  # fmt: skip


def _sets(opened: Any) -> dict[str, Any]:
    return {split: part for split in ("train", "test", "val") if (part := getattr(opened, split)) is not None}


def _of_pictures(opened: Any, pictures: dict[str, Any], progress: Progress | None) -> Findings:
    """The diagnosis of the pictures of other data, without advice that is about labels of pictures."""
    plain = Opened(opened.path, opened.layout, pictures["train"], pictures.get("test"), pictures.get("val"))
    return diagnose(replace(plain, notes=tuple(opened.notes)), progress=progress, labels=False)


def _reasons(skipped: Sequence[Skipped]) -> dict[str, int]:
    return dict(Counter(one.reason.partition(": ")[0] for one in skipped).most_common())
