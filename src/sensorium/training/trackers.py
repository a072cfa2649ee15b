"""Trackers, each through its own library: Weights & Biases, MLflow, Trackio, TensorBoard.

A tracker is a function: it begins a tracked run, or goes on with the one that it is told of, and gives back how to log to
it and how to finish it. Each uses the library's own defaults and environment variables (where it writes, who is logged in,
whether it is offline), prints nothing, and raises what goes wrong: :mod:`sensorium.training.track` calls it.
"""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from sensorium.errors import SensoriumError

Name = Literal["wandb", "mlflow", "trackio", "tensorboard"]
Status = Literal["finished", "killed", "failed"]
Rows = Sequence[tuple[int, Mapping[str, float]]]  # steps, and scalars by name

_EXIT: dict[Status, int] = {"finished": 0, "killed": 255, "failed": 1}
_UPLOADING = 60.0  # seconds to wait for at the end; what is left then stays on the disk
_CONNECTING, _FLUSHING = 30.0, 1.0  # seconds
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of a request to MLflow


@dataclass(frozen=True)
class Tracked:
    """A run as a tracker is told of it. ``config``: its settings, ``config["source"]`` where each came from. ``id``: the
    tracked run to go on with, by :attr:`Tracker.id`; None begins one."""

    name: str
    project: str
    group: str | None
    folder: Path
    config: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Tracker:
    """``log(rows)``, steps rising; ``finish(scores, status, step)``. ``last``: the last training step and the last online
    evaluation that the library has, if it can tell."""

    id: str
    log: Callable[[Rows], object]
    finish: Callable[[Mapping[str, float], Status, int], object]
    last: tuple[int, int] | None = None


def check(names: Sequence[str]) -> None:
    """Raise SensoriumError unless these are trackers whose libraries are installed; none is imported."""
    for name in names:
        if name not in get_args(Name):
            raise SensoriumError(f"--track {name}: choose among {', '.join(get_args(Name))}.")
        if not installed(name):
            raise SensoriumError(f'--track {name}: {name} isn\'t installed: pip install "sensorium[track]"')


