"""Train a recipe's method on data under a budget, reproducibly.

``fit`` is the only entry point to training. All randomness follows from (seed, step); a killed run is resumed by
calling it again with the same arguments, with the same result as an uninterrupted one. See
:mod:`sensorium.training.step` for an update, :mod:`sensorium.training.loop` for what happens between updates,
:mod:`sensorium.training.batches` for the data, :mod:`sensorium.training.checkpoints` for the saved state.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sensorium.base.files import disk_errors, write_json
from sensorium.base.reading import read_object
from sensorium.base.records import Amount, Count, decode
from sensorium.base.table import set_aside
from sensorium.base.terminal import Display
from sensorium.data.rows import Rows
from sensorium.errors import SensoriumError
from sensorium.recipe.recipe import Recipe
from sensorium.training.bands import place
from sensorium.training.batches import Batches, Share
from sensorium.training.budget import Budget
from sensorium.training.checkpoints import (
    OUTCOME,
    WEIGHTS,
    WRITTEN,
    check_settings,
    find_checkpoint,
    fingerprint,
    save_weights,
)
from sensorium.training.fabric import fabric_for, quiet
from sensorium.training.further import Budgets, budgets_of, check_left, set_apart, told
from sensorium.training.launch import launched, rank_and_world
from sensorium.training.loop import Job, Loop
from sensorium.training.monitor import Online, learned_nothing
from sensorium.training.nonfinite import FOLDER as NONFINITE
from sensorium.training.options import Options, check_batch
from sensorium.training.record import Record
from sensorium.training.track import Tracking

__all__ = ["Options", "Outcome", "fit"]

AS_IT_IS = "nothing was trained: the network is judged as it is"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    ``seen``: how many of the data's ``unit`` (images, tokens ...), and ``per_second``. ``seconds`` of training; ``peak_memory_mb`` of the GPU, else of the process; ``waiting`` the share of the seconds in
    which the step stood without data, ``augmenting`` the share spent in the views; ``status`` "finished" or
    "interrupted"; ``notes`` for people; ``parameters`` of the whole method; ``band``: (fraction of the budget, low, high)
    of the losses that other runs of the system reached, see :mod:`sensorium.training.bands`.
    """

    steps: Count
    unit: str
    seen: Count
    seconds: Amount
    per_second: Amount
    peak_memory_mb: Amount
    waiting: Amount
    augmenting: Amount
    precision: str
    status: Literal["finished", "interrupted"]
    notes: tuple[str, ...] = ()
    parameters: Count = 0
    band: tuple[tuple[float, float, float], ...] = ()


def fit(
    recipe: Recipe,
    rows: Rows,
    *,
    budget: Budget | str,
    out: str | Path,
    options: Options | None = None,
    online: Online | None = None,
    fresh: bool = False,
    before: Callable[[str | None], object] | None = None,
    track: Tracking | None = None,
) -> Outcome:
    """Train the recipe's method in place; write the run's files into the folder ``out``.

    rows: the data. The recipe's ``batch_size`` is that of all devices together. budget: see ``Budget.parse``. online:
    evaluates the method at the start, during training and at the end. fresh: delete what ``out`` holds. before: called
    once nothing stands in the way of training, with the former budget if the run goes on with another. track: follows the
    run; of the first process alone.
    An interrupted run is resumed; a finished one returns at once, or goes on if the budget is another. With an average,
    the averaged weights are evaluated, and are the method's at the end.

    Raises SensoriumError if the folder holds another run, or one trained for longer, the loss is not finite, or the disk
    or the GPU's memory is full.
    """
    out, budget = Path(out), Budget.parse(budget).of(rows.unit)
    options = (options or Options()).resolved(recipe.batch_size)
    check_batch(recipe, options.accumulate)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if fresh and rank_and_world()[0] == 0:
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / NONFINITE, ignore_errors=True)
    now = _fingerprint(recipe, rows, budget, options)
    notes: list[str] = []
    given = _given(recipe)
    if not fresh and (done := _finished(out, now, given, notes)):
        display = Display(out.name, unit=rows.unit, shown=options.progress and rank_and_world()[0] == 0)
        for note in done.notes:
            display.say(note)
        return done
    if not any(parameter.requires_grad for parameter in recipe.method.parameters()):
        return _as_it_is(recipe, rows, out, options, now, before)
    found = None if fresh else find_checkpoint(out, recipe, now)
    if found and found[1]["steps"]:
        check_settings(found[1]["settings"], now, out, given)
    nothing: dict[str, Any] = {"steps": 0}
    path, state, said = found or (None, nothing, [])
    budgets = _budgets(state, budget, recipe, rows, out, fresh)
    path, notes = path if state["steps"] else None, [*notes, *said, *told(budgets)]
    job = Job(recipe, rows, budget, out, options, online, now, path, state["steps"], tuple(notes), budgets, track)
    if rank_and_world()[0] == 0:
        former = state["settings"]["budget"] if path and state["settings"]["budget"] != str(budget) else None
        if before is not None:
            before(former)
        if former is not None:
            set_apart(out, former, OUTCOME)
    others = replace(job, online=None, track=None, options=replace(options, progress=False))
    with launched(_train, others, options.devices):
        return _train(job)


