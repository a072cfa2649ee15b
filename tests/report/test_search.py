"""A search among methods: who is trained for how long, what is stopped and said, and that a stopped search goes on."""

import json
from types import SimpleNamespace

import pytest

from sensorium.errors import SensoriumError
from sensorium.judge.score import Score
from sensorium.runs import search
from sensorium.runs.options import Judging, RunOptions
from sensorium.runs.results import Data, Request, RunResult
from sensorium.runs.search import judged_share, ladder, search_all, share

FINAL = {"mae": 0.40, "simclr": 0.70, "dino": 0.62, "supervised": 0.66}


@pytest.mark.parametrize(
    "methods, sizes",
    [(1, [1]), (2, [2]), (3, [3]), (4, [4, 2]), (7, [7, 3]), (9, [9, 3]), (15, [15, 5, 2]), (40, [40, 14, 5, 2])],
)
def test_a_third_goes_on(methods, sizes):
    assert ladder(methods) == sizes


def test_the_rungs_use_up_the_budget():
    sizes, left, overhead = [15, 5, 2], 3600.0, 30.0
    first = share(sizes, left, overhead)
    trained = sum(size * first * 3**i for i, size in enumerate(sizes))
    assert trained + overhead * sum(sizes) == pytest.approx(left)


@pytest.mark.parametrize("sizes, former", [([21, 7, 3], 0.0), ([3], 114.0)])
def test_the_whole_evaluation_of_the_last_is_kept_for_it(sizes, former):
    """Of three it takes half of their training, and of the baselines as long as of one."""
    first = share(sizes, 3600.0, 30.0, judged=0.5, former=former)
    trained = sum(size * first * 3**i for i, size in enumerate(sizes))
    last = former + sum(first * 3**i for i in range(len(sizes)))
    assert trained + 30.0 * sum(sizes) + (3 + 1) * last / 2 == pytest.approx(3600)


def test_only_encoders_of_pictures_are_fine_tuned():
    assert judged_share(["causal_lm", "mae,lr=1e-3"], Judging()) == 0.5
    assert judged_share(["mine.py:recipe"], Judging()) == 0.5
    assert judged_share(["causal_lm,width=64"], Judging()) == 0
    assert judged_share(["mae"], Judging(finetune=False)) == 0


@pytest.fixture
def trained(monkeypatch):
    """In place of processes: accuracies that rise with the time, on a clock that goes on by what was asked for."""
    now, calls, log = [0.0], [], {}

    def train_all(methods, options, judging, *, backbone=None, times=1):
        seconds = float(options.budget.removesuffix("s"))
        calls.append((tuple(methods), seconds, judging))
        if len(calls) in log.get("stop at", ()):
            log["stop at"] = ()
            raise KeyboardInterrupt
        runs = []
        for name in methods:
            now[0] += max(0.0, seconds - log.get(name, 0.0)) + (10 if log.get(name, 0.0) < seconds else 0)
            now[0] += seconds / 2 if judging.finetune and log.get(name, 0.0) < seconds else 0.0
            log[name] = max(seconds, log.get(name, 0.0))
            value = FINAL[name] * seconds / (seconds + 20)
            status = "failed" if name in log.get("failing", ()) else "finished"
            scores = (Score("top-1", value, "higher", 1000, "images", share=True, error=0.01),)
            runs.append(RunResult(name, name, status, scores=scores if status == "finished" else ()))
        return SimpleNamespace(ready=None), search.results_now(Data("x"), Request(options.budget, "100%", 0, 3), runs)

    monkeypatch.setattr(search, "train_all", train_all)
    monkeypatch.setattr(search, "prepared", lambda *given: None)

    def concluded(results, *rest):
        longest = max(log[name] for name in FINAL if name in log)
        now[0] += longest / 2 if log.get("concluded") != longest else 0.0
        log["concluded"] = longest
        return results

    monkeypatch.setattr(search, "concluded", concluded)
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])
    return SimpleNamespace(calls=calls, log=log, now=now)


def asked(tmp_path, budget="10m", **more):
    return RunOptions(out=tmp_path / "out", budget=budget, quiet=True, **more), Judging()


