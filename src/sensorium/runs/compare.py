"""Several methods, one data set, one budget, one report.

Each recipe is built before anything is trained: its method's abilities and the fields of the data determine the
evaluators, and methods that share none are an error. Each run then has its own process, so that a crash does not end
the others and peak memory is measured per run.
"""

from __future__ import annotations

import ast
import inspect
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sensorium.abilities import abilities_of
from sensorium.base import live, stop, threads
from sensorium.base.files import write_json, write_text
from sensorium.base.lock import locked
from sensorium.base.terminal import duration, terminal
from sensorium.catalogue import allow, find, resolve, systems
from sensorium.data.output import check_place
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import FILE as EVALUATED
from sensorium.judge.evaluator import fitting, judge, judged_by, read_judgement
from sensorium.judge.score import Asked, Score
from sensorium.metrics.subsets import percent
from sensorium.published import exportable
from sensorium.recipe.trained import make_recipe, roles
from sensorium.report.page import write_report
from sensorium.runs import estimate
from sensorium.runs.doubted import doubted, pixels_of
from sensorium.runs.jobs import Job, Planned, collect, with_baselines
from sensorium.runs.options import Judging, RunOptions
from sensorium.runs.results import Data, Request, Results, RunResult, write_results
from sensorium.runs.run import Run
from sensorium.runs.seeds import folder_of, over_seeds
from sensorium.runs.values import decide_values
from sensorium.runs.verdict import best_run, decide
from sensorium.runs.winner import NAME as WINNER
from sensorium.runs.winner import keep_winner
from sensorium.training.budget import Budget
from sensorium.training.options import check_batch


def compare(
    methods: Sequence[str],
    data: str = "scenes",
    *,
    backbone: str | None = None,
    jobs: int = 1,
    seeds: int = 1,
    progress: bool = True,
    **keywords: Any,
) -> Results:
    """Train ``methods`` on ``data``, evaluate them alike, write ``out/report.html`` and ``out/results.json``; return
    the latter.

    A method may include settings of its recipe: ``"causal_lm,width=64,experts=4"``. ``backbone``: for every method.
    ``jobs``: how many are trained in parallel. ``seeds``: how often each is trained. ``keywords`` are the fields of
    :class:`sensorium.runs.options.RunOptions` and :class:`~sensorium.runs.options.Judging`. A finished run is not
    repeated, a stopped one is resumed, a failed one is reported with the others. Raises SensoriumError before anything
    is trained if the methods share no evaluator.
    """
    keywords |= {"data": str(data), "quiet": not progress}
    options, judging = RunOptions.take(keywords), Judging.take(keywords)
    if keywords:
        raise TypeError(f"compare() got unknown keywords: {', '.join(keywords)}")
    return compare_all(methods, options, judging, backbone=backbone, jobs=jobs, seeds=seeds)[0]


def compare_all(
    methods: Sequence[str],
    options: RunOptions,
    judging: Judging,
    *,
    backbone: str | None = None,
    jobs: int = 1,
    seeds: int = 1,
) -> tuple[Results, Path]:
    """:func:`compare` with its options in a record; also returns the folder: ``options.out``, or sensorium-compare."""
    folder, numbers = Path(options.out or "sensorium-compare"), tuple(options.seed + i for i in range(seeds))
    if seeds < 1:
        raise SensoriumError(f"--seeds {seeds}: must be at least 1.")
    check_place(folder, options.data, options.test, folder=True)
    each, plan = [], None
    untrained = {system.name for system in systems() if not system.trains}  # their rows are the same with every seed
    trained = [method for method in methods if parse_method(method)[0] not in untrained]
    with locked(folder, verb="compares"):
        for seed in numbers:
            if each and not trained:
                each.append(each[0])
                continue
            own = replace(options, seed=seed, out=folder_of(folder, seed, options.seed))
            times = seeds if seed == options.seed else 0
            those, cache = trained if each else methods, folder / "cache"
            made, found = train_all(those, own, judging, backbone=backbone, jobs=jobs, cache=cache, times=times)
            plan, _ = plan or made, each.append(found)
            if own.out != folder:
                write_results(found, Path(own.out or ""))
                write_report(found, Path(own.out or ""), pixels=pixels_of(made.ready))
        results = each[0]
        if seeds > 1:
            runs = over_seeds([one.runs for one in each])
            results = results_now(results.data, replace(results.asked, seeds=numbers), runs)
        assert plan is not None
        return concluded(results, plan, asked_of(options, judging), folder, not options.quiet), folder