def _as_it_is(
    recipe: Recipe,
    rows: Rows,
    out: Path,
    options: Options,
    settings: Mapping[str, str],
    before: Callable[[str | None], object] | None,
) -> Outcome:
    """The outcome of a method without a parameter to train, which is finished before it begins."""
    parameters = sum(p.numel() for p in recipe.method.parameters())
    outcome = replace(_nothing(rows.unit, options.precision), parameters=parameters, notes=(AS_IT_IS,))
    if rank_and_world()[0] == 0:
        if before is not None:
            before(None)
        save_weights(recipe.method.state_dict(), out / WEIGHTS, {"method": type(recipe.method).__name__, "steps": "0"})
        write_json(out / OUTCOME, {**asdict(outcome), "fingerprint": dict(settings)})
    recipe.method.eval()
    return outcome


def _fingerprint(recipe: Recipe, rows: Rows, budget: Budget, options: Options) -> dict[str, str]:
    run = {"batch_size": recipe.batch_size, "budget": str(budget)}
    run |= {name: getattr(options, name) for name in ("seed", "accumulate", "precision")}
    return fingerprint(recipe, rows.digest, run)


def _budgets(state: Mapping[str, Any], budget: Budget, recipe: Recipe, rows: Rows, out: Path, fresh: bool) -> Budgets:
    """The budgets of the run, this one the last. Raises SensoriumError if it can't go on with it."""
    if not state["steps"]:
        if not fresh and (out / OUTCOME).is_file() and (out / WEIGHTS).is_file():
            raise SensoriumError(
                f"{out} holds a finished run without a checkpoint, so it can't be trained further: give the former "
                "--budget to use it, another --out for a new run, or --fresh to delete that run."
            )
    elif state["settings"]["budget"] != str(budget):
        check_left(out, budget, state, batch=recipe.batch_size * rows.each, data=len(rows) * rows.each)
    return budgets_of(state, budget)


def _train(job: Job) -> Outcome:
    """One process's part of a run."""
    rank, world = rank_and_world()
    options, method, kind = job.options, job.recipe.method, torch.device(job.options.device).type
    share = Share(job.recipe.batch_size, options.accumulate, rank, world)
    batches = Batches(job.rows, job.recipe.views, share, seed=options.seed, ahead=kind != "cpu")
    alone = world == 1 and kind == "cpu"
    record = Record(job.out, step=job.steps, first=rank == 0, eager=alone, track=job.track)
    display = Display(job.out.name, unit=job.rows.unit, shown=options.progress and rank == 0)
    job = replace(job, notes=(*job.notes, *record.damage))
    for note in job.notes:
        display.say(note)
    if world > 1:
        from sensorium.parts.batchnorm import synchronize_batchnorm

        synchronize_batchnorm(method)
    if not method.training:
        method.train()
    try:
        with _signals() as interrupted, quiet():
            fabric = fabric_for(options, method)
            gpus = [fabric.device] if kind == "cuda" else []
            with torch.random.fork_rng(devices=gpus):
                loop = Loop(job, fabric, batches, record, display, interrupted)
                loop.run()
    except torch.OutOfMemoryError as error:
        raise SensoriumError(
            f"{job.out.name}: the GPU's memory is full. Use --accumulate {2 * options.accumulate} (same result, less "
            "memory) or a smaller --batch-size, with --fresh."
        ) from error
    finally:
        batches.close()
        display.stop()
        record.close()
    return _outcome(job, loop, record, display) if rank == 0 else _nothing(job.rows.unit, job.options.precision)