def test_the_worst_are_stopped_and_the_best_win(trained, tmp_path):
    results, folder = search_all(list(FINAL), *asked(tmp_path))
    (first, seconds, quick), (second, longer, full) = trained.calls
    assert set(first) == set(FINAL)
    assert set(second) == {"simclr", "supervised"}
    assert longer > 3 * seconds
    assert 570 <= trained.now[0] <= 605
    assert (quick.finetune, quick.labels, full) == (False, "100%", Judging())
    assert [run.name for run in results.runs] == list(FINAL)
    assert results.winner.name == "simclr"
    (note,) = next(run.notes for run in results.runs if run.name == "mae")
    assert note.startswith("mae: stopped after ")
    assert "% , where simclr had" in note.replace("%,", "% ,")
    assert results.asked.search
    assert results.asked.budget == "10m"
    assert folder == tmp_path / "out"


@pytest.mark.parametrize("at", [1, 2])
def test_a_stopped_search_goes_on(trained, tmp_path, at):
    trained.log["stop at"] = (at,)
    with pytest.raises(KeyboardInterrupt):
        search_all(list(FINAL), *asked(tmp_path))
    before = trained.calls[:]
    (tmp_path / "out" / "simclr").mkdir(exist_ok=True)
    (tmp_path / "out" / "simclr" / "run.json").touch()  # it had begun
    results, _ = search_all(list(FINAL), *asked(tmp_path))
    again = trained.calls[len(before) :]
    # the rung that was stopped has its methods and its budget; those stopped before are read with theirs
    assert before[-1][:2] in [call[:2] for call in again]
    if at == 2:
        assert again[0][1] == before[0][1]
        assert set(again[0][0]) == {"mae", "dino"}
    assert results.winner.name == "simclr"
    assert all(run.notes for run in results.runs if run.name in ("mae", "dino"))


def test_a_search_that_is_over_is_read_and_not_gone_on_with(trained, tmp_path):
    first, folder = search_all(list(FINAL), *asked(tmp_path))
    kept, before, calls = (folder / search.FILE).read_text(), trained.now[0], len(trained.calls)
    again, _ = search_all(list(FINAL), *asked(tmp_path))
    assert trained.now[0] == before
    assert [call[1] for call in trained.calls[calls:]] == [call[1] for call in trained.calls[:calls]]
    assert (folder / search.FILE).read_text() == kept
    assert [(run.name, run.notes) for run in again.runs] == [(run.name, run.notes) for run in first.runs]


def test_a_search_that_trained_nothing_leaves_no_plan(trained, tmp_path):
    trained.log["stop at"] = (1,)  # as where its data can't be read
    with pytest.raises(KeyboardInterrupt):
        search_all(["simclr", "mae", "dino"], *asked(tmp_path, "60m"))
    search_all(list(FINAL), *asked(tmp_path, "10m"))
    assert trained.now[0] <= 605


def test_a_search_of_which_nothing_finishes_ends(trained, tmp_path):
    trained.log["failing"] = tuple(FINAL)
    for _ in range(2):
        results, _ = search_all(list(FINAL), *asked(tmp_path))
        assert not results.finished
        assert len(results.runs) == len(FINAL)


def test_a_method_that_fails_is_stopped(trained, tmp_path):
    trained.log["failing"] = ("simclr",)
    results, _ = search_all(list(FINAL), *asked(tmp_path))
    assert results.winner.name == "supervised"
    assert "did not finish" in next(run.notes[-1] for run in results.runs if run.name == "simclr")


def test_what_cannot_be_searched_is_refused(trained, tmp_path):
    for budget, said in (("500steps", "must be a time"), ("1m", "too short for 4 methods; give ")):
        with pytest.raises(SensoriumError, match=said):
            search_all(list(FINAL), *asked(tmp_path, budget))
    search_all(list(FINAL), *asked(tmp_path))
    with pytest.raises(SensoriumError, match="another --out"):
        search_all(["simclr", "dino"], *asked(tmp_path))
    kept = json.loads((tmp_path / "out" / search.FILE).read_text())
    kept["rungs"][0]["seconds"] = "much"
    (tmp_path / "out" / search.FILE).write_text(json.dumps(kept))
    with pytest.raises(SensoriumError, match=r"search\.json.*seconds"):
        search_all(list(FINAL), *asked(tmp_path))