def train_all(
    methods: Sequence[str],
    options: RunOptions,
    judging: Judging,
    *,
    backbone: str | None = None,
    jobs: int = 1,
    cache: Path | None = None,
    times: int = 1,
) -> tuple[Planned, Results]:
    """Train and evaluate each method with one seed; return the plan and the results, with a verdict. ``cache``: of
    decoded data, beside the runs by default. ``times``: how often this is done in all, for the estimate before it; 0
    tells none."""
    for recipe in options.trust:
        allow(recipe)
    spend, folder = Budget.parse(options.budget), Path(options.out or "sensorium-compare")
    progress, options = not options.quiet, replace(options, quiet=options.quiet or jobs > 1)
    if judging.inception is not None:  # report wrong weights before the training, not after it
        from sensorium.judge.inception import Inception

        Inception(judging.inception)
    asked = replace(asked_of(options, judging), progress=progress)
    threads.before_torch()  # child processes inherit it
    if jobs > 1:  # parallel jobs divide the cores: threads that wait for a core hold up all the others
        count = threads.divided(threads.choose(asked=options.threads), jobs).count
        options = replace(options, threads=count)
    todo = _todo(methods, folder, options, replace(asked, progress=not options.quiet), backbone, cache)
    with locked(folder, verb="compares"):
        plan = _plan(todo, progress)
        spend.of(plan.ready.train.unit)
        for one in plan.evaluators:
            if one.check is not None:
                one.check(plan.ready, asked)
        about = _about(options.data, plan, progress)
        if plan.costs and times:
            networks, costs = zip(*plan.costs.values(), strict=True)
            terminal().print(estimate.told(costs, networks, jobs, times), style="dim")
        _run_all(plan.jobs, jobs, progress)
        runs = with_baselines(plan, [collect(job) for job in plan.jobs], folder, asked)
    shares = sorted({score.at for run in runs for score in run.scores if score.group and score.at})
    labels = judging.labels or ",".join(map(percent, shares)) or None
    return plan, results_now(about, Request(options.budget, labels, options.seed, judging.label_seeds), runs)


def asked_of(options: RunOptions, judging: Judging) -> Asked:
    """What an evaluator is asked."""
    return Asked(**asdict(judging), seconds=Budget.parse(options.budget).judging, progress=not options.quiet)


def concluded(results: Results, plan: Planned, asked: Asked, folder: Path, progress: bool) -> Results:
    """Results with the classifier that is left, and what is known of classes and doubtful training data; written with the
    report."""
    if (best := best_run(results.runs)) is not None:
        model = keep_winner(Run(folder / best.name), plan.ready, asked, folder / WINNER)
        results = replace(results, model=model)
    results = replace(results, **doubted(results.runs, plan.ready, asked.seconds, folder, progress=progress))
    write_results(results, folder)
    write_report(results, folder, pixels=pixels_of(plan.ready))
    return results


def _todo(
    methods: Sequence[str],
    folder: Path,
    options: RunOptions,
    asked: Asked,
    backbone: str | None,
    cache: Path | None = None,
) -> list[Job]:
    """One job per method, each in its own folder below ``folder``."""
    source = Source(options.data, options.test, cache or folder / "cache", options.image_size, options.limit)
    todo = []
    for name, (method, settings) in zip(names_of(methods), map(parse_method, methods), strict=True):
        given = settings if backbone is None else {"backbone": backbone, **settings}
        own = replace(options, out=folder / name)
        todo.append(Job(name, method, replace(source, settings=given), own, given, asked))
    return todo


