"""Scores with their sample counts, baselines and errors; and the options of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from sensorium.base.records import NOT_WRITTEN, Amount, Count, Share
from sensorium.base.words import agreeing

Z = 1.959963984540054
"""Standard errors on either side of a 95 % interval."""


@dataclass(frozen=True)
class Asked:
    """Options of an evaluation: fractions of the ``labels`` (those of 1 %, 10 % and 100 % that leave each class an image, by default), subsets of each, the fraction that decides (the largest by
    default), the maximum steps of a fine-tuning, the ``inception`` weights for the Fréchet distance. ``seconds`` limit the
    evaluation, unless it is to be ``full``: fine-tuning that doesn't fit is left out. So is that of a run whose linear
    probe is far below ``to_beat``, another's score."""

    labels: str | None = None
    label_seeds: int = 3
    decide: str | None = None
    finetune: bool = True
    tune_steps: int | None = None
    seconds: float | None = None
    full: bool = False
    to_beat: float | None = None
    progress: bool = True
    inception: Path | None = None

    def key(self) -> dict[str, Any]:
        """What scores by label depend on: saved scores of another key are not reused."""
        names = ("labels", "label_seeds", "tune_steps", "seconds", "full")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Score:
    """One score over ``n`` samples of the kind ``counted``, with the values of ``baselines`` by name.

    ``error``: its standard error, if known, and ``errors`` those of the ``baselines``. ``share``: a fraction, shown in
    percent. ``curve``: the column of ``online.csv`` that tracks it during training. ``references``: the values of real
    data, which no model need beat. ``price``: the deciding score is plotted against it in a report. ``decides``:
    whether it may decide a comparison. ``group``: its heading in tables. ``at``: the fraction of the labels used (0:
    none), ``labels`` their number; it is the mean over ``subsets`` of them, with standard deviation ``spread``.
    ``seeds``: its values over trainings, of which it is the mean. ``best_of``: the measurement it was taken from, if it
    is the best of several; it is then not a column of its own.

    ``outcomes``: per test sample, bool or float [N], in the order of the data, the same for every run on them: right or
    wrong, bits, precision; nan if a sample does not count. They are written to the run's ``outcomes.npz``, not to JSON.
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
        """1 if higher is better, else -1."""
        return 1 if self.better == "higher" else -1

    @property
    def measure(self) -> tuple[str, str]:
        """Whether two scores are of the same measure, so that they can be compared."""
        return self.name, self.counted

    def show(self, value: float) -> str:
        """A value formatted for this score."""
        return f"{100 * value:.1f} %" if self.share else f"{value:.4g}"

    def visible(self, off: float) -> bool:
        """Whether a deviation is more than zero in this score's format."""
        return any(digit in "123456789" for digit in self.show(off))

    def gap(self, difference: float) -> str:
        """A difference formatted for this score."""
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
    """Test images in two dimensions: positions, labels (None if there are none) and indices."""

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
    """The evaluation of a run: ``scores``, of which the first that may decide is the family's main one, images to look
    at, ``notes`` on what was left out, and ``details``, the saved pieces of each evaluator by name."""

    scores: tuple[Score, ...] = ()
    pictures: tuple[Picture, ...] = ()
    neighbors: tuple[Neighbors, ...] = ()
    map: Map | None = None
    parameters: Count | None = None
    flops_per_image: Amount | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, dict[str, Any]] = field(default_factory=dict)


class Trained(Protocol):
    """What an evaluation needs of a run."""

    @property
    def folder(self) -> Path: ...
    @property
    def cache(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def situation(self) -> Any: ...
    @property
    def method(self) -> Any: ...
    @property
    def backbone(self) -> Any: ...
    def untrained(self) -> Any: ...


def share_error(share: float, n: int, std: float = 0.0, subsets: int = 1) -> float:
    """Standard error of a fraction of ``n`` samples: the binomial one, plus that of a mean over ``subsets`` with
    standard deviation ``std``."""
    smoothed = (share * n + 1) / (n + 2)  # one more success and failure: 0 of 10 right does not prove a rate of 0
    return math.sqrt(smoothed * (1 - smoothed) / n + std**2 / subsets)


def lines(scores: Sequence[Score]) -> str:
    """Scores as text, each with its baselines below it."""
    scores = [score for score in scores if score.value is not None]
    wide = max(
        (len(name) + 2 for score in scores for name in (score.name, *score.baselines, *score.references)), default=0
    )
    rows = []
    for score in scores:
        off = score.spread if score.spread is not None and score.subsets > 1 else score.error
        error = f" +- {score.show(off).removesuffix(' %')}" if off is not None and score.visible(off) else ""
        value = "" if score.value is None else score.show(score.value)
        rows.append(f"{score.name:{wide}s}  {value:>8s}{error}   ({score.n or 0:,} {agreeing(score.n, score.counted)})")
        rows += [
            f"  {name:{wide - 2}s}  {score.show(value):>8s}"
            for name, value in {**score.baselines, **score.references}.items()
        ]
    return "\n".join(rows)


def numbers(scores: Sequence[Score]) -> dict[str, float]:
    """Scores, their standard errors and their baselines by name, for a tracker: "scores/NAME", "scores/NAME/error",
    "scores/NAME/BASELINE". What is not a finite number is left out."""
    found: dict[str, float | None] = {}
    for score in scores:
        found[f"scores/{score.name}"] = score.value
        found[f"scores/{score.name}/error"] = score.error
        found |= {f"scores/{score.name}/{title}": value for title, value in score.baselines.items()}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
