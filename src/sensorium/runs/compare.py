"""Several methods, one data set, one budget, one report.

Each run has a process of its own: a crash cannot take the others along, and its peak memory is its own.
"""

from __future__ import annotations

import ast
import inspect
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sensorium.base import live, threads
from sensorium.base.files import write_json
from sensorium.base.terminal import bar
from sensorium.catalogue import find, resolve, systems
from sensorium.data.images import prepare as images
from sensorium.data.images.diagnose import diagnose
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.judge import judge_of
from sensorium.judge.image_scores import check_fractions, judge_baselines
from sensorium.judge.score import Asked
from sensorium.recipe.trained import make_recipe
from sensorium.report.page import verdict, write_report, write_results
from sensorium.runs.options import Judging, RunOptions
from sensorium.runs.train import run_folder, train_with
from sensorium.training.budget import Budget

# What systems can be compared by: the first that all of them offer decides how they are judged.
GROUNDS = ("ImageText", "Encoder", "LanguageModel", "Detector", "OnlineDetector", "Generator", "Likelihood")


@dataclass(frozen=True)
class Job:
    """What a run's own process is told: where its data are, how to train and to judge;"""

    name: str
    method: str
    kind: str
    source: Source
    options: RunOptions
    settings: dict[str, Any]
    asked: Asked

    @property
    def folder(self) -> Path:
        return run_folder(self.method, self.options)


def compare(
    methods: Sequence[str],
    data: str = "scenes",
    *,
    backbone: str | None = None,
    jobs: int = 1,
    progress: bool = True,
    **keywords: Any,
) -> dict[str, Any]:
    """Train ``methods`` on ``data``, judge them alike, write ``out/report.html`` and ``out/results.json``; give the latter.

    A method may carry settings of its recipe: ``"causal_lm,width=64,experts=4"``. ``backbone``: for every method.
    ``jobs``: how many are trained at once. ``keywords`` are the fields of :class:`sensorium.runs.options.RunOptions` and
    :class:`~sensorium.runs.options.Judging`. A finished run is not run again; a stopped one goes on; a failed one is
    reported beside the others.
    """
    keywords |= {"data": str(data), "quiet": not progress}
    options, judging = RunOptions.take(keywords), Judging.take(keywords)
    if keywords:
        raise TypeError(f"compare() got unknown keywords: {', '.join(keywords)}")
    return compare_all(methods, options, judging, backbone=backbone, jobs=jobs)[0]


