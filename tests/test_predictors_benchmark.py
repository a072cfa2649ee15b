"""Benchmarks over finished comparisons: what scores without labels predict, and whether small batches collapse."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from sensorium.judge.score import Score
from sensorium.runs.results import Data, Results, RunResult, write_results

predictors = pytest.importorskip("benchmarks.predictors", reason="benchmarks are seen from the repository's folder")
collapse = pytest.importorskip("benchmarks.collapse")
figures = pytest.importorskip("benchmarks._figures")
rows = pytest.importorskip("benchmarks._rows")
SVG = "{http://www.w3.org/2000/svg}"


def run(
    name: str, probe: float, rank: float | None = 10.0, *, backbone: str = "resnet-micro", **more: Any
) -> RunResult:
    """With alpha falling where the rank rises, and LiDAR unknown."""
    beside = {"raw pixels": 0.4, f"random {backbone}": 0.42}
    scores = (
        Score("linear, 100%", probe, "higher", 400, "test images", beside, share=True),
        Score("RankMe", rank, "higher", 1, "run"),
        Score("LiDAR", None, "higher", 1, "run"),
        Score("alpha-ReQ", None if rank is None else 10 / rank, "lower", 1, "run"),
    )
    return RunResult(name, name.partition(",")[0], backbone=backbone, scores=scores, **more)


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "SAMPLES", 50)


def folder_of(place: Path, *runs: RunResult) -> Path:
    place.mkdir(parents=True)
    write_results(Results(2, Data("digits"), runs), place)
    return place


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: object) -> str:
    monkeypatch.setattr("sys.argv", ["predictors", *map(str, words)])
    predictors.main()
    return capsys.readouterr().out


RANKS = [5.0, 9.0, 7.0, 30.0, 28.0, 40.0, 12.0]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Runs of two comparisons whose probes follow RankMe, and one with labels that doesn't."""
    runs = [run(f"m{i}", 0.4 + rank / 100, rank, backbone="ab"[i > 4]) for i, rank in enumerate(RANKS)]
    failed = replace(run("f", 0.9, 1.0), status="failed")
    return [
        folder_of(tmp_path / "one", *runs[:3], run("supervised", 0.99, 2.0, by_labels=True), failed),
        folder_of(tmp_path / "two", *runs[3:], run("no rank", 0.5, None)),
    ]


