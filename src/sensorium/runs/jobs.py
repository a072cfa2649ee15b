"""What a comparison does, and what it has made: its jobs, and the results in their folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.base.reading import read_object
from sensorium.base.records import decode
from sensorium.base.table import read_table
from sensorium.catalogue import find
from sensorium.data.source import Source
from sensorium.judge.evaluator import Beside, Evaluator, read_judgement
from sensorium.judge.score import Asked, Judgement, Score, numbers
from sensorium.recipe.info import read_info
from sensorium.recipe.trained import make_recipe, roles
from sensorium.runs.estimate import Cost
from sensorium.runs.options import RunOptions
from sensorium.runs.results import Chosen, RunResult
from sensorium.runs.run import Run
from sensorium.runs.train import run_folder, train_with
from sensorium.training.fit import read_outcome
from sensorium.training.track import add_scores


@dataclass(frozen=True)
class Job:
    """The arguments of a run's process: data, training and evaluation. ``abilities`` are the names of its method's,
    ``exports`` what it can be exported to as it is."""

    name: str
    method: str
    source: Source
    options: RunOptions
    settings: dict[str, Any]
    asked: Asked
    abilities: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return run_folder(self.method, self.options)

    @property
    def within(self) -> Path:
        """The folder of the comparison, of all its seeds."""
        return self.source.cache.parent

    def train(self, ready: Any) -> Run:
        """Train on the prepared data."""
        cache = self.source.cache
        return train_with(
            self.method, self.options, self.settings, prepared=ready, cache_folder=cache, within=self.within
        )


@dataclass(frozen=True)
class Planned:
    """Jobs that can be compared: their data as the first one prepares them, the evaluators that they share, and the
    time that what is left of them takes (:mod:`sensorium.runs.estimate`)."""

    jobs: list[Job]
    wing: Any
    ready: Any
    evaluators: tuple[Evaluator, ...]
    costs: dict[str, tuple[str, Cost]] = field(default_factory=dict)  # by name: network and cost


def with_baselines(plan: Planned, runs: list[RunResult], folder: Path, asked: Asked) -> list[RunResult]:
    """The runs, with the baselines' scores where an evaluator computes these once for all runs; so do their trackers get
    them."""
    fresh = {}
    for job in plan.jobs:
        if not (job.folder / "run.json").is_file() or not (job.folder / "outcome.json").is_file():
            continue
        info = read_info(job.folder)
        if not _begins_at_random(job.method, info.given):
            continue
        backbone = info.values.get("backbone", job.name)
        fresh.setdefault(backbone, partial(_fresh, job.method, plan.wing.situate(plan.ready), info.given, info.seed))
    beside: Beside = {}
    for one in plan.evaluators:
        if one.baselines is not None:
            beside |= one.baselines(plan.ready, fresh, folder, asked)
    whole = [replace(run, scores=tuple(_with(score, beside) for score in run.scores)) for run in runs]
    for job, run in zip(plan.jobs, whole, strict=True):
        if job.options.track and run.finished:  # not before: the baselines belong to the scores
            add_scores(job.options.track, job.folder, numbers(run.scores), job.within)
    return whole


def _begins_at_random(method: str, given: dict[str, Any]) -> bool:
    """Whether an untrained method has random weights: it has those of a checkpoint, or of another run, if it was given
    one."""
    network = given.get("backbone")
    return not (isinstance(network, str) and Path(network).exists()) and not any(
        given.get(role) for role in roles(method)
    )


def _with(score: Score, beside: Beside) -> Score:
    mine = {title: found[score.name] for title, found in beside.items() if score.name in found}
    values = {title: value for title, (value, _) in mine.items()}
    errors = {title: error for title, (_, error) in mine.items() if error is not None}
    return replace(score, baselines={**score.baselines, **values}, errors={**score.errors, **errors})


def _fresh(method: str, situation: Any, given: dict[str, Any], seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    return make_recipe(method, situation, given).method


def collect(job: Job) -> RunResult:
    """A run's folder as results.json describes it."""
    info = read_info(job.folder) if (job.folder / "run.json").is_file() else None
    outcome = read_outcome(job.folder)[0] if (job.folder / "outcome.json").is_file() else None
    judgement = (read_judgement(job.folder) if outcome else None) or Judgement()
    status, said = "finished", None
    if (job.folder / "error.json").is_file():
        path = job.folder / "error.json"
        status, said = "failed", decode(str, read_object(path).get("error"), str(path), field="error")
    elif not outcome:
        status = "interrupted"
        said = "stopped before its budget was spent; the same command resumes it from its last checkpoint."
    settings = {} if info is None else {name: Chosen(one.value, one.source) for name, one in info.settings.items()}
    known = {f.name for f in fields(RunResult)} - {"notes", "status", "parameters"}
    return RunResult(
        job.name,
        job.method if info is None else info.method,
        status,  # type: ignore[arg-type]
        error=said,
        notes=(*outcome.notes, *judgement.notes) if outcome else (),
        backbone=settings["backbone"].value if "backbone" in settings else None,
        settings=settings,
        abilities=job.abilities,
        exports=job.exports,
        **_told(job),
        checkpoint=f"{job.name}/model.safetensors" if outcome else None,
        parameters=judgement.parameters or (outcome.parameters if outcome else None),
        flops_per_image=judgement.flops_per_image,
        scores=judgement.scores,
        curve=_curve(job.folder / "online.csv") if outcome else (),
        pictures=judgement.pictures,
        neighbors=judgement.neighbors,
        map=judgement.map,
        **({name: value for name, value in asdict(outcome).items() if name in known} if outcome else {}),
    )


def _told(job: Job) -> dict[str, Any]:
    """The system's short name, whether it learns from labels, its caveat; of a user's own recipe, its
    name."""
    if ":" in job.method:
        return {"trust": job.method}
    system = find(job.method)
    title = (system.short or None) if job.name == job.method else None
    return {"title": title, "by_labels": system.labels, "caveat": system.caveat}


def _curve(path: Path) -> tuple[dict[str, float | None], ...]:
    return tuple({name: float(text) for name, text in row.items() if text} for row in read_table(path).rows)