def _outcome(job: Job, loop: Loop, record: Record, display: Display) -> Outcome:
    notes = list(job.notes)
    if loop.warning:
        notes.append(loop.warning)
    finished = loop.fraction >= 1
    alone = len(job.recipe.method.phases) == 1  # adversarial losses need not fall
    if finished and alone and (note := learned_nothing(record.losses())):
        notes.append(note)
        display.say(f"Warning: {note}")
    found = place(job.recipe, _side(job.rows), record.losses(), record.recent) if finished and alone else None
    if found is not None:
        notes.append(found.said)
        display.say(found.said)
    seconds = loop.seconds
    per_second = 1 / seconds if seconds else 0.0
    outcome = Outcome(
        steps=loop.steps,
        unit=job.rows.unit,
        seen=loop.seen,
        seconds=seconds,
        per_second=loop.seen * per_second,
        peak_memory_mb=loop.peak,
        waiting=loop.batches.waited * per_second,
        augmenting=loop.batches.augmented * per_second,
        precision=job.options.precision,
        status="finished" if finished else "interrupted",
        notes=tuple(notes),
        parameters=sum(p.numel() for p in job.recipe.method.parameters()),
        band=() if found is None else found.band,
    )
    if finished:
        write_json(job.out / OUTCOME, {**asdict(outcome), "fingerprint": dict(job.settings)})
    return outcome


def _side(rows: Rows) -> int | None:
    """Of the pictures, in pixels, if they have one size."""
    return rows.fields["image"].shape[-1] if "image" in rows.fields else None


def _nothing(unit: str, precision: str) -> Outcome:
    """No step: of a process other than the first, as the account of a run is the first one's."""
    return Outcome(0, unit, 0, 0.0, 0.0, 0.0, 0.0, 0.0, precision, "finished")


def _given(recipe: Recipe) -> tuple[str, ...]:
    """The settings that a user gives: the run's own, and those of the recipe that were given."""
    own = [name for name, setting in recipe.settings.items() if setting.source == "given"]
    return tuple(dict.fromkeys([*own, "batch_size", "budget", "seed", "accumulate", "precision"]))


def _finished(out: Path, settings: Mapping[str, str], given: tuple[str, ...], notes: list[str]) -> Outcome | None:
    """The outcome of a run that is finished and whole, None if it goes on; what is damaged is made again from its last
    checkpoint."""
    path = out / OUTCOME
    if not path.exists():
        return None
    try:
        outcome, former = read_outcome(out)
    except SensoriumError as error:
        notes.append(f"{error} It was set aside as {set_aside(path).name}.")
        return None
    check_settings(former, settings, out, given)
    if former.get("budget") != settings["budget"]:
        return None
    if not (out / WEIGHTS).is_file():
        notes.append(f"{out / WEIGHTS} is missing; it is made again from the last checkpoint.")
        return None
    return outcome


def read_outcome(folder: Path) -> tuple[Outcome, dict[str, str]]:
    """``outcome.json`` of a finished run, and the settings that it was trained with. Raises SensoriumError that names
    the damaged field."""
    path, hint = folder / OUTCOME, "copy the run again, or start over with --fresh"
    found = read_object(path, hint=f"{hint[:1].upper()}{hint[1:]}.")
    fingerprint = decode(dict[str, str], found.pop("fingerprint", None), str(path), hint, field="fingerprint")
    return decode(Outcome, found, str(path), hint), fingerprint


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Record SIGTERM and Ctrl-C, to be checked between two steps; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
