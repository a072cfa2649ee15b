"""The benchmark of few labels: which pictures it takes, what it compares, how it ends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.judge.score import Score
from sensorium.runs.results import Data, Results, RunResult, write_results

few_labels = pytest.importorskip("benchmarks.few_labels", reason="benchmarks are seen from the repository's folder")


def run(name: str, labels: bool = False, **scores: float) -> RunResult:
    """Scores by name, with ``_`` for what a name has beside letters."""
    names = {"probe": "linear, 1%", "tuned": "fine-tuned, 1%", "head": few_labels.HEAD, "whole": "linear, 100%"}
    found = tuple(Score(names[key], value, "higher", 400, "test images", share=True) for key, value in scores.items())
    return RunResult(name, name, by_labels=labels, scores=found)


def results(*runs: RunResult) -> Results:
    return Results(2, Data("cifar10"), runs)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two classes, 300 and 100 pictures, each of its own number."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    labels = np.repeat([0, 1], [300, 100])
    images = np.arange(400, dtype=np.uint16)[:, None, None, None].repeat(3, 3)
    np.savez(folder / "train.npz", images=images, labels=labels, class_names=["a", "b"])
    np.savez(folder / "test.npz", images=images[:7], labels=labels[:7], class_names=["a", "b"])
    monkeypatch.setattr(few_labels, "DATA", tmp_path / "data")
    return tmp_path


def test_a_hundredth_of_each_class_and_the_whole_test_set(data: Path) -> None:
    made = np.load(few_labels.few(data / "out", seed=0), allow_pickle=False)
    assert made["labels"].tolist() == [0, 0, 0, 1]
    numbers = made["images"][:, 0, 0, 0]
    assert (numbers[:3] < 300).all()
    assert numbers[3] >= 300
    assert made["test_images"].shape[0] == len(made["test_labels"]) == 7
    other = np.load(few_labels.few(data / "other", seed=1), allow_pickle=False)
    assert other["images"][:, 0, 0, 0].tolist() != numbers.tolist()


def test_the_best_of_each_side_counts_and_labels_do_not_compete() -> None:
    table = results(
        run("simclr", probe=0.5, tuned=0.47), run("mae", tuned=0.4), run("supervised", labels=True, probe=0.9)
    )
    scratch = results(
        run("supervised", labels=True, head=0.31), run("supervised,crop_min=0.3", labels=True, whole=0.33)
    )
    said = (
        "with 1 % of the labels, at equal total time: 50.0 (simclr, linear, 1%) against 33.0 (supervised,crop_min=0.3, linear, 100%), "
        "a lead of 17.0 points"
    )
    assert few_labels.against(table, scratch) == (True, said)
    assert not few_labels.against(table, results(run("supervised", head=0.43)))[0]
    with pytest.raises(SystemExit, match="none of the runs has"):
        few_labels.best((), ("kNN",))


@pytest.mark.parametrize("head, status", [(0.3, 0), (0.45, 1)])
def test_the_command_reads_the_table_and_trains_from_scratch(
    head: float, status: int, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: dict[str, Any] = {}

    def compare(methods: list[str], path: str, **keywords: Any) -> Results:
        asked.update(keywords, methods=methods, path=path)
        return results(run("supervised", labels=True, head=head))

    monkeypatch.setattr(few_labels, "compare", compare)
    monkeypatch.setattr("sys.argv", ["few_labels", str(data / "none"), "--out", str(data / "out")])
    with pytest.raises(SystemExit, match="no such file"):
        few_labels.main()
    (data / "table").mkdir()
    write_results(results(run("simclr", probe=0.5)), data / "table")
    monkeypatch.setattr("sys.argv", ["few_labels", str(data / "table"), "--out", str(data / "out")])
    with pytest.raises(SystemExit) as stop:
        few_labels.main()
    assert stop.value.code == status
    assert ("FAILS" if status else "holds") in capsys.readouterr().out
    assert (asked["methods"], asked["budget"], asked["labels"]) == (few_labels.TRAINED, "13m", "100%")
    assert Path(asked["path"]) == data / "out" / "few.npz"


def test_a_student_sees_all_pictures_and_the_labels_of_the_subset(data: Path) -> None:
    (data / "out").mkdir()
    made = np.load(few_labels.partly(data / "out", seed=0), allow_pickle=False)
    taken = np.load(few_labels.few(data / "out", seed=0), allow_pickle=False)
    known = made["labels"] >= 0
    assert len(known) == 400
    assert sorted(made["images"][known][:, 0, 0, 0]) == sorted(taken["images"][:, 0, 0, 0])
    assert sorted(made["labels"][known]) == [0, 0, 0, 1]


@pytest.mark.parametrize("head, said", [(0.55, "55.0 (student, "), (0.45, "50.0 (simclr, linear, 1%)")])
def test_a_student_may_be_the_best(
    head: float, said: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (data / "table").mkdir()
    write_results(results(run("mae", probe=0.3), run("simclr", probe=0.5)), data / "table")
    asked: list[Any] = []

    def taught(*words: Any) -> Results:
        asked.extend(words)
        return results(run("student", labels=True, head=head))

    monkeypatch.setattr(few_labels, "compare", lambda *_, **__: results(run("supervised", labels=True, head=0.4)))
    monkeypatch.setattr(few_labels, "taught", taught)
    words = ["few_labels", str(data / "table"), "--out", str(data / "out"), "--student", "2m"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        few_labels.main()
    assert said in capsys.readouterr().out
    assert asked == [data / "table" / "simclr", data / "out", 0, "2m"]