def results_now(about: Data, asked: Request, runs: Sequence[RunResult]) -> Results:
    """Results of ``runs`` with their verdict, the current time and the versions."""
    verdict = decide_values(runs, asked.vary.partition("=")[0]) if asked.vary else decide(runs)
    names = ("sensorium", "torch", "torchvision", "lightning-fabric", "scikit-learn")
    return Results(
        2, about, tuple(runs), asked, verdict.winner, verdict=verdict.said, created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: version(name) for name in names},
    )  # fmt: skip


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME,setting=value,...`` -> the name and the settings, as Python literals where possible; ``NAME:PATH`` is a
    system on the backbone of a checkpoint."""
    name, *parts = text.split(",")
    name, checkpoint = _on(name)
    settings: dict[str, Any] = {"backbone": checkpoint} if checkpoint else {}
    known = inspect.signature(resolve(name)).parameters
    for part in parts:
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in list(known)[1:]:
            named = ", ".join(list(known)[1:])
            raise SensoriumError(
                f"'{text}': '{part}' is not a setting of {name}. Write setting=value, with one of {named}."
            )
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return name, settings


def alike(method: str) -> tuple[str, ...]:
    """The systems of the family of ``method`` that learn from the same kind of data and are trained without another run;
    those that need labels only if ``method`` does, so that data without labels have them all."""
    one = find(parse_method(method)[0])
    found = []
    for system in systems():
        same = (system.family, system.data) == (one.family, one.data)
        if same and system.trains and system.labels <= one.labels:
            parameters = inspect.signature(resolve(system.name)).parameters
            if all(parameters[role].default is not inspect.Parameter.empty for role in roles(system.name)):
                found.append(system.name)
    return tuple(found)


def _on(name: str) -> tuple[str, str]:
    """``NAME:PATH`` -> a system and the path of a checkpoint; any other name -> itself and ""."""
    system, colon, path = name.partition(":")
    return (system, path) if colon and system in {one.name for one in systems()} else (name, "")


def _plan(todo: list[Job], progress: bool) -> Planned:
    """Prepare the data, once per distinct data settings, and build each method once, to know its abilities.

    Raises SensoriumError if the methods learn from different kinds of data, or share no evaluator.
    """
    learned = {job.method: kind_name(job.method) for job in todo}
    first = todo[0].method
    for method, name in learned.items():
        allow(method)  # the user named it
        if name != learned[first]:
            raise SensoriumError(
                f"'{first}' learns from {learned[first]} and '{method}' from {name}: they can't be compared."
            )
    wing = kind(learned[first])
    ready: dict[str, Any] = {}
    told = []
    jobs, shared, costs = [], None, {}
    for job in todo:
        shape = repr([job.source.settings.get(name) for name in wing.SHAPED_BY])
        if shape not in ready:
            ready[shape] = wing.prepare(job.source, progress=progress)
        recipe = make_recipe(job.method, wing.situate(ready[shape]), job.source.settings)
        method = recipe.method
        check_batch(recipe, job.options.accumulate)
        told.append(f"{job.name} {judged_by(method, ready[shape].train)}")
        able = fitting(method, ready[shape].train)
        shared = able if shared is None else tuple(one for one in shared if one in able)
        jobs.append(replace(job, abilities=abilities_of(method), exports=exportable(method, job.method)))
        if progress and not (job.folder / EVALUATED).is_file():
            network = recipe.settings["backbone"].value if "backbone" in recipe.settings else job.name
            costs[job.name] = (
                str(network),
                estimate.cost_of(recipe, ready[shape], job.options, job.asked, job.source.cache),
            )
    if not shared:
        raise SensoriumError(f"no evaluator fits all of these methods: {'; '.join(told)}.")
    return Planned(jobs, wing, next(iter(ready.values())), shared, costs)


def _about(path: str, plan: Planned, progress: bool) -> Data:
    """The data as results.json describes them."""
    told = dict(plan.wing.describe(plan.ready))
    known = {f.name for f in fields(Data)} - {"path", "diagnosis", "findings"}
    own: dict[str, Any] = {name: told.pop(name) for name in list(told) if name in known}
    own["classes"] = tuple(own.get("classes", ()))
    return Data(path, **own, diagnosis=plan.wing.diagnose(plan.ready, progress=progress), findings=told)


def _run_all(todo: list[Job], jobs: int, progress: bool) -> None:
    """Run each job in its own process, ``jobs`` at a time; Ctrl-C stops them all, each after its checkpoint."""
    children: list[Any] = []
    times: list[float] = []

    def run(job: Job) -> None:
        begun = time.monotonic()
        if progress:
            terminal().print(f"{job.name}: starting, {todo.index(job) + 1} of {len(todo)}", style="dim")
        best = [s.value for other in todo if other is not job and (s := _deciding(other)) is not None]
        asked = replace(job.asked, to_beat=max((value for value in best if value is not None), default=None))
        _in_own_process(replace(job, asked=asked), children)
        times.append(time.monotonic() - begun)
        if progress:
            rest = sum(times) / len(times) * -(-(len(todo) - len(times)) // jobs)
            left = f"; about {duration(rest)} left, then the baselines" if rest else "; now the baselines"
            terminal().print(
                f"{job.name}: {len(times)} of {len(todo)} done, in {duration(times[-1])}{left}", style="dim"
            )

    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        try:
            list(pool.map(run, todo))
        except KeyboardInterrupt:
            for child in children:  # each writes a checkpoint and exits; nothing else is started
                if child.is_alive():
                    child.terminate()
            raise


def _deciding(job: Job) -> Score | None:
    """The score of a judged run that is the best of several ways to use labels; None without one."""
    with suppress(SensoriumError):
        if (job.folder / EVALUATED).is_file() and (judged := read_judgement(job.folder)) is not None:
            return next((score for score in judged.scores if score.decides and score.best_of), None)
    return None


def names_of(methods: Sequence[str]) -> list[str]:
    """Folder names: the methods' names, numbered where one is given twice; of paths in settings only the last part."""
    bases = []
    for method in methods:
        recipe, *parts = method.split(",")
        given = (part.partition("=") for part in parts)
        settings = "".join(f",{key}{equals}{Path(value).name}" for key, equals, value in given)
        (system, path), (where, colon, function) = _on(recipe), recipe.rpartition(":")
        own = f"{Path(where).stem}-{function}" if colon else recipe
        bases.append((f"{system}-{Path(path).resolve().name}" if path else own) + settings)
    before = [bases[:i].count(base) for i, base in enumerate(bases)]
    return [f"{base}-{n + 1}" if n else base for base, n in zip(bases, before, strict=True)]