def installed(name: str) -> bool:
    """Whether there is a library of this name; a folder of this name, such as ./wandb, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def start(name: str, run: Tracked) -> Tracker:
    """Begin or go on with a run of the tracker ``name``."""
    return {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio, "tensorboard": _tensorboard}[name](run)


def _wandb(run: Tracked) -> Tracker:
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own, which needs the network
    import wandb

    how: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "finish_timeout": _UPLOADING,
        "finish_timeout_raises": True,
    }
    if (often := "x_transaction_log_flush_interval") in wandb.Settings.model_fields:
        how[often] = _FLUSHING  # its process ends with this one, and what it has not written is lost
    if not os.environ.get("WANDB_INIT_TIMEOUT"):
        how["init_timeout"] = _CONNECTING
    wandb.setup(wandb.Settings(silent=True))  # else it asks who is there, and waits for an answer

    def unless(variable: str, value: str | None) -> str | None:
        return None if os.environ.get(variable) else value

    ours = wandb.init(
        project=unless("WANDB_PROJECT", run.project),
        group=unless("WANDB_RUN_GROUP", run.group),
        name=unless("WANDB_NAME", run.name),
        id=run.id,
        resume="allow" if run.id else None,
        reinit="create_new",  # a run of the caller's own goes on
        settings=wandb.Settings(**how),
    )
    ours.config.update(dict(run.config), allow_val_change=True)  # a budget may have been raised

    def log(rows: Rows) -> None:
        for step, scalars in rows:
            ours.log(dict(scalars), step=step)

    def finish(scores: Mapping[str, float], status: Status, step: int) -> None:
        ours.summary.update({**scores, "status": status})
        ours.finish(exit_code=_EXIT[status])

    return Tracker(ours.id, log, finish)


def _mlflow(run: Tracked) -> Tracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  optional, and not among the tests' packages
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

    if not os.environ.get("MLFLOW_LOGGING_LEVEL"):
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
    client = MlflowClient()
    tags = {"mlflow.source.name": "sensorium"} | ({"group": run.group} if run.group else {})
    id = run.id or client.create_run(_experiment(client, run), run_name=run.name, tags=tags).info.run_id
    client.update_run(id, status="RUNNING")
    flat = {key: str(value) for key, value in _flat(run.config).items()}
    known = client.get_run(id).data.params
    params = [Param(_plain(key), value) for key, value in flat.items() if _plain(key) not in known]
    for i in range(0, len(params), _MOST_PARAMS):
        client.log_batch(id, params=params[i : i + _MOST_PARAMS])
    if known.get("budget", flat["budget"]) != flat["budget"]:  # a parameter is for ever
        client.set_tag(id, "budget", flat["budget"])

    def log(rows: Rows) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_plain(name), value, now, step) for step, row in rows for name, value in row.items()]
        for i in range(0, len(metrics), _MOST_METRICS):
            client.log_batch(id, metrics=metrics[i : i + _MOST_METRICS])

    def finish(scores: Mapping[str, float], status: Status, step: int) -> None:
        log([(step, scores)])
        client.set_terminated(id, status=status.upper())

    looks = [name for name in client.get_run(id).data.metrics if name.startswith("online/")]
    last, look = (
        max((one.step for name in names for one in client.get_metric_history(id, name)), default=-1)
        for names in (["loss"], looks)
    )
    return Tracker(id, log, finish, (last, look))


def _experiment(client: Any, run: Tracked) -> str:
    """The id of the experiment that the environment or the run names, made if need be."""
    if id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
    if (found := client.get_experiment_by_name(name)) is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except Exception:  # another run of this comparison has made it
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _plain(name: str) -> str:
    """A name that MLflow takes."""
    return " ".join(re.sub(r"[^\w./ -]", " ", name.replace("%", " percent")).split())


def _trackio(run: Tracked) -> Tracker:
    import trackio

    with redirect_stdout(io.StringIO()):
        ours = trackio.init(
            run.project, name=run.name, group=run.group, config=dict(run.config), embed=False,
            auto_log_cpu=False, auto_log_gpu=False,
        )  # fmt: skip
    if run.id is not None:
        ours.id = run.id  # it resumes by the name alone, which another run may have
    logged = -1

    def log(rows: Rows) -> None:
        nonlocal logged
        for step, scalars in rows:
            ours.log(dict(scalars), step=step)
            logged = step if "loss" in scalars else logged

    def finish(scores: Mapping[str, float], status: Status, step: int) -> None:
        if scores:
            ours.log(dict(scores), step=step)
        with redirect_stdout(io.StringIO()):
            ours.finish()
        if (last := _last_in_trackio(ours)) is not None and last[0] < logged:
            raise OSError("the last rows could not be stored")  # it says so in warnings alone

    return Tracker(ours.id, log, finish, _last_in_trackio(ours))


def _last_in_trackio(ours: Any) -> tuple[int, int] | None:
    """:attr:`Tracker.last` of a run in the database on this machine; None if it is elsewhere."""
    if os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"):
        return None
    with suppress(Exception):  # no documented interface
        from trackio.sqlite_storage import SQLiteStorage

        rows = SQLiteStorage.get_logs(ours.project, ours.name, run_id=ours.id)
        looks = [row["step"] for row in rows if any(name.startswith("online/") for name in row)]
        return max((row["step"] for row in rows if "loss" in row), default=-1), max(looks, default=-1)
    return None


def _tensorboard(run: Tracked) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    from sensorium.base.files import unlinked

    # Curves of the same steps from before it was tracked are replaced by those that are logged from the first step on.
    writer = SummaryWriter(str(unlinked(run.folder / "tensorboard")), purge_step=0 if run.id is None else None)
    flat = _flat(run.config)
    if run.id is None:
        lines = [f"| {name} | {value} |" for name, value in flat.items()]
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]), 0)

    def log(rows: Rows) -> None:
        for step, scalars in rows:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    def finish(scores: Mapping[str, float], status: Status, step: int) -> None:
        for name, value in scores.items():
            writer.add_scalar(name, value, step)
        if scores:
            own = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in flat.items()}
            writer.add_hparams(own, dict(scores), run_name=".")
        writer.close()

    return Tracker("tensorboard", log, finish)


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by names with dots."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat
