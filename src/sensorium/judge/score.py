"""One number of a judgement, and how to judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol


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
        """What scores depend on: kept scores of another key are not reused."""
        names = ("labels", "label_seeds", "tune_steps", "tune_seconds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Score:
    """One number of a judgement, over ``n`` things ``counted``, and simple models' numbers beside it by name.

    ``error``: its standard deviation or error, where it is known. ``share``: a fraction of 1, shown in per cent.
    ``curve``: the column of ``online.csv`` that shows it while training. ``references``: what the data themselves come
    to, which no model need beat. ``price``: what the deciding score is drawn against in a report.
    """

    name: str
    value: float
    better: Literal["higher", "lower"]
    n: int
    counted: str
    baselines: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    share: bool = False
    curve: str = ""
    references: dict[str, float] = field(default_factory=dict)
    price: bool = False

    def show(self, value: float) -> str:
        """A number in this score's words."""
        return f"{100 * value:.1f} %" if self.share else f"{value:.4g}"


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


def lines(scores: list[Score]) -> str:
    """Scores for people, each with its baselines below it."""
    wide = max(
        (len(name) + 2 for score in scores for name in (score.name, *score.baselines, *score.references)), default=0
    )
    rows = []
    for score in scores:
        error = "" if score.error is None else f" +- {score.show(score.error).removesuffix(' %')}"
        rows.append(f"{score.name:{wide}s}  {score.show(score.value):>8s}{error}   ({score.n:,} {score.counted})")
        rows += [
            f"  {name:{wide - 2}s}  {score.show(value):>8s}"
            for name, value in {**score.baselines, **score.references}.items()
        ]
    return "\n".join(rows)
