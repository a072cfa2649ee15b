"""Another budget: a run that was stopped or has finished goes on, and a killed one ends where one that was not does."""

import json

import pytest
import torch
from test_resume import stop_at
from training_cases import curve, run, same_weights, table, views

from sensorium.errors import SensoriumError


def test_a_finished_run_goes_on_with_a_longer_budget(tmp_path):
    run(tmp_path, budget="20steps", online=lambda m: {"x": 1.0}, online_every="25%")
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)
    outcome = run(tmp_path, budget="40steps", online=lambda m: {"x": 1.0}, online_every="25%")
    assert (outcome.status, outcome.steps) == ("finished", 40)
    assert outcome.notes[0] == "First trained for 20 steps, raised to 40 steps at step 20."
    rates = [float(row["lr"]) for row in table(tmp_path / "metrics.csv")]
    assert rates[:20] == pytest.approx([0.02 * (1 - 0.9 * k / 20) for k in range(20)])
    assert rates[20:] == pytest.approx([0.02 * (1 - 0.9 * k / 40) for k in range(20, 40)])
    assert [row["step"] for row in table(tmp_path / "online.csv")] == ["0", "5", "10", "15", "20", "30", "40"]
    former = json.loads((tmp_path / "former" / "20steps" / "outcome.json").read_text())
    assert (former["steps"], former["fingerprint"]["budget"]) == (20, "20steps")
    assert before["sensorium"]["settings"]["budget"] == "20steps"
    assert run(tmp_path, budget="40steps") == outcome  # and returns at once from now on


def test_the_state_goes_on_as_it_was(tmp_path):
    """The first step after it is that of an uninterrupted run whose schedule jumps there."""
    jump = lambda f: 1 - 0.9 * (2 * f if f < 0.5 else f)  # noqa: E731
    rates = {"schedule": jump, "method": _untimed()}
    run(tmp_path / "one", budget="12steps", **rates)
    run(tmp_path / "two", budget="6steps", method=_untimed())
    run(tmp_path / "two", budget="12steps", method=_untimed())
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    assert same_weights(tmp_path / "one", tmp_path / "two")


def _untimed():
    """The method of these tests without its own dependence on the fraction spent."""
    from training_cases import Tiny

    class Untimed(Tiny):
        def before_step(self, at):
            pass

    torch.manual_seed(7)
    return Untimed()


@pytest.mark.parametrize("at", [13, 14, 22])
def test_a_raised_run_that_is_stopped_resumes_exactly(tmp_path, at):
    for name in ("whole", "cut"):
        run(tmp_path / name, budget="12steps")
    run(tmp_path / "whole", budget="24steps")
    made = run(tmp_path / "cut", budget="24steps", views=stop_at(at - 12))
    assert (made.status, made.steps) == ("interrupted", at + 1)
    assert not (tmp_path / "cut" / "outcome.json").exists()
    outcome = run(tmp_path / "cut", budget="24steps")
    assert outcome.notes[0] == "First trained for 12 steps, raised to 24 steps at step 12."
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_a_raised_run_that_is_killed_before_its_first_checkpoint(tmp_path):
    class Killed(Exception):
        pass

    def killing(fields, draw, made=iter(range(99))):
        if next(made) == 3:
            raise Killed
        return views(fields, draw)

    for name in ("whole", "cut"):
        run(tmp_path / name, budget="12steps")
    run(tmp_path / "whole", budget="24steps")
    with pytest.raises(Killed):
        run(tmp_path / "cut", budget="24steps", views=killing)
    assert run(tmp_path / "cut", budget="24steps").steps == 24
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_a_stopped_run_is_raised_twice_and_lowered_to_what_is_left(tmp_path):
    run(tmp_path, budget="20steps", views=stop_at(4))
    run(tmp_path, budget="40steps", views=stop_at(4))
    outcome = run(tmp_path, budget="30steps")
    assert outcome.steps == 30
    assert outcome.notes[0] == (
        "First trained for 20 steps, raised to 40 steps at step 5, changed to 30 steps at step 10."
    )


def test_a_budget_of_another_kind_counts_what_was_spent(tmp_path):
    run(tmp_path, budget="10steps")
    outcome = run(tmp_path, budget="240images")  # 12 a step
    assert outcome.steps == 20
    assert outcome.notes[0] == "First trained for 10 steps, changed to 240 images at step 10."
    with pytest.raises(SensoriumError, match=r"has been trained for .* \(20 steps\) already.*--out.*--fresh"):
        run(tmp_path, budget="0.0001s")


def test_a_budget_that_is_spent_is_refused_and_nothing_is_touched(tmp_path):
    run(tmp_path, budget="10steps")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for budget in ("5steps", "120images", "2epochs"):
        with pytest.raises(SensoriumError, match=rf"\(10 steps\) already, which --budget {budget} doesn't exceed") as e:
            run(tmp_path, budget=budget)
        assert "\n" not in str(e.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_former_budget_is_no_way_back(tmp_path):
    """The checkpoint at the end of the former budget is still there, and yet it is not taken."""
    run(tmp_path, budget="10steps")
    run(tmp_path, budget="20steps", views=stop_at(3))
    assert (tmp_path / "previous.ckpt").is_file()
    with pytest.raises(SensoriumError, match=r"\(14 steps\) already"):
        run(tmp_path, budget="10steps")
    assert run(tmp_path, budget="20steps").steps == 20


def test_a_finished_run_without_its_checkpoint_does_not_start_again(tmp_path):
    run(tmp_path, budget="4steps")
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    with pytest.raises(SensoriumError, match="without a checkpoint"):
        run(tmp_path, budget="8steps")
    assert run(tmp_path, budget="4steps").steps == 4


def test_another_setting_is_refused_with_a_longer_budget_too(tmp_path):
    run(tmp_path, budget="4steps")
    with pytest.raises(SensoriumError, match="budget was 4steps and is now 8steps; seed was 0 and is now 1"):
        run(tmp_path, budget="8steps", seed=1)


@pytest.mark.parametrize("budgets", ["20steps", [["20steps"]], [["20 years", 0]], [["20steps", 99]], [[1, 2]]])
def test_damaged_budgets_are_no_checkpoint(tmp_path, budgets):
    run(tmp_path, budget="20steps", views=stop_at(4), checkpoint_every=0.0)
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    found["sensorium"]["budgets"] = budgets
    torch.save(found, tmp_path / "last.ckpt")
    outcome = run(tmp_path, budget="20steps")
    assert any("last.ckpt is damaged" in note for note in outcome.notes)
