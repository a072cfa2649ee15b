"""The verdict of an ablation, on constructed cases."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sensorium.judge.score import Score
from sensorium.runs.ablate import ablate
from sensorium.runs.results import Data, Results, RunResult, read_results
from sensorium.runs.values import decide_values, over_seeds

SIMPLE = {"Kneser-Ney, 5": 1.96, "unigram": 4.42}


def value(name: str, *seeds: float, **more: object) -> RunResult:
    many = len(seeds) > 1
    error = statistics.stdev(seeds) / len(seeds) ** 0.5 if many else None
    score = Score(
        "bits per byte", statistics.fmean(seeds), "lower", 6028, "held-out bytes", SIMPLE, error=error,
        seeds=seeds if many else (),
    )  # fmt: skip
    return RunResult(f"lm,positions={name}", "lm", title=f"positions={name}", seconds=45.0, scores=(score,), **more)  # type: ignore[arg-type]


def test_the_best_value_wins_though_no_baseline_is_beaten() -> None:
    runs = [value("none", 3.57, 3.58, 3.55), value("rope", 3.10, 3.11, 3.07), value("t5", 3.63, 3.59, 4.11)]
    found = decide_values(runs, "positions")
    assert found.winner
    assert (found.winner.name, found.winner.sure, found.winner.over) == ("lm,positions=rope", True, "positions=none")
    assert found.said.startswith("positions=rope is the best value of positions: bits per byte 3.093")
    assert "clearly 0.473 ahead of positions=none" in found.said
    assert "All values, best first: rope 3.093 ± 0.012" in found.said
    assert found.said.index("none 3.567") < found.said.index("t5 3.777")
    assert "For reference: Kneser-Ney, 5 (1.96), unigram (4.42)" in found.said
    assert "no value reaches the best of them within this budget" in found.said


def test_p_and_interval_are_those_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 10):
        seed = rng.normal(0, 1, n)  # what a seed is worth, for both values
        a, b = 3 + seed + rng.normal(0, 0.1, n), 3.2 + seed + rng.normal(0, 0.1, n)
        found = over_seeds(value("a", *a.tolist()).scores[0], value("b", *b.tolist()).scores[0])
        peer = stats.ttest_rel(b, a)
        assert found.p == pytest.approx(peer.pvalue)  # type: ignore[attr-defined]
        low, high = peer.confidence_interval(0.95)  # type: ignore[attr-defined]
        assert found.error is not None
        assert (found.margin - found.error, found.margin + found.error) == (pytest.approx(low), pytest.approx(high))
        assert found.sure == (peer.pvalue < 0.05 and found.margin > 0)  # type: ignore[attr-defined]


def test_a_value_with_fewer_seeds_is_compared_by_welchs_test() -> None:
    a, b = (3.0, 3.1, 3.05), (3.2, 3.4)
    found = over_seeds(value("a", *a).scores[0], value("b", *b).scores[0])
    peer = stats.ttest_ind(b, a, equal_var=False)
    assert found.p == pytest.approx(peer.pvalue)  # type: ignore[attr-defined]
    assert found.how == "Welch's t-test over seeds"


def test_values_that_differ_by_less_than_their_seeds_are_ranked_and_not_significant() -> None:
    found = decide_values([value("a", 3.0, 3.3, 2.9), value("b", 3.2, 3.0, 3.1)], "positions")
    assert found.winner
    assert found.winner.name == "lm,positions=a"
    assert not found.winner.sure
    assert found.said.startswith("Not significant: positions=a comes first")


def test_one_seed_ranks_and_is_never_significant() -> None:
    found = decide_values([value("a", 2.0), value("b", 1.5)], "positions")
    assert found.winner
    assert (found.winner.name, found.winner.sure) == ("lm,positions=b", False)
    assert "give --seeds 3 or more" in found.said
    assert "not better than the best of them: positions=a" in found.said


def test_level_values_single_values_and_none() -> None:
    assert "are level" in decide_values([value("a", 2.0, 2.1), value("b", 2.1, 2.0)], "positions").said
    assert "the only value" in decide_values([value("a", 2.0, 2.1)], "positions").said
    lost = RunResult("b", "lm", "failed", title="positions=b", error="x")
    assert "positions=b did not finish" in decide_values([value("a", 2.0, 2.1), lost], "positions").said
    assert decide_values([lost], "positions").winner is None
    assert decide_values([RunResult("a", "lm")], "positions").winner is None


def test_an_ablation_ranks_its_values_for_each_seed_and_over_all(tmp_path: Path, monkeypatch: Any) -> None:
    bits = {0: (2.0, 2.2), 7: (2.1, 2.4)}

    def compared(methods: Any, options: Any, *_: Any, **__: Any) -> Any:
        runs = [replace(value(n, b), title=None) for n, b in zip("ab", bits[7 if options.seed else 0], strict=True)]
        return None, Results(2, Data("x"), tuple(runs))

    monkeypatch.setattr("sensorium.runs.ablate.train_all", compared)
    monkeypatch.setattr("sensorium.runs.ablate._elsewhere", lambda folder: ())
    found = ablate("causal_lm", "positions=rope,none", "x", seeds=2, out=tmp_path, progress=False)
    assert found.winner is not None
    assert (found.winner.name, found.winner.over) == ("lm,positions=a", "positions=b")
    assert found.winner.margin == pytest.approx(0.25)
    assert read_results(tmp_path).verdict == found.verdict
    assert "For reference" in found.verdict
    alone = read_results(tmp_path / "seed-1")
    assert alone.winner is not None
    assert alone.winner.margin == pytest.approx(0.3)
    assert "give --seeds 3 or more" in alone.verdict
    assert (tmp_path / "seed-1" / "report.html").is_file()