def _in_own_process(job: Job, children: list[Any]) -> None:
    """Train and evaluate a job; an error is recorded in its folder."""
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(job,), name=job.name)
    with stop.deaf():
        child.start()
    children.append(child)
    child.join()
    folder = job.folder
    if child.exitcode and child.exitcode < 0 and not (folder / "error.json").is_file():
        cause = signal.Signals(-child.exitcode).name
        hint = " (out of memory? try a smaller --image-size or --backbone)" if cause == "SIGKILL" else ""
        write_json(folder / "error.json", {"error": f"the run's process was ended by {cause}{hint}."})


def _end_with_parent() -> None:
    """Stop like Ctrl-C, with a checkpoint, if the parent process is gone (killed, for example)."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _child(job: Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = job.folder
    (folder / "error.json").unlink(missing_ok=True)
    try:
        threads.before_torch()
        live.register()
        ready = kind(kind_name(job.method)).prepare(job.source)
        run = job.train(ready)
        if run.finished:
            judge(run, ready, job.asked)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        import traceback

        write_text(folder / "error.log", traceback.format_exc())
        said = (
            str(error)
            if isinstance(error, SensoriumError)
            else f"{type(error).__name__}: {error} (see {folder / 'error.log'})"
        )
        write_json(folder / "error.json", {"error": said})
        raise SystemExit(1) from None
