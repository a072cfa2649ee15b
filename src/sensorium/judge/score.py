"""One number of a judgment with what it rests on, and how to judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from sensorium.base.records import NOT_WRITTEN, Amount, Count, Share


@dataclass(frozen=True)
class Asked:
    """How to judge: shares of the ``labels``, subsets of each, what a fine-tuning may cost, and the ``inception`` weights
    in whose features samples are compared."""

    labels: str = "1%,10%,100%"
    label_seeds: int = 3
    finetune: bool = True
    tune_steps: int | None = None
    tune_seconds: float | None = None
    progress: bool = True
    inception: Path | None = None

    def key(self) -> dict[str, Any]:
        """What scores by label depend on: kept scores of another key are not reused."""
        names = ("labels", "label_seeds", "tune_steps", "tune_seconds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Score:
    """One number of a judgment, over ``n`` things ``counted``, and simple models' numbers beside it by name.

    ``error``: its standard error, where it is known, and ``errors`` those of the ``baselines``. ``share``: a fraction of
    1, shown in percent. ``curve``: the column of ``online.csv`` that shows it while training. ``references``: what the
    data themselves come to, which no model need beat. ``price``: what the deciding score is drawn against in a report.
    ``decides``: whether a comparison may be decided by it. ``group``: the heading under which tables have it. ``at``: the
    share of the labels that it was learned from (0: features as they are), ``labels`` their number; it is the mean over ``subsets`` of them, whose
    standard deviation is ``spread``. ``seeds``: its values over trainings, of which it is the mean. ``best_of``: the
    measurement it was taken from, where it is the best of several; it is then no column of its own.

    ``outcomes`` are those of the test samples, bool or float [N], in the order of the data and the same for every run on
    them: right or wrong, bits, precision; nan where a sample counts for nothing. They are not written to JSON but beside
    the run, in ``outcomes.npz``.
    """

    name: str
    value: float | None
    better: Literal["higher", "lower"]
    n: Count | None
    counted: str
    baselines: dict[str, float] = field(default_factory=dict)
    error: Amount | None = None
    share: bool = False
    curve: str = ""
    references: dict[str, float] = field(default_factory=dict)
    price: bool = False
    errors: dict[str, Amount] = field(default_factory=dict)
    decides: bool = True
    group: str = ""
    at: Share | None = None
    labels: Count | None = None
    subsets: Count = 1
    spread: Amount | None = None
    seeds: tuple[float, ...] = ()
    best_of: str = ""
    outcomes: np.ndarray | None = field(default=None, compare=False, repr=False, metadata=NOT_WRITTEN)

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.better == "higher" else -1

    @property
    def measure(self) -> tuple[str, str]:
        """Two scores of one measure can be compared."""
        return self.name, self.counted

    def show(self, value: float) -> str:
        """A number in this score's words."""
        return f"{100 * value:.1f} %" if self.share else f"{value:.4g}"

    def gap(self, difference: float) -> str:
        """A difference in this score's words."""
        return f"{100 * difference:.1f} points" if self.share else f"{difference:.3g}"


@dataclass(frozen=True)
class Picture:
    """An image file to look at; ``file`` is relative to the folder that holds the run's."""

    file: str
    title: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Neighbors:
    """A test image and the training images nearest to it, as indices."""

    query: Count
    found: tuple[Count, ...]


@dataclass(frozen=True)
class Map:
    """Test images in two dimensions: places, labels (None where there are none) and indices."""

    x: tuple[float | None, ...]
    y: tuple[float | None, ...]
    label: tuple[int | None, ...] | None = None
    index: tuple[Count, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.x, self.y, self.label, self.index) if part is not None}
        if len(lengths) > 1:
            raise ValueError("has lists of different lengths")


@dataclass(frozen=True)
class Judgement:
    """What was found of a run: ``scores``, of which the first that may decide is the family's own, things to look at, and
    ``details``, what each evaluator kept, by its name and piece."""

    scores: tuple[Score, ...] = ()
    pictures: tuple[Picture, ...] = ()
    neighbors: tuple[Neighbors, ...] = ()
    map: Map | None = None
    parameters: Count | None = None
    flops_per_image: Amount | None = None
    details: dict[str, dict[str, Any]] = field(default_factory=dict)


class Trained(Protocol):
    """What judging reads of a run."""

    @property
    def folder(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def situation(self) -> Any: ...
    @property
    def method(self) -> Any: ...
    @property
    def backbone(self) -> Any: ...


def share_error(share: float, n: int, std: float = 0.0, subsets: int = 1) -> float:
    """Standard error of a share of ``n`` samples: of counting them, and of a mean over ``subsets`` whose deviation is
    ``std``."""
    smoothed = (share * n + 1) / (n + 2)  # one success and one failure more: 0 of 10 right is no proof of 0
    return math.sqrt(smoothed * (1 - smoothed) / n + std**2 / subsets)


def lines(scores: Sequence[Score]) -> str:
    """Scores for people, each with its baselines below it."""
    scores = [score for score in scores if score.value is not None]
    wide = max(
        (len(name) + 2 for score in scores for name in (score.name, *score.baselines, *score.references)), default=0
    )
    rows = []
    for score in scores:
        off = score.error if score.spread is None else score.spread
        error = "" if off is None else f" +- {score.show(off).removesuffix(' %')}"
        value = "" if score.value is None else score.show(score.value)
        rows.append(f"{score.name:{wide}s}  {value:>8s}{error}   ({score.n or 0:,} {score.counted})")
        rows += [
            f"  {name:{wide - 2}s}  {score.show(value):>8s}"
            for name, value in {**score.baselines, **score.references}.items()
        ]
    return "\n".join(rows)
