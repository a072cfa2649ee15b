"""Train a method on rows under a budget, so that the run can be trusted.

``fit`` is the only door to training. Whatever is random follows from (seed, step); a killed run goes on by calling it
again with the same arguments, and ends where the uninterrupted one does. See :mod:`sensorium.training.adapter` for a step,
:mod:`sensorium.training.batches` for what it sees, :mod:`sensorium.training.checkpoints` for what survives.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sensorium.base.draw import Views
from sensorium.base.files import disk_errors, write_json
from sensorium.base.precision import resolve_precision
from sensorium.base.terminal import Display
from sensorium.data.rows import Rows
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.training.adapter import Adapter, Plan
from sensorium.training.batches import Batches, Share
from sensorium.training.budget import Budget
from sensorium.training.checkpoints import OUTCOME, WRITTEN, AtomicIO, check_settings, find_checkpoint, fingerprint
from sensorium.training.launch import launched, rank_and_world
from sensorium.training.lightly import LightningEnvironment, MisconfigurationException, Trainer
from sensorium.training.monitor import Online, learned_nothing
from sensorium.training.record import Record


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    ``seconds`` of training; ``peak_memory_mb`` of the GPU, else of the process; ``waiting`` the share of the seconds in
    which the step stood without data, ``augmenting`` the share spent in the views; ``status`` "finished" or
    "interrupted"; ``notes`` for people; ``parameters`` of the whole method.
    """

    steps: int
    images_seen: int
    seconds: float
    images_per_second: float
    peak_memory_mb: float
    waiting: float
    augmenting: float
    precision: str
    status: str
    notes: list[str] = field(default_factory=list)
    parameters: int = 0


@dataclass(frozen=True)
class _Job:
    """Everything that each process of a run needs."""

    method: Method
    rows: Rows
    views: Views
    batch_size: int
    accumulate: int
    devices: int
    device: str
    strategy: str
    precision: str
    progress: bool
    plan: Plan
    checkpoint: Path | None
    step: int
    notes: tuple[str, ...]


