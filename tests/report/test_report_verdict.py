"""The rule for the winner, on constructed cases; paired comparisons against values worked out by hand."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from sensorium.judge.score import Score, share_error
from sensorium.runs.results import RunResult
from sensorium.runs.verdict import bootstrap, decide, difference, mcnemar

CAVEAT = "kNN undersells it, as its paper (He et al., 2022) reports"


def score(top1: float, std: float = 0.0, *, at: float | None = 0.01, n: int = 10_000, **more: Any) -> Score:
    error = share_error(top1, n, std, 3)
    return Score(
        "top-1", top1, "higher", n, "test images", error=error, share=True, at=at, subsets=3, spread=std, **more
    )


def run(name: str, top1: float, std: float = 0.005, **more: Any) -> RunResult:
    facts = {key: more.pop(key) for key in ("by_labels", "caveat", "status") if key in more}
    return RunResult(name, name, seconds=600.0, peak_memory_mb=900.0, scores=(score(top1, std, **more),), **facts)


def two_sentences(said: str) -> bool:
    return len(re.findall(r"\.(?:\s|$)", said.replace("et al.", "et al"))) == 2


def paired(first: np.ndarray, second: np.ndarray, **more: Any) -> tuple[Score, Score]:
    """Two scores of the same samples."""
    made = []
    for each in (first, second):
        error = float(each.std(ddof=1) / math.sqrt(len(each)))
        made.append(Score("m", float(each.mean()), "higher", len(each), "samples", error=error, outcomes=each, **more))
    return made[0], made[1]


def test_a_clear_win():
    simple = {"raw pixels": 0.22}
    found = decide([run("a", 0.43, baselines=simple, best_of="linear probe"), run("b", 0.36, caveat=CAVEAT)])
    winner, said = found.winner, found.said
    assert winner
    assert (winner.name, winner.by, winner.score, winner.n, winner.sure) == (
        "a",
        "top-1, linear probe",
        0.43,
        10_000,
        True,
    )
    assert winner.margin == pytest.approx(0.07)
    assert winner.error == pytest.approx(2 * math.hypot(*(share_error(p, 10_000, 0.005, 3) for p in (0.43, 0.36))))
    assert said.startswith(
        "a comes first: top-1 (linear probe) 43.0 % (higher is better; 10,000 test images), clearly 7.0"
    )
    assert "raw pixels, reaches 22.0 %" in said
    assert "10 min and 900 MB of memory" in said
    assert CAVEAT in said
    assert two_sentences(said)


def test_a_run_without_the_best_baselines_figure_is_held_against_it_too():
    """As a search stops it: of the baselines it has only the floors, of which it is clearly better."""
    floor, scratch = {"raw pixels": 0.22}, {"raw pixels": 0.22, "from scratch": 0.40}
    runs = [run("a", 0.60, baselines=scratch), run("b", 0.50, baselines=scratch), run("c", 0.45, baselines=floor)]
    assert "from scratch, reaches 40.0 %, clearly less than b (50.0 %) and c (45.0 %), too" in decide(runs).said
    runs[2] = run("c", 0.35, baselines=floor)
    assert "from scratch, reaches 40.0 %, clearly less than b (50.0 %), too" in decide(runs).said


def test_a_tie_is_not_sure_and_says_what_is_within_sampling_error():
    found = decide([run("a", 0.431), run("b", 0.428)])
    assert found.winner
    assert (found.winner.name, found.winner.sure) == ("a", False)
    assert found.said.startswith("Not significant: a comes first")
    assert re.search(r"but only 0\.3 points ahead of b \(\+-1\.\d points is within sampling error\)", found.said)
    assert two_sentences(found.said)


def test_the_spread_over_subsets_and_the_count_weigh():
    def sure(std: float, n: int = 10_000, **more: Any) -> bool:
        found = decide([run("a", 0.46, std, n=n, **more), run("b", 0.43, std, n=n)])
        assert found.winner
        return found.winner.sure

    assert sure(0.004)
    assert not sure(0.03)
    assert not sure(0.004, n=200)


@pytest.mark.parametrize("better, name", [("lower", "b"), ("higher", "a")])
def test_the_better_side_wins_and_without_errors_nobody_is_sure(better: Any, name: str):
    simple = {"unigram": 3.0 if better == "lower" else 1.0}
    runs = [
        RunResult(n, n, scores=(Score("bits", value, better, 1000, "bytes", simple),))
        for n, value in (("a", 2.5), ("b", 2.0))
    ]
    found = decide(runs)
    assert found.winner
    assert (found.winner.name, found.winner.margin, found.winner.sure, found.winner.error) == (name, 0.5, False, None)
    assert "try another --seed" in found.said


def test_no_winner_below_the_simple_models_and_none_surely_just_above():
    found = decide([run("a", 0.43, baselines={"raw pixels": 0.2, "random b": 0.46}), run("b", 0.41)])
    assert found.winner is None
    assert found.said.startswith("No run beat the baselines: the best is a")
    assert "random b reaches 46.0 %" in found.said
    assert two_sentences(found.said)
    near = decide([run("a", 0.43, baselines={"raw pixels": 0.428}, errors={"raw pixels": 0.005}), run("b", 0.35)])
    assert near.winner
    assert not near.winner.sure
    assert near.said.startswith("Not significant: a comes first")
    assert re.search(
        r"only 0\.2 points ahead of the best baseline, raw pixels \(42\.8 %; \+-1\.\d points is", near.said
    )


def test_who_learned_from_every_label_is_a_reference_unless_all_labels_are_asked():
    runs = [run("a", 0.43), run("b", 0.68, by_labels=True)]
    found = decide(runs)
    assert found.winner
    assert found.winner.name == "a"
    assert "b, 68.0 %, learned from every label and is a reference" in found.said
    for at in (1.0, None):
        full = [run("a", 0.43, at=at), run("b", 0.68, by_labels=True, at=at)]
        assert decide(full).winner.name == "b"  # type: ignore[union-attr]
    assert decide([run("b", 0.68, by_labels=True)]).winner.name == "b"  # type: ignore[union-attr]


def test_the_first_score_that_all_runs_share_decides():
    few, many = score(0.9), replace(score(0.5, at=0.1), name="top-1 of 10 %")
    a, b = RunResult("a", "a", scores=(few, many)), RunResult("b", "b", scores=(replace(many, value=0.6),))
    found = decide([a, b])
    assert found.winner
    assert (found.winner.name, found.winner.by) == ("b", "top-1 of 10 %")
    other = replace(b, scores=(replace(few, counted="training images"),))
    assert decide([a, other]).winner is None
    assert "no score in common" in decide([a, other]).said


def test_without_a_score_that_may_decide():
    rank = Score("RankMe", 40.0, "higher", 1, "run", decides=False)
    runs = [RunResult(n, n, scores=(replace(rank, value=v),)) for n, v in (("a", 40.0), ("b", 121.0))]
    found = decide(runs)
    assert found.winner is None
    assert "b has the highest RankMe (RankMe 121)" in found.said
    assert two_sentences(found.said)
    assert decide([RunResult("a", "a")]).winner is None
    lost = decide([RunResult("a", "a", "failed", error="no memory")])
    assert lost.winner is None
    assert "No run could be judged" in lost.said


def test_equal_runs_are_level():
    found = decide([run("a", 0.43), run("b", 0.43)])
    assert found.winner
    assert not found.winner.sure
    assert re.match(r"Not significant: a comes first: .*, level with b\. ", found.said)


def test_unfinished_runs_do_not_compete():
    found = decide([run("a", 0.43), run("b", 0.9, status="interrupted")])
    assert found.winner
    assert found.winner.name == "a"
    assert "b did not finish" in found.said


# -- paired --


@pytest.mark.parametrize(
    "b, c, p",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1/2
        (5, 0, 0.0625),  # 2 / 2^5
        (6, 0, 0.03125),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),  # 0.109375
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (15, 5, 2 * sum(math.comb(20, k) for k in range(6)) / 2**20),  # 0.0414
        (7, 7, 1.0),
    ],
)
def test_mcnemar_as_worked_out_by_hand(b: int, c: int, p: float):
    first = np.array([True] * b + [False] * c + [True] * 30 + [False] * 20)
    second = np.array([False] * b + [True] * c + [True] * 30 + [False] * 20)
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-12)
    if b + c:
        assert mcnemar(first, second) == pytest.approx(min(1.0, binomtest(min(b, c), b + c, 0.5).pvalue), rel=1e-9)


def test_the_bootstrap_is_that_of_a_mean_and_always_the_same():
    """Of few values the resamples can be counted: of 0, 0, 1 one in 27 has a mean of 1, eight have one of 0. Of many the
    quantiles are those of a normal distribution."""
    means = [np.mean(one) for one in itertools.product([0.0, 0.0, 1.0], repeat=3)]
    assert (means.count(0.0), means.count(1.0)) == (8, 1)  # both more than 2.5 % of 27
    assert bootstrap(np.array([0.0, 0.0, 1.0])) == (0.0, 1.0)
    many = np.random.default_rng(1).normal(0.3, 2.0, 4000)
    low, high = bootstrap(many)
    se = many.std() / math.sqrt(len(many))
    assert low == pytest.approx(many.mean() - 1.96 * se, abs=0.15 * se)
    assert high == pytest.approx(many.mean() + 1.96 * se, abs=0.15 * se)
    assert bootstrap(many) == (low, high)


def test_pairing_tells_apart_what_errors_of_their_own_do_not():
    """460 and 430 of 1,000 right, with 435 the same: nobody could tell of two different thousands."""
    rng = np.random.default_rng(0)
    second = np.zeros(1000, bool)
    second[:430] = True
    first = second.copy()
    first[430:470], first[:10] = True, False  # 40 more right, 10 fewer
    order = rng.permutation(1000)
    a, b = paired(first[order], second[order], share=True)
    alone = difference(replace(a, outcomes=None), replace(b, outcomes=None))
    together = difference(a, b)
    assert (alone.margin, together.margin) == (pytest.approx(0.03), pytest.approx(0.03))
    assert alone.error and alone.error > 0.04  # noqa: PT018
    assert not alone.sure
    assert together.sure
    assert together.how == "McNemar's test"
    assert together.p == pytest.approx(binomtest(10, 50, 0.5).pvalue)
    assert together.error == pytest.approx(2 * math.sqrt(50 - 900 / 1000) / 1000)
    found = decide([RunResult("a", "a", scores=(a,)), RunResult("b", "b", scores=(b,))])
    assert found.winner
    assert found.winner.sure
    assert "McNemar's test p < 0.001" in found.said
    assert two_sentences(found.said)


def test_numbers_are_compared_by_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    hard = rng.normal(3, 1, 500)  # how hard a text is, for both
    a, b = paired(hard + 0.1, hard + rng.normal(0, 0.1, 500))
    lower = [replace(one, better="lower") for one in (b, a)]
    assert not difference(replace(a, outcomes=None), replace(b, outcomes=None)).sure
    found = difference(a, b)
    assert found.how == "paired bootstrap"
    assert found.sure
    assert found.error == pytest.approx(2 * 0.1 / math.sqrt(500), rel=0.15)
    assert difference(lower[0], lower[1]).sure
    assert not difference(b, a).sure


def test_outcomes_that_do_not_pair_are_left_alone():
    rng = np.random.default_rng(0)
    a, b = paired(rng.random(200) < 0.9, rng.random(200) < 0.2)
    assert difference(a, replace(b, outcomes=b.outcomes[:100])).how == "standard errors"  # type: ignore[index]
    few = [replace(one, outcomes=one.outcomes[:5].astype(float)) for one in (a, b)]  # type: ignore[index]
    assert difference(*few).how == "standard errors"
    unknown = replace(a, outcomes=np.where(np.arange(200) < 195, np.nan, 1.0))
    assert difference(unknown, b).how == "standard errors"


def test_subsets_of_labels_widen_the_interval():
    rng = np.random.default_rng(0)
    truth = rng.random(2000)
    a, b = paired(np.round(truth * 3) / 3, np.clip(np.round(truth * 3) / 3 - 0.02 * (rng.random(2000) < 0.5), 0, 1))
    assert difference(a, b).sure
    wide = [replace(one, spread=0.03, subsets=3) for one in (a, b)]
    assert not difference(*wide).sure


def test_the_standard_error_of_a_share():
    assert share_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)
    assert share_error(0.5, 10_000, 0.03, 3) == pytest.approx(math.hypot(0.005, 0.03 / math.sqrt(3)), rel=1e-3)
    assert share_error(0.0, 10) > 0.05
