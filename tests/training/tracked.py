"""What trackers wrote, read back from their own files: each a list of tracked runs."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Read:
    """A tracked run: ``rows`` (step, scalars) in the order in which they were logged; ``state``: the library's own."""

    id: str
    name: str
    project: str
    group: str | None
    config: dict[str, Any]
    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    state: Any = None

    def column(self, name: str) -> list[tuple[int, float]]:
        return [(step, row[name]) for step, row in self.rows if name in row]


def wandb_runs(folder: Path) -> list[Read]:
    """Of ``wandb/offline-run-*``, in the order of their beginning; those of one id are one run, as `wandb sync` makes it."""
    runs: dict[str, Read] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in _records(path.read_bytes()):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                told = record.run
                read = runs.setdefault(
                    told.run_id, Read(told.run_id, told.display_name, told.project, told.run_group or None, {})
                )
            if kind in ("run", "config"):
                changed = record.run.config if kind == "run" else record.config
                for one in changed.update:
                    read.config["/".join(one.nested_key) or one.key] = json.loads(one.value_json)
            elif kind == "history":
                row = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
                step = int(row.pop("_step"))
                read.rows.append((step, {k: float(v) for k, v in row.items() if not k.startswith("_")}))
            elif kind == "summary":
                for one in record.summary.update:
                    read.scores["/".join(one.nested_key) or one.key] = json.loads(one.value_json)
            elif kind == "exit":
                read.state = record.exit.exit_code
    return list(runs.values())


def _records(raw: bytes) -> Any:
    """The log format of LevelDB: blocks of 32 KiB, each record in pieces with a checksum, a length and a kind."""
    from wandb.proto import wandb_internal_pb2

    at, piece = 7, b""
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        if kind == 0:
            at += left
            continue
        piece += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            piece = b""
            yield record


def mlflow_runs(uri: str) -> list[Read]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = []
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            read = Read(
                run.info.run_id, run.info.run_name, experiment.name, run.data.tags.get("group"), dict(run.data.params)
            )
            steps: dict[int, dict[str, float]] = {}
            for name in run.data.metrics:
                history = client.get_metric_history(read.id, name)
                assert len({one.step for one in history}) == len(history), f"{name} was logged twice at a step"
                for one in history:
                    (read.scores if name.startswith("scores/") else steps.setdefault(one.step, {}))[name] = one.value
            read.rows = sorted(steps.items())
            read.state = run.info.status
            found.append(read)
    return found


def trackio_runs() -> list[Read]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = []
    for project in SQLiteStorage.get_projects():
        for run in trackio.Api().runs(project):
            config = run.config or {}
            read = Read(run.id, run.name, project, config.get("_Group"), config)
            for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id):
                values = {k: float(v) for k, v in row.items() if k not in ("step", "timestamp")}
                if any(name.startswith("scores/") for name in values):
                    read.scores |= values
                else:
                    read.rows.append((row["step"], values))
            found.append(read)
    return found


def tensorboard_run(folder: Path) -> Read:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    read = Read("tensorboard", folder.name, "", None, {})
    steps: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        if name.startswith("scores/"):
            read.scores[name] = points[-1].value
            continue
        assert len({one.step for one in points}) == len(points), f"{name} was logged twice at a step"
        for one in points:
            steps.setdefault(one.step, {})[name] = one.value
    read.rows = sorted(steps.items())
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    read.config = dict(line.strip("| ").split(" | ") for line in text.splitlines()[2:] if line.count("|") == 3)
    return read
