"""results.json: the results of a comparison as frozen dataclasses, with an exact round trip.

Fractions are in 0..1, never percent. What could not be measured is null. A damaged file, or one of another version,
gives a one-line error that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sensorium.base.files import write_text
from sensorium.base.reading import read_object
from sensorium.base.records import Amount, Count, Share, decode, encode
from sensorium.errors import SensoriumError
from sensorium.judge.score import Map, Neighbors, Picture, Score

FILE = "results.json"
HINT = "run `sensorium compare` again to rebuild it, or correct the field"
Versions = dict[str, str | None]


@dataclass(frozen=True)
class Data:
    """The data of the runs. ``unit``: of the counts ``train`` and ``test``, if not images. ``diagnosis``: the output of
    `sensorium data --json`. ``findings``: further facts from the reader of this kind of data. ``labeled``: training
    images with a label, if others have none."""

    path: str
    layout: str | None = None
    train: Count | None = None
    test: Count | None = None
    classes: tuple[str, ...] = ()
    image_size: Count | None = None
    unit: str | None = None
    tokens: Count | None = None
    labeled: Count | None = None
    diagnosis: dict[str, Any] | None = None
    findings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """The options of the comparison. ``vary`` and ``seeds`` are those of an ablation; ``search``: the budget was for all
    runs together; ``settings``: how many settings of each method it was among, if several."""

    budget: str | None = None
    labels: str | None = None
    seed: Count | None = None
    label_seeds: Count | None = None
    vary: str | None = None
    seeds: tuple[Count, ...] = ()
    search: bool = False
    settings: Count | None = None


@dataclass(frozen=True)
class Chosen:
    """One setting's value, and where it came from."""

    value: Any
    source: str | None = None


@dataclass(frozen=True)
class AtLength:
    """Quality and cost of a language model at a length: ``tokens_per_second`` of a training step and ``kept_mb``, the
    memory kept for its backward pass; ``said``: why there is no score."""

    length: Count
    bits_per_byte: Amount | None = None
    tokens_per_second: Amount | None = None
    kept_mb: Amount | None = None
    said: str | None = None


@dataclass(frozen=True)
class RunResult:
    """One run. ``title``: what people call it, where that isn't its name. ``by_labels``: it learned from every label.
    ``caveat``: what to keep in mind of its method. ``exports``: the formats that hold its method as it is. ``trust``: the user's own recipe, without
    which no command opens it. ``scores``: the deciding one first. ``curve``: rows of ``online.csv``. ``seen``: how many of the data's ``unit`` it has seen.
    ``waiting`` and ``augmenting`` are shares of the ``seconds`` of training, ``parameters`` and ``flops_per_image`` of the
    features' network where features are judged."""

    name: str
    method: str
    status: Literal["finished", "failed", "interrupted"] = "finished"
    title: str | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    backbone: str | None = None
    settings: dict[str, Chosen] = field(default_factory=dict)
    by_labels: bool = False
    caveat: str = ""
    abilities: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    trust: str | None = None
    checkpoint: str | None = None
    steps: Count | None = None
    seconds: Amount | None = None
    unit: str | None = None
    seen: Amount | None = None
    per_second: Amount | None = None
    peak_memory_mb: Amount | None = None
    waiting: Amount | None = None
    augmenting: Amount | None = None
    precision: str | None = None
    parameters: Count | None = None
    flops_per_image: Amount | None = None
    scores: tuple[Score, ...] = ()
    curve: tuple[dict[str, float | None], ...] = ()
    lengths: tuple[AtLength, ...] = ()
    pictures: tuple[Picture, ...] = ()
    neighbors: tuple[Neighbors, ...] = ()
    map: Map | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def shown(self) -> str:
        """Its usual name."""
        return self.title or self.name

    def score(self, like: Score | str) -> Score | None:
        """Its score by the same measure as ``like``, or of that name; None if it has none or the value is unknown."""
        for one in self.scores:
            if one.value is not None and (one.name if isinstance(like, str) else one.measure) == (
                like if isinstance(like, str) else like.measure
            ):
                return one
        return None


@dataclass(frozen=True)
class Winner:
    """The winner. ``by``: the deciding score's name; ``score``: its value over ``n`` samples. ``margin``: the
    difference to ``over``, the runner-up (the best baseline if there is one run); ``error``: half the width of the
    margin's 95 % interval; ``p``: the p-value, corrected for the number of comparisons; ``how``: the test. ``sure``: ahead of the runner-up and
    of every baseline by more than sampling error. ``needed``: how many samples would settle it, where it is open."""

    name: str
    by: str
    score: float
    n: Count | None = None
    margin: float | None = None
    sure: bool = False
    over: str | None = None
    error: Amount | None = None
    p: Share | None = None
    how: str = ""
    needed: Count | None = None


@dataclass(frozen=True)
class Confused:
    """``n`` test images of the class ``given`` that were taken for the class ``taken``."""

    given: Count
    taken: Count
    n: Count


@dataclass(frozen=True)
class Suspect:
    """A picture by its index, its class as ``given``, the ``likely`` one, and the probability of each."""

    index: Count
    given: Count
    likely: Count
    probability_given: Share
    probability_likely: Share


