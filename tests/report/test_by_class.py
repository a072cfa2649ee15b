"""What a comparison says of classes, errors, labels and seeds."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.classes import errors
from sensorium.judge.score import Score, share_error
from sensorium.runs.by_class import Seen, by_class, doubled, wilson
from sensorium.runs.compare import compare
from sensorium.runs.results import Results, RunResult, read_results
from sensorium.runs.seeds import over_seeds, spread_of
from sensorium.runs.verdict import corrected, decide, difference, holm, needed


@pytest.mark.parametrize("right, n", [(0, 10), (10, 10), (3, 7), (400, 1000), (1, 1)])
def test_wilsons_interval(right: int, n: int) -> None:
    found = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((found.low, found.high), abs=1e-9)


def test_a_class_without_test_images_is_unknown() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    tests = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed")
    for seed in range(5):
        p = np.random.default_rng(seed).random(seed + 1) ** 3
        assert holm(list(p)) == pytest.approx(tests.multipletests(p, method="holm")[1])


def judged(right: np.ndarray, **more: Any) -> Score:
    value = float(right.mean())
    how = {"error": share_error(value, len(right)), "share": True} | more
    return Score("top-1", value, "higher", len(right), "test images", outcomes=right, **how)


def test_classes_have_shares_of_what_counts_shares() -> None:
    """Bits or decibels of single pictures are none: results with such "shares" could not be read again."""
    pixels = Pixels(np.zeros((6, 3, 4, 4), np.uint8), np.array([0, 1, 0, 1, 0, 1]), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    images = Seen(pixels, pixels)
    each = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    right = judged(each)
    bits = replace(right, name="bits", share=False, outcomes=9 * each)
    runs = [RunResult("one", "one", scores=(right, bits))]
    found = by_class(runs, right, images)
    assert [one.right["one"] for one in found] == [pytest.approx(2 / 3)] * 2
    assert by_class(runs, bits, images) == ()


def pair(n: int, only_first: float, only_second: float, seed: int) -> tuple[Score, Score]:
    """Two runs: each alone right on a share of the images."""
    chance = np.random.default_rng(seed).random(n)
    both = chance < 0.5
    first = both | ((chance >= 0.5) & (chance < 0.5 + only_first))
    second = both | (chance >= 1 - only_second)
    return judged(first), judged(second)


def test_as_many_test_images_as_are_said_to_settle_it_do_so_in_four_of_five_cases() -> None:
    first, second = pair(400, 0.08, 0.06, 1)
    open_one = difference(first, second)
    count = needed(first, open_one)
    assert not open_one.sure
    assert count is not None
    expected = (1.96 + 0.8416) ** 2 * (0.14 - 0.02**2) / 0.02**2  # of shares known exactly
    honest = math.ceil(400 * ((1.96 + 0.8416) * math.sqrt((0.14 - 0.0004) / 400) / 0.02) ** 2)
    assert honest == pytest.approx(expected, rel=0.01)
    settled = [difference(*pair(honest, 0.08, 0.06, seed)).sure for seed in range(200)]
    assert 0.7 < np.mean(settled) < 0.9


def test_of_several_comparisons_one_needs_more_images() -> None:
    """With the count for one of three comparisons, four of five cases are settled by the strictest of Holm's levels."""
    first, second = pair(400, 0.08, 0.06, 1)
    alone = difference(first, second)
    among = alone._replace(among=3)
    ratio = (needed(first, among) or 0) / (needed(first, alone) or 1)
    assert ratio == pytest.approx(((2.394 + 0.8416) / (1.96 + 0.8416)) ** 2, rel=1e-3)
    honest = math.ceil(400 * ((2.394 + 0.8416) * math.sqrt((0.14 - 0.0004) / 400) / 0.02) ** 2)
    p = [difference(*pair(honest, 0.08, 0.06, seed)).p or 0.0 for seed in range(200)]
    assert 0.7 < np.mean([3 * one < 0.05 for one in p]) < 0.9


def test_the_margin_over_a_baseline_of_few_seeds_is_students() -> None:
    right = np.random.default_rng(0).random(4000) < 0.6
    seeds = (0.55, 0.6, 0.65)  # a standard error of 0.029; 0.072 for an interval of two of them by Student's t
    run = judged(right, seeds=seeds, baselines={"kNN": 0.5})
    score = replace(run, value=0.6, error=float(np.std(seeds, ddof=1) / 3**0.5))
    said = decide([RunResult("a", "a", scores=(score,))]).said
    assert said.startswith("Not significant")


def test_a_difference_that_is_settled_or_that_images_cannot_settle_needs_none() -> None:
    first, second = pair(4000, 0.2, 0.1, 0)
    assert needed(first, difference(first, second)) is None
    first, second = pair(400, 0.08, 0.06, 1)
    assert needed(replace(first, seeds=(0.5, 0.6)), difference(first, second)) is None
    assert needed(second, difference(second, first)) is None


def test_several_runs_are_harder_to_beat_than_one() -> None:
    """What is significant against one is not against the best of ten others."""
    first, second = pair(2000, 0.06, 0.04, 10)
    alone = difference(first, second)
    assert 0.005 < (alone.p or 0) < 0.05
    many = corrected([alone] * 10)
    assert not any(one.sure for one in many)
    assert many[0].p == pytest.approx(min(1.0, 10 * (alone.p or 0)))
    runs = [RunResult("a", "a", scores=(first,)), *(RunResult(f"b{i}", "b", scores=(second,)) for i in range(10))]
    found = decide(runs)
    assert found.winner is not None
    assert not found.winner.sure
    assert "by Holm's correction for 10 comparisons" in found.said
    assert "would settle it" in found.said
    assert (found.winner.needed or 0) > 2000
    assert decide(runs[:2]).winner.sure  # type: ignore[union-attr]


