"""The table of runs."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

import sensorium
from sensorium.base.lock import locked
from sensorium.cli.main import main
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import VERSION
from sensorium.runs.listing import list_runs, table

DIGITS = {"data": "digits", "limit": 64, "batch_size": 8, "progress": False}


def made(
    folder, *, recipe="mae", data="photos", digest="100 aabbccdd 20 11223344", value=None, status="finished", **more
):
    """A run's folder by its descriptions alone."""
    folder.mkdir(parents=True)
    told = {"recipe": recipe, "budget": "10m", "data": {"path": data, "digest": digest}}
    (folder / "run.json").write_text(json.dumps(told))
    rows = [f"{i},{i * 6.0},{i * 8},0.5,0.1" for i in range(50)]
    (folder / "metrics.csv").write_text("\n".join(["step,seconds,seen,loss,lr", *rows, "50,9"]))
    if status == "finished":
        (folder / "outcome.json").write_text(json.dumps({"steps": 100}))
    if value is not None:
        scores = [
            {"name": "RankMe", "value": 5.0, "better": "higher", "n": 1, "counted": "run", "decides": False},
            {
                "name": "kNN",
                "value": value,
                "better": "higher",
                "n": 20,
                "counted": "test images",
                "share": True,
                **more,
            },
        ]
        (folder / "evaluation.json").write_text(json.dumps({"version": VERSION, "scores": scores}))
    return folder


def shown(rows, width=200):
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(rows))
    return capture.get()


def test_a_real_run(tmp_path):
    run = sensorium.train("supervised", out=tmp_path / "runs" / "one", **{**DIGITS, "budget": "2steps"})
    run.judge(labels="100%", label_seeds=1, finetune=False, progress=False)
    (row,) = list_runs([tmp_path])
    assert (row.system, row.budget, row.steps, row.status) == ("supervised", "2steps", 2, "finished")
    assert (row.data, row.digest) == ("digits", run.info.data.train_digest)
    assert row.digest.startswith("64 ")
    scores = [
        one for one in run.judge(labels="100%", label_seeds=1, finetune=False, progress=False).scores if one.decides
    ]
    assert (row.score, row.value) == (scores[0].name, scores[0].value)
    assert 0 <= row.age < 600


def test_best_first_within_the_same_data(tmp_path):
    made(tmp_path / "a", value=0.5)
    made(tmp_path / "b", value=0.9)
    made(tmp_path / "c")
    made(tmp_path / "d", value=0.7)
    other = made(tmp_path / "deep" / "er" / "e", digest="7 00000000 1 1", value=0.1)
    for path in other.iterdir():
        os.utime(path, (time.time() - 86400 * 3,) * 2)
    found = list_runs([tmp_path])
    assert [row.run.rpartition("/")[2] for row in found] == ["b", "d", "a", "c", "e"]
    assert found[0].shown == "kNN 90.0 %"
    text = shown(found)
    assert "photos aabbccdd" in text
    assert "3 days" in text


def test_lower_is_better_for_a_distance(tmp_path):
    for name, value in (("a", 3.0), ("b", 1.0)):
        made(tmp_path / name, value=value, better="lower", share=False)
    assert [row.value for row in list_runs([tmp_path])] == [1.0, 3.0]


def test_status(tmp_path):
    made(tmp_path / "stopped", status="")
    made(tmp_path / "compared", status="")
    (tmp_path / "compared" / "error.json").write_text('{"error": "the GPU\'s memory is full."}')
    made(tmp_path / "nan", status="")
    (tmp_path / "nan" / "nonfinite").mkdir()
    (tmp_path / "nan" / "nonfinite" / "step.json").write_text('{"told": "the loss is not a number at step 3"}')
    made(tmp_path / "resumed", status="")
    (tmp_path / "resumed" / "nonfinite").mkdir()
    (tmp_path / "resumed" / "nonfinite" / "step.json").write_text('{"told": "x"}')
    os.utime(tmp_path / "resumed" / "nonfinite" / "step.json", (1, 1))
    rows = {row.run.rpartition("/")[2]: row for row in list_runs([tmp_path])}
    assert {name: row.status for name, row in rows.items()} == {
        "stopped": "stopped", "compared": "failed", "nan": "failed", "resumed": "stopped",
    }  # fmt: skip
    assert (rows["stopped"].steps, rows["stopped"].spent) == (50, 294 / 600)
    assert "stopped at 49 %" in shown(list(rows.values()))
    assert rows["compared"].said == "the GPU's memory is full."
    assert "sensorium replay" in rows["nan"].said