def test_a_score_that_orders_runs_as_the_probe_does_correlates_by_one(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    said = printed(monkeypatch, capsys, *folders, folders[0])  # a folder counts once
    for name in ("RankMe", "alpha-ReQ"):
        assert f"| {name} | all | 7 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |" in said
        assert f"| {name} | a | 5 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |" in said
    assert "| LiDAR | all | 0 | too few runs | too few runs |" in said
    assert "| b |" not in said


def test_correlations_are_scipys_and_their_interval_holds_them_and_stays() -> None:
    drawn = np.random.default_rng(1)
    x = drawn.normal(size=12)
    y = np.round(x + drawn.normal(size=12), 1)
    for measure, theirs in ((predictors.spearman, stats.spearmanr), (predictors.kendall, stats.kendalltau)):
        found = predictors.correlation(x, y, measure)
        assert found.value == theirs(x, y)[0]
        assert -1 <= found.low < found.value < found.high <= 1
        assert found == predictors.correlation(x, y, measure)
        opposite = predictors.correlation(-x, y, measure)
        assert (opposite.value, opposite.low, opposite.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_interval_covers_no_correlation_about_as_often_as_it_says() -> None:
    covered = []
    for seed in range(40):
        x, y = np.random.default_rng(seed).normal(size=(2, 30))
        found = predictors.correlation(x, y, predictors.kendall)
        covered.append(found.low <= 0 <= found.high)
    assert 0.8 < np.mean(covered) < 1


def test_what_does_not_vary_has_no_correlation() -> None:
    assert math.isnan(predictors.correlation(np.ones(6), np.arange(6.0), predictors.spearman).value)
    same = [("one", run(f"m{i}", 0.4 + i / 100, 7.0)) for i in range(6)]
    assert "| RankMe | all | 6 | all alike | all alike |" in predictors.table(same)


def test_fewer_than_five_runs_are_one_line(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        printed(monkeypatch, capsys, folders[0])
    assert str(stop.value).startswith("3 runs without labels have a linear probe")
    assert "\n" not in str(stop.value)


def test_a_folder_without_results_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match=r"nowhere.*no such file"):
        printed(monkeypatch, capsys, tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SystemExit, match=r"results.json"):
        printed(monkeypatch, capsys, tmp_path)


def test_the_plot_has_a_point_for_each_run_and_stands_alone(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "new" / "plot.svg"
    printed(monkeypatch, capsys, *folders, "--plot", path)
    root = ElementTree.parse(path).getroot()
    charts = root.findall(f"{SVG}svg")
    assert [len(chart.findall(".//*[@class='mark']")) for chart in charts] == [7, 7]  # LiDAR is of no run
    titles = {title.text for title in charts[0].iter(f"{SVG}title")}
    assert {"one/m0: 5, 45.0%", "two/m5: 40, 80.0%"} <= titles
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {"RankMe", "alpha-ReQ", "Linear probe on all labels, by RankMe"} <= words
    assert "var(" not in path.read_text(encoding="utf-8")


def test_figures_of_both_rows_are_found_in_what_the_commands_print(folders: list[Path], tmp_path: Path) -> None:
    said = (
        f"{collapse.table(some(run('a', 0.5)))}\n\nholds  a: it does\n{predictors.table(predictors.runs_of(folders))}\n"
    )
    for id, head in (("collapse", "|  | images seen"), ("predictors", "| predictor | networks")):
        row = next(row for row in rows.ROWS if row.id == id)
        found = figures.picked(row.picks[0], tmp_path, said)
        assert found.startswith(head)
        assert "holds" not in found


# --- Small batches ---

SPREADS = ({"step": 5.0, "spread": 0.5}, {"step": 9.0, "spread": 0.25}, {"step": 10.0, "spread": None})


def some(*runs: RunResult) -> Results:
    return Results(2, Data("cifar10"), runs)


def test_a_run_holds_where_it_is_above_its_beginnings_and_the_monitor_is_silent() -> None:
    good = run("simclr,batch_size=64", 0.5, notes=("twice as slow as it could be",), curve=SPREADS, seen=9600.0)
    below = run("byol,batch_size=64", 0.41)
    warned = run("dino,batch_size=64", 0.5, notes=("features have collapsed at step 9: nearly equal",))
    failed = replace(run("swav,batch_size=64", 0.0), status="failed", error="out of memory")
    found = collapse.checks(some(good, below, warned, failed))
    assert [what for holds, what in found if not holds] == [
        "byol,batch_size=64: linear, 100% above its random backbone: 41.0 against 42.0",
        "dino,batch_size=64: features have collapsed at step 9: nearly equal",
        "swav,batch_size=64: failed, out of memory",
    ]
    assert len(found) == 3 * 3 + 1
    lines = collapse.table(some(good, below, warned, failed)).splitlines()
    assert lines[2] == "| simclr (resnet-micro) | 9,600 | 50.0 | 40.0 | 42.0 | 10 | 0.25 |  |"
    assert lines[4] == "| dino (resnet-micro) | 0 | 50.0 | 40.0 | 42.0 | 10 |  | warned |"
    assert len(lines) == 5


@pytest.mark.parametrize("probe, status", [(0.5, 0), (0.41, 1)])
def test_the_command_compares_all_in_small_batches_and_ends_by_its_checks(
    probe: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: dict[str, Any] = {}

    def compare(methods: list[str], data: str, **keywords: Any) -> Results:
        asked.update(keywords, methods=methods, data=data)
        return some(run("simclr,batch_size=64", probe))

    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "train.npz").touch()
    monkeypatch.setattr(collapse, "DATA", tmp_path)
    monkeypatch.setattr(collapse, "compare", compare)
    monkeypatch.setattr("sys.argv", ["collapse"])
    with pytest.raises(SystemExit) as stop:
        collapse.main()
    assert stop.value.code == status
    said = capsys.readouterr().out
    assert said.count("FAILS") == status
    assert said.count("holds") == 3 - status
    assert {"simclr,batch_size=64", "mae,batch_size=64", "lejepa,batch_size=64"} <= set(asked["methods"])
    assert not {one for one in asked["methods"] if one.startswith(("supervised", "supcon", "frozen", "distill"))}
    assert (asked["labels"], asked["finetune"], asked["budget"]) == ("100%", False, "1m")
    assert asked["test"] == str(tmp_path / "cifar10" / "test.npz")

    monkeypatch.setattr("sys.argv", ["collapse", "byol", "--batch-size", "32", "--limit", "400"])
    collapse.main()
    assert asked["methods"] == ["byol,batch_size=32"]
    assert "holds" not in capsys.readouterr().out