@dataclass(frozen=True)
class Suspects:
    """Training pictures whose labels are doubtful: ``count`` of ``n``, listed in ``file``, the first of them ``shown``;
    ``clear``: how many clearly, another class being at least 50 points more probable. ``accuracy``: of the probabilities, which no picture's own label entered, on the labels as given."""

    file: str
    count: Count
    clear: Count
    n: Count
    accuracy: Share
    shown: tuple[Suspect, ...] = ()


@dataclass(frozen=True)
class BoxSuspect:
    """A training picture by its index, what is doubted of one of its boxes (``kind``: missing, swapped, misplaced or
    unconfirmed), the ``given`` and the ``likely`` class, how much it is doubted, and the ``file`` of a crop."""

    index: Count
    kind: str
    given: Count | None
    likely: Count | None
    doubt: Share
    file: str


@dataclass(frozen=True)
class BoxSuspects:
    """Training boxes that the detector ``run`` doubts, by kind, listed in ``file``; ``clear``: how many clearly. It looked
    at ``pictures`` of the ``of`` training pictures, with ``n`` boxes. It has learned from them."""

    file: str
    run: str
    kinds: dict[str, Count]
    clear: Count
    n: Count
    pictures: Count
    of: Count
    shown: tuple[BoxSuspect, ...] = ()

    @property
    def count(self) -> int:
        return sum(self.kinds.values())


@dataclass(frozen=True)
class CaptionSuspect:
    """A training pair by its index: its ``caption``, the caption ``nearest`` to its picture among the others', the share of
    other captions that fit the picture ``better``, and the ``file`` of the picture."""

    index: Count
    caption: str
    nearest: str
    better: Share
    file: str


@dataclass(frozen=True)
class CaptionSuspects:
    """Training pairs whose captions the run named ``run`` doubts: ``count`` of the ``n`` of ``of`` that it looked at, listed
    in ``file``; ``clear``: how many far below the rest. ``usual``: the median share of other captions that fit better."""

    file: str
    run: str
    count: Count
    clear: Count
    n: Count
    of: Count
    usual: Share
    shown: tuple[CaptionSuspect, ...] = ()


@dataclass(frozen=True)
class OfClass:
    """A class: the labeled images for training, the ``n`` test images, and by run the share of these that are right,
    with its 95 % interval (Wilson), for the score that decides."""

    name: str
    train: Count
    n: Count
    right: dict[str, Share] = field(default_factory=dict)
    low: dict[str, Share] = field(default_factory=dict)
    high: dict[str, Share] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The classifier that a comparison leaves in ``folder`` (beside the report): what it is, its accuracy on ``n`` test
    images and its calibration error, the median ``latency`` in seconds a picture by batch size, its weights' megabytes.
    ``confused``: its errors by class, the most frequent first. ``worst``: test images that it was wrong about, the most
    confident first; ``doubtful``: those whose two likeliest classes are nearest to each other."""

    folder: str
    said: str
    accuracy: Share
    n: Count
    calibration_error: Share | None = None
    temperature: Amount | None = None
    latency: dict[str, Amount] = field(default_factory=dict)
    megabytes: Amount | None = None
    confused: tuple[Confused, ...] = ()
    worst: tuple[Suspect, ...] = ()
    doubtful: tuple[Suspect, ...] = ()


@dataclass(frozen=True)
class Results:
    """A comparison: data, options, runs, and the verdict. ``by_class``: of the data's classes. ``doubled``: what twice
    the labels would add to each run's best score by labels, as read off the last two fractions. ``again``: of a search, the command
    that trains the best run again."""

    schema: Literal[2]
    data: Data
    runs: tuple[RunResult, ...]
    asked: Request = field(default_factory=Request)
    winner: Winner | None = None
    verdict: str = ""
    warnings: tuple[str, ...] = ()
    created: str | None = None
    versions: Versions = field(default_factory=dict)
    model: Model | None = None
    by_class: tuple[OfClass, ...] = ()
    doubled: dict[str, float] = field(default_factory=dict)
    suspects: Suspects | None = None
    box_suspects: BoxSuspects | None = None
    caption_suspects: CaptionSuspects | None = None
    again: str | None = None

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(
                    f"has two runs of one name: runs[{i}].name is {name!r}, as is runs[{names.index(name)}]'s"
                )

    @property
    def finished(self) -> tuple[RunResult, ...]:
        """The runs that have results to show."""
        return tuple(run for run in self.runs if run.finished)

    def run(self, name: str) -> RunResult:
        """The run of that name."""
        return next(run for run in self.runs if run.name == name)


def results_of(found: Mapping[str, Any]) -> Results:
    """Results from JSON types. Raises SensoriumError that names the first damaged field."""
    return decode(Results, found, FILE, HINT)


def write_results(results: Results, folder: Path | str) -> Path:
    """Write ``folder/results.json`` atomically; non-finite numbers become null."""
    text = json.dumps(encode(results), indent=1, ensure_ascii=False, allow_nan=False)
    return write_text(Path(folder) / FILE, text + "\n")


def read_results(folder: Path | str) -> Results:
    """Read and check ``folder/results.json`` (or the file itself)."""
    path = Path(folder)
    path = path / FILE if path.is_dir() or path.suffix != ".json" else path
    if not path.exists():
        raise SensoriumError(f"{path}: no such file; make one with `sensorium compare --out {path.parent}`")
    return decode(Results, read_object(path, hint="Run `sensorium compare` again to rebuild it."), str(path), HINT)