def _hold(folder, held, done):
    with locked(folder):
        held.set()
        done.wait(60)


def test_a_run_in_training_is_running_and_is_not_disturbed(tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    folder = made(tmp_path / "a", status="")
    other = context.Process(target=_hold, args=(folder, held, done))
    other.start()
    assert held.wait(60)
    try:
        (row,) = list_runs([tmp_path])
        assert (row.status, row.steps) == ("running", 50)
        assert f"process {other.pid} on" in row.said
    finally:
        done.set()
        other.join()
    assert list_runs([tmp_path])[0].status == "stopped"
    (folder / ".lock").write_text(f"{os.getpid()} on {os.uname().nodename}\n")  # a number that is used again
    assert list_runs([tmp_path])[0].status == "stopped"


@pytest.mark.parametrize(
    "name, content, status, says",
    [
        ("run.json", b"{", "damaged", "run.json"),
        ("run.json", b"[1]", "damaged", "run.json"),
        ("run.json", b"{}", "damaged", "run.json: recipe"),
        ("run.json", b'{"recipe": 3, "data": {}}', "damaged", "run.json: recipe is 3, should be text"),
        ("run.json", b'{"recipe": "mae", "data": {"path": 1}}', "damaged", "data.path"),
        ("run.json", b"\xff\xfe\x00", "damaged", "run.json"),
        ("outcome.json", b'{"steps": "many"}', "damaged", "outcome.json: steps"),
        ("evaluation.json", b'{"scores": [{"name": "x"}]}', "finished", "evaluation.json: scores[0]"),
        ("evaluation.json", b"[" * 100_000, "finished", "evaluation.json"),
    ],
)
def test_a_damaged_run_is_a_row_that_says_why(tmp_path, name, content, status, says):
    made(tmp_path / "a", value=0.5)
    (made(tmp_path / "b") / name).write_bytes(content)
    rows = {row.run.rpartition("/")[2]: row for row in list_runs([tmp_path])}
    assert rows["a"].status == "finished"
    assert rows["b"].status == status
    assert says in rows["b"].said
    assert "\n" not in rows["b"].said
    assert "b: " in shown(list(rows.values()))


def test_damaged_tables_and_special_files(tmp_path):
    for i, content in enumerate(
        [b"", b"step\n", b"step,seconds\nx,y\n", b"\xff\xfe\n\xff\n", b"step,seconds,seen\n1e400,2,3\n"]
    ):
        (made(tmp_path / str(i), status="") / "metrics.csv").write_bytes(content)
    folder = made(tmp_path / "fifo", status="")
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")
    (tmp_path / "loop").symlink_to(tmp_path)
    rows = list_runs([tmp_path])
    assert len(rows) == 6
    assert {row.status for row in rows} == {"stopped", "damaged"}


def test_inputs_and_former_numbers_are_no_runs(tmp_path):
    run = made(tmp_path / "a")
    (run / "inputs" / "teacher").mkdir(parents=True)
    (run / "inputs" / "teacher" / "run.json").write_text("{}")
    assert [row.run for row in list_runs([tmp_path])] == [str(run)]
    assert [row.run for row in list_runs([run, tmp_path])] == [str(run)]


def test_default_folders_and_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["runs"])
    assert "No runs here" in capsys.readouterr().out
    made(tmp_path / "elsewhere" / "a")
    assert [row.run for row in list_runs()] == ["elsewhere/a"]
    made(tmp_path / "sensorium-runs" / "b")
    made(tmp_path / "sensorium-compare" / "c", value=0.3)
    assert {row.run for row in list_runs()} == {"sensorium-runs/b", "sensorium-compare/c"}
    main(["runs", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told[0]["run"] == "sensorium-compare/c"
    assert told[0]["value"] == 0.3
    with pytest.raises(SensoriumError, match="no such folder"):
        list_runs([tmp_path / "nothing"])


def test_a_hundred_runs_take_less_than_a_second_and_no_torch(tmp_path):
    for i in range(100):
        made(tmp_path / f"r{i}", value=i / 100)
    code = (
        "import sys, time; from pathlib import Path; from sensorium.runs.listing import list_runs\n"
        "before = time.process_time(); rows = list_runs([Path(sys.argv[1])]); took = time.process_time() - before\n"
        "assert len(rows) == 100 and 'torch' not in sys.modules; print(took)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0
