"""The benchmark of generators: its table and its checks."""

import pytest

from sensorium.judge.score import Score
from sensorium.runs.results import RunResult

drawing = pytest.importorskip("benchmarks.drawing", reason="benchmarks are seen from the repository's folder")


def run(name: str, *scores: Score) -> RunResult:
    return RunResult(name, name, scores=scores, seen=1000)


def bits(value: float) -> Score:
    return Score(drawing.BITS, value, "lower", 100, "held-out pictures", {"independent pixels": 0.7}, 0.01)


def distance(value: float, counted: str = "samples; some features") -> Score:
    return Score(
        drawing.DISTANCE, value, "lower", 100, counted, {"Gaussian in PCA": 14.0}, references={"held-out": 0.3}
    )


def test_each_check_has_its_figure_and_its_bound() -> None:
    runs = [run("fvsbn", bits(0.2)), run("nade", bits(0.21)), run("ddpm", distance(2.5)), run("gan", distance(7.0))]
    found = {what: (figure, most) for what, figure, most in drawing.checks(runs)}
    assert found == {
        "bits per pixel: nade below fvsbn": (0.21, 0.2),
        "bits per pixel: fvsbn below independent pixels": (0.2, 0.7),
        "Fréchet distance: gan below Gaussian in PCA": (7.0, 14.0),
        "Fréchet distance: ddpm below Gaussian in PCA": (2.5, 14.0),
        "Fréchet distance: gan": (7.0, 6.0),
        "Fréchet distance: ddpm": (2.5, 3.0),
    }


def test_distances_of_black_and_white_stand_apart() -> None:
    runs = [
        run("fvsbn", bits(0.2), distance(5.0, "samples; some features, all in black and white")),
        run("ddpm", distance(2.5)),
    ]
    head, _, *rows = drawing.table(runs).splitlines()
    assert head == "|  | pictures seen | bits per pixel | Fréchet distance | Fréchet distance, black and white |"
    assert rows == [
        "| fvsbn | 1,000 | 0.2 +-0.01 |  | 5 |",
        "| ddpm | 1,000 |  | 2.5 |  |",
        "| independent pixels |  | 0.7 |  |  |",
        "| Gaussian in PCA |  |  | 14 | 14 |",
        "| held-out |  |  | 0.3 | 0.3 |",
    ]
