"""Runs from the command's side: a raised budget, and two runs into one folder."""

import json
import multiprocessing
import shutil

import pytest

import sensorium
from sensorium.base.lock import locked
from sensorium.errors import SensoriumError
from sensorium.runs import compare
from sensorium.runs.run import Run

DIGITS = {"data": "digits", "limit": 64, "batch_size": 8, "progress": False, "backbone": "vit-micro"}


def train(out, system="supervised", **changes):
    return sensorium.train(system, out=out, **({"budget": "2steps"} | DIGITS | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, judged."""
    run = train(tmp_path_factory.mktemp("finished") / "run")
    run.judge(labels="100%", label_seeds=1, finetune=False, progress=False)
    return run


@pytest.fixture
def own(finished, tmp_path):
    """A copy of it."""
    return Run(shutil.copytree(finished.folder, tmp_path / "run"))


def test_a_raised_run_says_so_everywhere(own):
    digest, judged = own.digest, (own.folder / "evaluation.json").read_bytes()
    backbone = (own.folder / "backbone" / "model.safetensors").read_bytes()
    run = train(own.folder, budget="4steps")
    assert run.outcome.notes[0] == "First trained for 2 steps, raised to 4 steps at step 2."
    assert run.info.budget == "4steps"
    assert run.digest != digest
    assert (own.folder / "backbone" / "model.safetensors").read_bytes() != backbone
    assert not (own.folder / "evaluation.json").exists()  # of the former weights
    former = own.folder / "former" / "2steps"
    assert (former / "evaluation.json").read_bytes() == judged
    assert {path.name for path in former.iterdir()} == {"evaluation.json", "outcome.json", "outcomes.npz"}
    assert train(own.folder, budget="4steps").outcome == run.outcome


def test_a_spent_budget_changes_nothing(own):
    before = {path.name: path.read_bytes() for path in own.folder.iterdir() if path.is_file()}
    with pytest.raises(SensoriumError, match=r"\(2 steps\) already, which --budget 1steps doesn't exceed"):
        train(own.folder, budget="1steps")
    assert {path.name: path.read_bytes() for path in own.folder.iterdir() if path.is_file()} == before


def test_a_comparison_goes_on_with_a_longer_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(
        compare, "_run_all", lambda todo, jobs, progress: [compare._child(job) for job in todo]
    )  # no processes
    (tmp_path / "book.txt").write_text("It was a long way to the sea, and they went on. " * 200)
    how = {"data": str(tmp_path / "book.txt"), "out": tmp_path / "out", "progress": False}
    method = "causal_lm,width=16,depth=1,length=16,batch_size=4"
    first = sensorium.compare([method], budget="2steps", **how).runs[0]
    second = sensorium.compare([method], budget="4steps", **how).runs[0]
    assert (first.steps, second.steps, first.notes) == (2, 4, ())
    assert second.notes[0] == "First trained for 2 steps, raised to 4 steps at step 2."
    assert first.scores[0].value != second.scores[0].value
    assert "raised to 4 steps" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"system": "simclr"}, "holds a run of supervised, not of simclr: give another --out, or --fresh"),
        ({"data": "scenes:64"}, "the data was different"),
        ({"limit": 72}, r"the data was different \(64 rows, now 72\)"),
        ({"batch_size": 16}, "batch_size was 8 and is now 16"),
        ({"seed": 3}, "seed was 0 and is now 3"),
    ],
)
@pytest.mark.parametrize("state", ["finished", "without a checkpoint"])
def test_another_run_into_the_same_folder_is_refused(own, changes, says, state):
    if state != "finished":  # killed before its first checkpoint
        for name in ("outcome.json", "model.safetensors", "last.ckpt", "previous.ckpt"):
            (own.folder / name).unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in own.folder.iterdir() if path.is_file()}
    with pytest.raises(SensoriumError, match=says) as caught:
        train(own.folder, **changes)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in own.folder.iterdir() if path.is_file()} == before


def test_a_run_without_a_checkpoint_starts_again(own):
    for name in ("outcome.json", "model.safetensors", "last.ckpt", "previous.ckpt"):
        (own.folder / name).unlink(missing_ok=True)
    assert train(own.folder, budget="3steps").info.budget == "3steps"


def _hold(folder, held, done):
    with locked(folder):
        held.set()
        done.wait(60)


def test_two_at_once_are_refused(own):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(own.folder, held, done))
    other.start()
    assert held.wait(60)
    try:
        for budget in ("2steps", "9steps"):
            with pytest.raises(
                SensoriumError, match=rf"another process \({other.pid} on .*\) trains in .*another --out"
            ):
                train(own.folder, budget=budget)
    finally:
        done.set()
        other.join()
    assert json.loads((own.folder / "run.json").read_text())["budget"] == "2steps"