def compare_all(
    methods: Sequence[str], options: RunOptions, judging: Judging, *, backbone: str | None = None, jobs: int = 1
) -> tuple[dict[str, Any], Path]:
    """:func:`compare` with its options apart; gives the folder, too: ``options.out``, or sensorium-compare."""
    asked_for = [parse_method(method) for method in methods]
    sort, ground = common_ground([name for name, _ in asked_for])
    spend, folder = Budget.parse(options.budget), Path(options.out or "sensorium-compare")
    progress, labels = not options.quiet, judging.labels
    asked = {"budget": options.budget, "labels": labels, "seed": options.seed, "label_seeds": judging.label_seeds}
    source = Source(options.data, options.test, folder / "cache", options.image_size, options.limit)
    quiet = options.quiet or jobs > 1
    own: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    if judging.inception is not None:  # wrong weights are better told now than after the training
        from sensorium.judge.inception import Inception

        Inception(judging.inception)
    # Where minutes are the budget of training, a share of them is that of each fine-tuning; else steps alone bound it.
    tune_seconds = max(20.0, spend.amount / 20) if spend.kind == "seconds" else None
    how = Asked(**asdict(judging), tune_seconds=tune_seconds, progress=progress)
    threads.before_torch()  # what is started from here on has it from here
    if jobs > 1:  # side by side, each takes its part of the cores: threads that wait for a core hold up all the others
        count = threads.divided(threads.choose(asked=options.threads), jobs).count
        options = replace(options, threads=count)
    ready = kind(sort).prepare(source, progress=progress)
    about = {"path": options.data, **kind(sort).describe(ready)}
    if ground == "Encoder":
        check_fractions(ready, labels)
    if sort == "images":
        with bar("looking for what is wrong with the data", progress) as advance:
            about["diagnosis"] = diagnose(ready.opened, progress=advance).as_dict()
    todo = [
        Job(
            name, method, sort, replace(source, settings=settings), replace(options, out=folder / name, quiet=quiet),
            own | settings, replace(how, progress=not quiet),
        )
        for name, (method, settings) in zip(_names(methods), asked_for, strict=True)
    ]  # fmt: skip
    _run_all(todo, jobs)
    beside = judge_baselines(ready, _networks(ready, todo), folder, how) if ground == "Encoder" else {}
    beside.pop("asked", None)
    results = _results(about, asked, beside, [_collect(job) for job in todo], ground)
    write_results(results, folder)
    held = {} if sort != "images" else {"train": ready.train, "test": ready.train if ready.test is None else ready.test}
    write_report(results, folder, pixels=held)
    return results, folder


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME,setting=value,...`` -> the name and the settings, as Python values where they are such."""
    name, *parts = text.split(",")
    settings: dict[str, Any] = {}
    known = inspect.signature(resolve(name)).parameters
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in list(known)[1:]:
            named = ", ".join(list(known)[1:])
            raise SensoriumError(
                f"'{text}': '{part}' is no setting of {name}. Write setting=value, with one of {named}."
            )
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return name, settings


def common_ground(methods: Sequence[str]) -> tuple[str, str]:
    """The kind of data that all systems learn from, and the ability that they are judged by.

    A recipe of one's own is taken to offer what the others do, or else what its kind's systems usually offer.
    """
    kinds = {name: kind_name(name) for name in methods}
    first = next(iter(kinds))
    for name, sort in kinds.items():
        if sort != kinds[first]:
            raise SensoriumError(
                f"'{first}' learns from {kinds[first]} and '{name}' from {sort}: they can't be compared."
            )
    named = [name for name in methods if ":" not in name] or [methods[0]]
    offered = {name: _offers(name, kinds[first]) for name in named}
    shared = [g for g in GROUNDS if all(g in offers for offers in offered.values())]
    if not shared:
        said = "; ".join(f"{name}: {', '.join(g for g in GROUNDS if g in own)}" for name, own in offered.items())
        raise SensoriumError(f"these systems offer nothing in common to be judged by ({said}).")
    return kinds[first], shared[0]


def _run_all(todo: list[Job], jobs: int) -> None:
    """Each job in a process of its own, ``jobs`` at a time; Ctrl-C stops them all, each after its checkpoint."""
    children: list[Any] = []
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        try:
            list(pool.map(partial(_in_own_process, children=children), todo))
        except KeyboardInterrupt:
            for child in children:  # each writes a checkpoint and ends; nothing else is started
                if child.is_alive():
                    child.terminate()
            raise


def _results(
    about: dict[str, Any], asked: dict[str, Any], beside: dict[str, Any], runs: list[Any], ground: str
) -> dict[str, Any]:
    """What results.json holds (docs/results.md)."""
    results: dict[str, Any] = {
        "schema": 1,
        "data": about,
        "asked": asked,
        "judged": "features" if ground == "Encoder" else "scores",
        "baselines": beside,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            name: version(name) for name in ("sensorium", "torch", "torchvision", "lightning-fabric", "scikit-learn")
        },
        "runs": runs,
    }
    results["winner"], results["verdict"] = verdict(results)
    return results


def _names(methods: Sequence[str]) -> list[str]:
    """Folder names: the method's own, numbered where it is asked for twice."""
    bases = [method.replace("/", "-").replace(":", "-") for method in methods]
    before = [bases[:i].count(base) for i, base in enumerate(bases)]
    return [f"{base}-{n + 1}" if n else base for base, n in zip(bases, before, strict=True)]


