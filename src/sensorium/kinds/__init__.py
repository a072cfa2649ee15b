"""Kinds of data: all that a run of pictures, of text, ... does differently, a module a kind.

A recipe says its kind by the type of its first parameter, ``on``: the situation that its defaults follow from. Whatever
trains, judges or shows a run asks the kind's module for the rest; nothing else in the house tells kinds apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_type_hints

from sensorium.catalogue import resolve
from sensorium.errors import SensoriumError
from sensorium.method import Method

NAMES = ("images", "text", "pairs", "boxes", "streams")


@dataclass(frozen=True)
class Source:
    """Where data come from and how they are wanted. ``cache``: the folder of what is kept of them beside the runs.

    ``settings`` are the recipe's, some of which shape the data; ``run`` is the folder of the run whose data these are,
    None before there is one.
    """

    path: str
    test: str | None
    cache: Path
    image_size: int | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None


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


class Kind(Protocol):
    """What each module here offers.

    Three more functions are optional: ``check(recipe, ready, budget, folder, *, progress)``, a look before a long training,
    ``take_along(run, to, out)``, which writes what an exported run is used with (a tokenizer), and ``at_lengths(run,
    ready)``, scores and costs at other lengths than the trained one.
    """

    SITUATION: type
    UNIT: str

    def prepare(self, source: Source, *, progress: bool = False) -> Any:
        """Open and lay out the data: an object with ``train``, what training reads."""
        ...

    def situate(self, ready: Any) -> Any:
        """The situation that a recipe's defaults follow from."""
        ...

    def wanted(self, situation: Any) -> dict[str, Any]:
        """Fields of ``Source`` that a run's own data have to be prepared with again."""
        ...

    def keep(self, ready: Any, folder: Path) -> None:
        """Write beside a run what its data cannot be read without."""
        ...

    def online(self, ready: Any) -> Callable[[Method], dict[str, float]]:
        """A quick look at a method while it trains."""
        ...

    def judge(self, run: Trained, ready: Any, asked: Asked) -> dict[str, Any]:
        """Every score that the data allow, kept in ``RUN/evaluation.json``."""
        ...

    def scores(self, found: dict[str, Any]) -> list[Score]:
        """What ``judge`` found as numbers with their names, the one that decides first."""
        ...

    def describe(self, ready: Any) -> dict[str, Any]:
        """The data in the words of results.json: ``layout``, counts ``train`` and ``test``, and what else is known."""
        ...


def kind(name: str) -> Kind:
    """The module of a kind by its name, one of ``NAMES``."""
    if name not in NAMES:
        raise KeyError(name)
    return cast(Kind, import_module(f"{__name__}.{name}"))


def kind_name(recipe: str) -> str:
    """What a recipe learns from: one of ``NAMES``."""
    wanted = get_type_hints(resolve(recipe)).get("on")
    for name in NAMES:
        if kind(name).SITUATION is wanted:
            return name
    known = ", ".join(kind(name).SITUATION.__name__ for name in NAMES)
    raise SensoriumError(f"{recipe}: annotate the first parameter of the recipe, on, with one of {known}.")


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
