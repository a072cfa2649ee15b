"""Trackers: what they wrote, read back by their own readers, is the run's record; and nothing that they do changes a run."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tracked
from tracked import Read

from sensorium.errors import SensoriumError
from sensorium.recipe.info import read_info
from sensorium.runs.compare import compare
from sensorium.runs.train import train
from sensorium.training import track, trackers

LIBRARIES = [name for name in ("wandb", "mlflow", "trackio", "tensorboard") if trackers.installed(name)]
SECRET = "0123456789abcdef0123456789abcdef01234567"
BASE = {"data": "digits", "limit": 64, "budget": "24steps", "batch_size": 8, "progress": False}


def needs(name):
    return pytest.mark.skipif(name not in LIBRARIES, reason=f"{name} isn't installed")


EACH = [pytest.param(name, marks=needs(name)) for name in ("wandb", "mlflow", "trackio", "tensorboard")]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """All of them write below one folder, without network; trackio reads its variable when it is imported."""
    home, former = tmp_path_factory.mktemp("trackers"), dict(os.environ)
    os.environ |= {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(home),
        "WANDB_API_KEY": SECRET,
        "TRACKIO_DIR": f"{home}/trackio",
    }
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"}
    yield home
    os.environ.clear()
    os.environ.update(former)


def read(name: str, home: Path, folder: Path) -> list[Read]:
    """The tracked runs of this name."""
    if name == "tensorboard":
        return [tracked.tensorboard_run(folder)]
    runs = {"wandb": lambda: tracked.wandb_runs(home), "trackio": tracked.trackio_runs}
    runs["mlflow"] = lambda: tracked.mlflow_runs(f"sqlite:///{home}/mlflow.db")
    return [one for one in runs[name]() if one.name == folder.name]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_record(one: Read, folder: Path, rounding: float = 0.0) -> None:
    """Each row of both tables, once, in the order of its steps."""
    rows, looks = table(folder / "metrics.csv"), table(folder / "online.csv")
    for name in ("loss", "lr", "seconds", "seen", "top1"):
        wanted = [(int(row["step"]), pytest.approx(float(row[name]), rel=rounding, abs=0)) for row in rows]
        assert one.column(name) == wanted, name
    for name in ("knn_top1", "rank"):
        wanted = [(int(row["step"]), pytest.approx(float(row[name]), rel=rounding, abs=0)) for row in looks]
        assert one.column(f"online/{name}") == wanted, name


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "plain"
    train("supervised", **BASE, out=folder)
    return folder


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """The same run, tracked by all that are installed, and judged."""
    folder = tmp_path_factory.mktemp("all") / "everywhere"
    run = train("supervised", **BASE, out=folder, track=LIBRARIES)
    track.add_scores(LIBRARIES, folder, {"scores/kNN": 0.75, "scores/kNN/error": 0.05, "scores/kNN, 10%/pixels": 0.5})
    assert run.finished
    return folder


@pytest.mark.parametrize("name", EACH)
def test_what_a_tracker_holds_is_the_record_of_the_run(name, offline, everywhere):
    (one,) = read(name, offline, everywhere)
    same_record(one, everywhere, 1e-6 if name == "tensorboard" else 0.0)  # it holds float32
    info = read_info(everywhere)
    assert str(one.config["seed"]) == "0"
    assert one.config["budget"] == "24steps"
    assert one.config["data_digest"] == info.data.digest
    assert str(one.config["lr"]) == str(info.settings["lr"].value)
    source = one.config["source"]["lr"] if name in ("wandb", "trackio") else one.config["source.lr"]
    assert source == info.settings["lr"].source
    key = "scores/kNN 10 percent/pixels" if name == "mlflow" else "scores/kNN, 10%/pixels"
    assert [one.scores[k] for k in ("scores/kNN", "scores/kNN/error", key)] == pytest.approx([0.75, 0.05, 0.5])
    if name != "tensorboard":
        assert (one.project, one.group) == ("sensorium", None)
    if name in ("wandb", "mlflow"):
        assert one.state == {"wandb": 0, "mlflow": "FINISHED"}[name]
    assert json.loads((everywhere / "tracked.json").read_text())[name]["id"] == one.id


def test_a_run_has_the_same_numbers_with_and_without_trackers(plain, everywhere):
    assert (plain / "model.safetensors").read_bytes() == (everywhere / "model.safetensors").read_bytes()
    for name in ("metrics.csv", "online.csv"):
        one, other = (
            [{k: v for k, v in row.items() if k != "seconds"} for row in table(folder / name)]
            for folder in (plain, everywhere)
        )
        assert one == other


def test_a_finished_run_is_not_tracked_twice(offline, everywhere):
    before = {name: read(name, offline, everywhere) for name in LIBRARIES}
    train("supervised", **BASE, out=everywhere, track=LIBRARIES)
    track.add_scores(
        LIBRARIES, everywhere, {"scores/kNN": 0.75, "scores/kNN/error": 0.05, "scores/kNN, 10%/pixels": 0.5}
    )
    assert {name: read(name, offline, everywhere) for name in LIBRARIES} == before


def test_no_key_of_the_environment_is_in_a_run(everywhere):
    for path in everywhere.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_run_that_was_trained_without_a_tracker_is_sent_whole(tmp_path, offline):
    folder = tmp_path / "late"
    train("supervised", **BASE | {"budget": "8steps"}, out=folder)
    train("supervised", **BASE, out=folder, track=LIBRARIES)
    for name in LIBRARIES:
        (one,) = read(name, offline, folder)
        same_record(one, folder, 1e-6 if name == "tensorboard" else 0.0)


def program(folder: Path, *words: str) -> list[str]:
    asked = ["train", "supervised", "--data", "digits", "--limit", "64", "--batch-size", "8", "--budget", "160steps"]
    return [
        sys.executable,
        "-m",
        "sensorium",
        *asked,
        "--out",
        str(folder),
        *(f"--track={name}" for name in LIBRARIES),
        *words,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def stopped(folder: Path, number: int) -> tuple[int, str]:
    """Start a run and send it a signal after a checkpoint and some rows: its code and its output."""
    with subprocess.Popen(
        program(folder), env=environment(), stdout=-1, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.time() + 300
        while process.poll() is None and time.time() < deadline:
            rows = (folder / "metrics.csv").read_text().count("\n") if (folder / "metrics.csv").exists() else 0
            kept = json.loads((folder / "tracked.json").read_text()) if (folder / "tracked.json").exists() else {}
            if (folder / "last.ckpt").exists() and rows > 25 and all(one["step"] > 0 for one in kept.values()):
                break
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=200)[0]
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_with_the_same_tracked_run(number, tmp_path, offline):
    folder = tmp_path / f"stopped-by-{number}"
    code, said = stopped(folder, number)
    before = json.loads((folder / "tracked.json").read_text())
    assert code == (-9 if number == signal.SIGKILL else 130), said
    if number == signal.SIGINT:
        assert "stopped; the same command resumes it." in said
        for name, state in (("wandb", 255), ("mlflow", "KILLED")):
            assert name not in LIBRARIES or [one.state for one in read(name, offline, folder)] == [state]
    done = subprocess.run(program(folder), env=environment(), capture_output=True, text=True, timeout=300, check=True)
    assert re.fullmatch(r"stopped-by-\d+: 160 steps, .* finished\n .*model.safetensors\n", done.stdout), done.stdout
    if number == signal.SIGKILL and re.search(r"run ID \S+ is in use", done.stderr):
        pytest.skip("wandb still holds the id of the run that was killed, as it does on a busy machine")
    assert not re.search(r"wandb|mlflow|trackio|W&B|Warning", done.stderr), done.stderr
    for name in LIBRARIES:
        (one,) = read(name, offline, folder)
        steps = [step for step, _ in one.column("loss")]
        if name == "wandb" and number == signal.SIGKILL:  # what it had not written in its last second is lost
            lost = set(range(160)) - set(steps)
            assert len(steps) == len(set(steps)) == 160 - len(lost)
            assert lost <= set(range(before["wandb"]["step"] + 1)), lost
        else:
            assert steps == list(range(160)), name
        if number == signal.SIGINT:  # of those that were killed, seconds differ where they were taken again
            assert one.state == {"wandb": 0, "mlflow": "FINISHED"}.get(name)


def test_a_library_that_is_missing_is_refused_before_anything_is_done(tmp_path, monkeypatch, command):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    code, out, err = command(
        "train", "supervised", "--data", "digits", "--track", "wandb", "--out", str(tmp_path / "r")
    )
    assert (code, out) == (1, "")
    assert err.strip() == 'error: --track wandb: wandb isn\'t installed: pip install "sensorium[track]"'
    assert not (tmp_path / "r").exists()


def test_a_folder_that_a_library_wrote_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "neptune").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not trackers.installed("neptune")


def test_an_unknown_tracker_is_refused(command):
    code, _, err = command("compare", "supervised", "--track", "neptune")
    assert code == 2
    assert "neptune" in err
    with pytest.raises(SensoriumError, match="choose among wandb, mlflow, trackio, tensorboard"):
        train("supervised", "digits", track="neptune")


class Library:
    """A tracker that a test makes: it keeps what it gets, and ``log`` may do anything before."""

    def __init__(self, log=lambda rows: None, start=lambda: None, finish=lambda: None):
        self.rows, self.ends, self._log, self._start, self._finish = [], [], log, start, finish

    def begin(self, name, run):
        self._start()
        return trackers.Tracker("one", self.log, self.finish)

    def log(self, rows):
        self._log(rows)
        self.rows += [step for step, _ in rows]

    def finish(self, scores, status, step):
        self.ends.append(status)
        self._finish()


def no():
    raise ConnectionError("https://user:password@host is gone")


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_changes_nothing(at, tmp_path, monkeypatch, capsys, plain):
    library = Library(**{at: (lambda rows: no()) if at == "log" else no})
    monkeypatch.setattr(track, "start", library.begin)
    monkeypatch.setattr(track, "_EVERY", 0.01)
    folder = tmp_path / "failing"
    assert train("supervised", **BASE, out=folder, track="tensorboard").finished
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "Warning: tensorboard no longer tracks failing, which goes on without it. ConnectionError: https://host is gone"
    )
    assert library.ends == {"start": [], "log": ["failed"], "finish": ["finished"]}[at]
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_tracker_that_hangs_holds_nothing_up(at, tmp_path, monkeypatch, capsys, plain):
    gone = threading.Event()
    library = Library(**{at: (lambda rows: gone.wait(60)) if at == "log" else (lambda: gone.wait(60))})
    monkeypatch.setattr(track, "start", library.begin)
    for name, seconds in (("_EVERY", 0.01), ("_STARTING", 0.2), ("_FINISHING", 0.2)):
        monkeypatch.setattr(track, name, seconds)
    folder = tmp_path / "hanging"
    assert train("supervised", **BASE, out=folder, track="tensorboard").finished
    gone.set()
    assert capsys.readouterr().err.count("no longer tracks hanging") == 1
    assert (folder / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_tracker_that_is_slower_than_the_training_is_left(tmp_path, monkeypatch, capsys):
    gone = threading.Event()
    library = Library(log=lambda rows: gone.wait(60))
    monkeypatch.setattr(track, "start", library.begin)
    monkeypatch.setattr(track, "_MOST_WAITING", 3)
    folder = tmp_path / "slow"
    train("supervised", **BASE, out=folder)
    following = track.Tracking(["tensorboard"], folder)
    following.begin()  # all rows of the tables find room
    assert capsys.readouterr().err == ""
    for step in range(24, 200):
        following.log([{"step": step, "seconds": 9.0, "seen": 1, "loss": 1.0}])
    assert capsys.readouterr().err.count("it is slower than the training") == 1
    gone.set()
    following.finish("finished")


def test_an_error_of_the_run_is_the_state_of_the_tracked_run(tmp_path, monkeypatch):
    library = Library()
    monkeypatch.setattr(track, "start", library.begin)
    for error, status in ((KeyboardInterrupt, "killed"), (SensoriumError, "failed")):
        (tmp_path / status).mkdir()
        train("supervised", **BASE | {"budget": "1step"}, out=tmp_path / status)
        with pytest.raises(error), track.tracked(["tensorboard"], tmp_path / status) as one:
            one.begin()
            raise error("!")
        assert library.ends[-1] == status


def test_a_damaged_account_of_what_was_tracked_begins_anew(tmp_path, monkeypatch):
    library = Library()
    monkeypatch.setattr(track, "start", library.begin)
    for damage in ("{", '{"tensorboard": {"id": "../x"}}', '{"tensorboard": {"id": "x", "step": "y"}}'):
        (tmp_path / "tracked.json").write_text(damage)
        assert track.Tracking(["tensorboard"], tmp_path).kept == {}


def test_of_several_processes_the_first_one_tracks(tmp_path, offline):
    folder = tmp_path / "two"
    train("supervised", **BASE, out=folder, track=LIBRARIES, devices=2)
    for name in LIBRARIES:
        (one,) = read(name, offline, folder)
        same_record(one, folder, 1e-6 if name == "tensorboard" else 0.0)


@pytest.mark.slow
def test_runs_of_a_comparison_are_grouped_and_have_its_scores(tmp_path, offline):
    out = tmp_path / "which one?"
    asked = {name: BASE[name] for name in ("data", "limit", "progress")} | {"budget": "8steps", "finetune": False}
    results = compare(["supervised", "simclr"], **asked, out=out, jobs=2, seeds=2, track=LIBRARIES, image_size=8)
    assert len(results.finished) == 2
    scores = json.loads((out / "seed-1" / "results.json").read_text())["runs"][0]["scores"]
    knn = next(score for score in scores if score["name"] == "kNN")
    for name in set(LIBRARIES) - {"tensorboard"}:
        every = {"wandb": lambda: tracked.wandb_runs(offline), "trackio": tracked.trackio_runs}
        every["mlflow"] = lambda: tracked.mlflow_runs(f"sqlite:///{offline}/mlflow.db")
        mine = {one.name: one for one in every[name]() if one.project == "which-one-"}
        assert set(mine) == {"supervised", "simclr", "seed-1/supervised", "seed-1/simclr"}
        assert {one.group for one in mine.values()} == {"which-one-"}
        found = mine["seed-1/supervised"].scores
        assert found["scores/kNN"] == knn["value"]
        assert found["scores/kNN/error"] == knn["error"]
        assert knn["baselines"]
        assert {title: found[f"scores/kNN/{title}"] for title in knn["baselines"]} == knn["baselines"]
    assert SECRET not in (out / "report.html").read_text()
    for path in out.rglob("*.json"):
        assert SECRET not in path.read_text()


def test_trackers_are_imported_only_when_they_are_asked_for():
    code = "import sys, sensorium.cli.main, sensorium.runs.train; print([m for m in ('wandb', 'mlflow', 'trackio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