def _in_own_process(job: Job, children: list[Any]) -> None:
    """Run and judge a job; what goes wrong is kept in its folder."""
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(job,), name=job.name)
    child.start()
    children.append(child)
    child.join()
    folder = job.folder
    if child.exitcode and child.exitcode < 0 and not (folder / "error.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        cause = signal.Signals(-child.exitcode).name
        hint = " (out of memory? try a smaller --image-size or --backbone)" if cause == "SIGKILL" else ""
        write_json(folder / "error.json", {"error": f"the run's process was ended by {cause}{hint}."})


def _end_with_parent() -> None:
    """Stop as Ctrl-C does, with a checkpoint, when the process that waits for this one is gone (killed, say)."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _child(job: Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = job.folder
    (folder / "error.json").unlink(missing_ok=True)
    try:
        live.register()
        ready = kind(job.kind).prepare(job.source)
        run = train_with(job.method, job.options, job.settings, prepared=ready, cache_folder=job.source.cache)
        if run.finished:
            judge_of(job.kind).judge(run, ready, job.asked)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        import traceback

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.log").write_text(traceback.format_exc())
        said = (
            str(error)
            if isinstance(error, SensoriumError)
            else f"{type(error).__name__}: {error} (see {folder / 'error.log'})"
        )
        write_json(folder / "error.json", {"error": said})
        raise SystemExit(1) from None


def _networks(ready: images.Prepared, jobs: list[Job]) -> dict[str, Any]:
    """Fresh backbones for the baselines: one of each kind that the finished runs used."""
    networks = {}
    situation = images.situate(ready)
    for job in jobs:
        info = job.folder / "run.json"
        if not (job.folder / "outcome.json").is_file() or not info.is_file():
            continue
        run = json.loads(info.read_text())
        name = run["settings"].get("backbone", {}).get("value", job.name)
        networks.setdefault(name, partial(_fresh, job.method, situation, run["given"], run["seed"]))
    return networks


def _fresh(method: str, situation: Any, given: dict[str, Any], seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    return make_recipe(method, situation, given).method.backbone


def _collect(job: Job) -> dict[str, Any]:
    """What a run's folder says, in the words of results.json."""
    entry: dict[str, Any] = {"name": job.name, "method": job.method, "status": "failed", "error": None, "notes": []}
    entry |= _known(job)
    info, outcome, scores, error = (
        _read(job.folder / f"{name}.json") for name in ("run", "outcome", "evaluation", "error")
    )
    if info:
        entry |= {
            "method": info["method"],
            "settings": info["settings"],
            "backbone": info["settings"].get("backbone", {}).get("value"),
        }
    if outcome:
        entry |= {key: value for key, value in outcome.items() if key != "fingerprint"}
        entry |= {key: value for key, value in scores.items() if key != "asked"}
        entry["scores"] = [asdict(score) for score in judge_of(job.kind).scores(scores)] if scores else []
        entry |= {
            "checkpoint": f"{job.name}/model.safetensors",
            "curve": _curve(job.folder / "online.csv"),
            "offers": list(_offers(job.method, job.kind)),
        }
    if error:
        entry |= {"status": "failed", **error}
    elif not outcome:
        entry |= {
            "status": "interrupted",
            "error": "stopped before its budget was spent; the same command goes on from its last checkpoint.",
        }
    return entry


def _offers(method: str, sort: str) -> tuple[str, ...]:
    """Abilities of a system; of a recipe of one's own, those that are usual for its kind of data."""
    if ":" not in method:
        return find(method).abilities
    return next(system.abilities for system in systems() if system.data == sort)


def _known(job: Job) -> dict[str, Any]:
    """What the catalogue says of a run's system that a reader should know; nothing of a recipe of one's own."""
    if ":" in job.method:
        return {"trains_on_labels": False}
    system = find(job.method)
    known: dict[str, Any] = {"trains_on_labels": system.labels, "exports": list(system.exports)}
    if job.name == system.name and system.short:
        known["title"] = system.short
    return known | ({"caveat": system.caveat} if system.caveat else {})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _curve(path: Path) -> list[dict[str, float]]:
    import csv

    if not path.is_file():
        return []
    with path.open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