def fit(
    method: Method,
    rows: Rows,
    *,
    views: Views,
    optimizer: Callable[[Method], torch.optim.Optimizer],
    schedule: Callable[[float], float],
    batch_size: int,
    budget: Budget | str,
    out: str | Path,
    seed: int = 0,
    accumulate: int = 1,
    devices: int = 1,
    device: str = "auto",
    strategy: str = "auto",
    precision: str = "auto",
    online: Online | None = None,
    online_every: float | str = 60.0,
    checkpoint_every: float = 30.0,
    progress: bool = True,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> Outcome:
    """Train ``method`` in place; write the run's files into the folder ``out``.

    rows: the data. views: (their fields, draw) -> batch.
    schedule: share of the budget spent -> factor on each parameter group's learning rate (times its ``lr_scale``).
    batch_size: of all ``devices`` together; each takes its part in ``accumulate`` pieces. budget: see ``Budget.parse``.
    device: "auto", "cpu", "cuda" or "mps". strategy: Lightning's names ("ddp", "fsdp"). precision: "auto" or Lightning's.
    online: judges the method at the start, every ``online_every`` (training seconds, or "10%" of the budget) and at the
    end. checkpoint_every: training seconds. settings: further values that a continuation must share with its start.
    fresh: throw away what ``out`` holds. A run interrupted before goes on; a finished one returns at once.

    Raises SensoriumError when the folder holds another run, the loss is no number, the disk or the GPU's memory is full.
    """
    out, budget = Path(out), Budget.parse(budget)
    device = _device(device, devices)
    precision = resolve_precision(precision, device)
    Share(batch_size, accumulate, 0, max(devices, rank_and_world()[1]))
    _check_every(online_every)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if fresh and rank_and_world()[0] == 0:
        for name in WRITTEN:
            (out / name).unlink(missing_ok=True)
    run = {
        "batch_size": batch_size,
        "budget": str(budget),
        "seed": seed,
        "accumulate": accumulate,
        "precision": precision,
    }
    now = fingerprint(
        method,
        rows.digest,
        optimizer(method),
        schedule,
        {**run, **(dict(settings) if settings else {})},
    )
    if not fresh and (done := _finished(out, now)):
        return done
    found = None if fresh else find_checkpoint(out)
    if found:
        check_settings(found[1]["settings"], now, out)
    plan = Plan(optimizer, schedule, budget, out, seed, online, online_every, checkpoint_every, now)
    path, state, notes = found or (None, {"steps": 0}, [])
    job = _Job(
        method, rows, views, batch_size, accumulate, devices, device, strategy, precision, progress, plan, path,
        state["steps"], tuple(notes),
    )  # fmt: skip
    with launched(_train, replace(job, plan=replace(plan, online=None), progress=False), devices):
        return _train(job)


def _train(job: _Job) -> Outcome:
    """One process's part of a run."""
    rank, world = rank_and_world()
    plan, kind = job.plan, torch.device(job.device).type
    share = Share(job.batch_size, job.accumulate, rank, world)
    batches = Batches(job.rows, job.views, share, seed=plan.seed, ahead=kind != "cpu")
    eager = world == 1 and kind == "cpu"
    record = Record(plan.out, step=job.step, accumulate=job.accumulate, first=rank == 0, eager=eager)
    display = Display(plan.out.name, shown=job.progress and rank == 0)
    for note in job.notes:
        display.say(note)
    if world > 1:
        from sensorium.parts.batchnorm import synchronize_batchnorm

        synchronize_batchnorm(job.method)
    if not job.method.training:
        job.method.train()
    gpus = [torch.device("cuda", torch.cuda.current_device())] if kind == "cuda" else []
    with _signals() as interrupted, _quiet(), torch.random.fork_rng(devices=gpus):
        adapter = Adapter(job.method, plan, batches, record, display, interrupted)
        try:
            trainer = _trainer(job, world)
            trainer.fit(adapter, batches, ckpt_path=job.checkpoint, weights_only=True)
        except torch.OutOfMemoryError as error:
            raise SensoriumError(
                f"{plan.out.name}: the GPU's memory is full. Use --accumulate {2 * job.accumulate} (same result, less "
                "memory) or a smaller --batch-size."
            ) from error
        finally:
            batches.close()
            display.stop()
            record.close()
    return _outcome(job, adapter, record) if rank == 0 else _empty(job)


def _trainer(job: _Job, world: int) -> Trainer:
    """Lightning, with whatever costs time in each step and serves nobody here switched off."""
    kind = torch.device(job.device).type
    strategy = "ddp" if world > 1 and job.strategy == "auto" else job.strategy
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    plugins: list[Any] = [AtomicIO()]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        plugins.append(LightningEnvironment())
    try:
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(kind, kind),
            devices=here,
            num_nodes=max(1, world // here),
            strategy=strategy,
            precision=job.precision,  # pyright: ignore[reportArgumentType]  checked before
            plugins=plugins,
            accumulate_grad_batches=job.accumulate,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise SensoriumError(f"strategy {job.strategy!r} does not work here: {' '.join(str(error).split())}") from error
    # Our own handlers take signals at the end of a step. Lightning's would make the processes agree on them in every
    # step through the device, which a GPU would have to wait for.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _outcome(job: _Job, adapter: Adapter, record: Record) -> Outcome:
    notes = list(job.notes)
    if adapter.warning:
        notes.append(adapter.warning)
    finished = adapter.fraction >= 1
    if finished and (note := learned_nothing(record.losses())):
        notes.append(note)
    seconds, images = adapter.seconds, adapter.steps * job.batch_size
    per_second = 1 / seconds if seconds else 0.0
    outcome = Outcome(
        steps=adapter.steps,
        images_seen=images,
        seconds=seconds,
        images_per_second=images * per_second,
        peak_memory_mb=adapter.peak,
        waiting=adapter.batches.waited * per_second,
        augmenting=adapter.batches.augmented * per_second,
        precision=job.precision,
        status="finished" if finished else "interrupted",
        notes=notes,
        parameters=sum(p.numel() for p in job.method.parameters()),
    )
    if finished:
        write_json(job.plan.out / OUTCOME, {**asdict(outcome), "fingerprint": dict(job.plan.settings)})
    return outcome


def _empty(job: _Job) -> Outcome:
    """What a process other than the first returns: the account of a run is the first one's."""
    return Outcome(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, job.precision, "finished")


def _finished(out: Path, settings: Mapping[str, str]) -> Outcome | None:
    path = out / OUTCOME
    if not path.exists():
        return None
    try:
        read = json.loads(path.read_text())
        check_settings(read.pop("fingerprint"), settings, out)
        return Outcome(**read)
    except (ValueError, KeyError, TypeError) as error:
        raise SensoriumError(f"{path} cannot be read ({error}): start over with --fresh.") from error


def _device(asked: str, count: int) -> str:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    device = ("cuda" if cuda else "mps" if mps else "cpu") if asked == "auto" else asked
    if device not in ("cpu", "cuda", "mps"):
        raise SensoriumError(f"device {asked!r} is unknown: choose auto, cpu, cuda or mps.")
    if (device == "cuda" and not cuda) or (device == "mps" and not mps):
        raise SensoriumError(f"device {device!r} is not available here: use --device cpu, or see `sensorium doctor`.")
    most = torch.cuda.device_count() if device == "cuda" else 1 if device == "mps" else os.cpu_count() or 1
    if not 1 <= count <= most and rank_and_world()[1] == 1:
        raise SensoriumError(
            f"{count} devices were asked for; this machine has {most} for {device}: use --devices {most}."
        )
    return device


def _check_every(every: float | str) -> None:
    if isinstance(every, str):
        number = every.removesuffix("%")
        if every == number or not number.replace(".", "", 1).isdigit() or not 0 < float(number) <= 100:
            raise SensoriumError(f"online_every {every!r} is neither seconds nor a share of the budget such as '10%'.")
    elif every < 0:
        raise SensoriumError(f"online_every is {every}: it must not be negative.")


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Remember SIGTERM and Ctrl-C, to be asked about between two steps; a second Ctrl-C stops at once."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice is for people who write training loops; those who run one get ours."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