def test_what_twice_the_labels_would_add() -> None:
    def score(labels: int, value: float, group: str = "Linear probe") -> Score:
        return Score(f"{group} {labels}", value, "higher", 100, "test images", share=True, group=group, labels=labels)

    run = RunResult(
        "a", "a", scores=(score(100, 0.2), score(1000, 0.4), score(4000, 0.5), score(4000, 0.6, "Fine-tuned"))
    )
    assert doubled(run) == pytest.approx(0.1)
    assert doubled(RunResult("a", "a", scores=(score(100, 0.2),))) is None


def test_errors_of_a_classifier() -> None:
    logits = torch.log(
        torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.45, 0.5, 0.05], [0.0, 0.01, 0.99], [0.1, 0.8, 0.1]])
    )
    labels, where = torch.tensor([0, 0, 0, 1, 1]), np.array([10, 11, 12, 13, 14])
    found = errors(logits, labels, where)
    assert found["confused"] == [[0, 1, 2], [1, 2, 1]]
    assert [row[:3] for row in found["worst"]] == [[13, 1, 2], [11, 0, 1], [12, 0, 1]]
    assert found["worst"][1][3:] == pytest.approx([0.2, 0.7])
    assert found["doubtful"][0][:3] == [12, 0, 1]
    assert len(found["doubtful"]) == 5


# --- seeds ---


def test_trainings_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(4000)

    def run(name: str, rates: tuple[float, ...]) -> list[RunResult]:
        return [RunResult(name, name, scores=(judged(base < rate),)) for rate in rates]

    steady = over_seeds(
        [list(two) for two in zip(run("a", (0.6, 0.6, 0.6)), run("b", (0.57, 0.57, 0.57)), strict=True)]
    )
    assert decide(steady).winner.sure  # type: ignore[union-attr]
    wild = over_seeds([list(two) for two in zip(run("a", (0.7, 0.5, 0.6)), run("b", (0.5, 0.66, 0.55)), strict=True)])
    found = decide(wild)
    assert found.winner is not None
    assert not found.winner.sure
    score = wild[0].scores[0]
    assert score.seeds == pytest.approx((0.7, 0.5, 0.6), abs=0.02)
    assert score.outcomes is not None
    assert set(np.unique(score.outcomes.round(3))) <= {0.0, 0.333, 0.667, 1.0}


def test_the_spread_of_few_seeds_is_students() -> None:
    assert spread_of([0.5]) == 0.0
    assert spread_of([0.4, 0.5, 0.6]) == pytest.approx(0.1 / math.sqrt(3) * 4.302653 / 1.959964, rel=1e-5)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    out = tmp_path_factory.mktemp("seeds")
    found = compare(
        ["simclr", "supervised"], "digits", limit=300, budget="3steps", out=out, labels="20%,100%", label_seeds=1,
        finetune=False, seeds=2, progress=False, threads=1,
    )  # fmt: skip
    return found, out


def test_a_comparison_over_seeds(compared: tuple[Results, Path]) -> None:
    found, out = compared
    assert found.asked.seeds == (0, 1)
    alone = [read_results(folder) for folder in (out / "seed-1",)]
    for run in found.runs:
        by = run.score("top-1 with all labels")
        other = alone[0].run(run.name).score("top-1 with all labels")
        assert by is not None
        assert other is not None
        assert len(by.seeds) == 2
        assert by.value == pytest.approx(np.mean(by.seeds))
        assert by.seeds[1] == other.value
    assert (out / "report.html").is_file()
    assert (out / "winner" / "model.safetensors").is_file()
    assert not (out / "seed-1" / "cache").exists()  # decoded once
    again = read_results(out)
    assert again == found
    with pytest.raises(SensoriumError, match="--seeds 0"):
        compare(["simclr"], "digits", seeds=0, out=out)


def test_its_classes_errors_and_doubts(compared: tuple[Results, Path]) -> None:
    found, out = compared
    assert [one.name for one in found.by_class] == [str(k) for k in range(10)]
    score = found.runs[0].score("top-1 with all labels")
    assert score is not None
    for run in found.runs:
        own = run.score("top-1 with all labels")
        total = sum(one.n for one in found.by_class)
        assert own is not None
        assert sum(one.right[run.name] * one.n for one in found.by_class) / total == pytest.approx(own.value)
        assert all(one.low[run.name] <= one.right[run.name] <= one.high[run.name] for one in found.by_class)
    assert set(found.doubled) == {"simclr"}
    model, suspects = found.model, found.suspects
    assert model is not None
    assert suspects is not None
    wrong = round((1 - model.accuracy) * model.n)
    assert sum(one.n for one in model.confused) == wrong
    assert len(model.worst) == min(24, wrong)
    rows = list(csv.DictReader((out / suspects.file).open()))
    assert len(rows) == suspects.count
    margins = [float(row["margin"]) for row in rows]
    own = [float(row["probability_given"]) for row in rows]
    assert own == sorted(own)
    assert suspects.clear == sum(margin <= -0.5 for margin in margins)
    assert all(row["given"] != row["likely"] for row in rows)
    page = (out / "report.html").read_text()
    assert 'id="classes"' in page
    assert 'id="doubts"' in page
    assert json.loads((out / "results.json").read_text())["by_class"][0]["name"] == "0"
