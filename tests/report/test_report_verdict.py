"""The rule for the winner, on constructed cases."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from sensorium.catalogue import find
from sensorium.report.page import verdict
from sensorium.report.verdict import standard_error


def score(top1: float, std: float = 0.0, seeds: int = 3, labels: int = 500, n: int = 10_000) -> dict[str, Any]:
    return {"top1": top1, "std": std, "n": n, "labels": labels, "seeds": list(range(seeds))}


def judged(*runs: dict[str, Any], **baselines: Any) -> dict[str, Any]:
    return {"schema": 1, "data": {"path": "x"}, "baselines": baselines, "runs": list(runs)}


def judged_run(
    name: str,
    linear: float | None = None,
    finetune: float | None = None,
    std: float = 0.005,
    at: str = "1%",
    **more: Any,
) -> dict[str, Any]:
    ways = {
        way: {at: score(top1, std)} for way, top1 in (("linear", linear), ("finetune", finetune)) if top1 is not None
    }
    known = told(name)
    return {
        "name": name,
        "method": name,
        "status": "finished",
        "seconds": 600,
        "peak_memory_mb": 900,
        **known,
        **ways,
        **more,
    }


def told(name: str) -> dict[str, Any]:
    """What a comparison notes of a system."""
    system = find(name)
    return {"title": system.short, "caveat": system.caveat, "trains_on_labels": system.labels}


def two_sentences(said: str) -> bool:
    return len(re.findall(r"\.(?:\s|$)", said.replace("et al.", "et al"))) == 2


def test_verdict_clear_win():
    results = judged(
        judged_run("simclr", 0.43, 0.41), judged_run("mae", 0.33, 0.36), pixels={"linear": {"1%": score(0.22)}}
    )
    winner, said = verdict(results)
    assert winner
    assert (winner["name"], winner["by"], winner["score"], winner["n"], winner["sure"]) == (
        "simclr",
        "linear 1%",
        0.43,
        10_000,
        True,
    )
    assert winner["margin"] == pytest.approx(0.07)
    assert said.startswith("SimCLR learns best from these images: with 1 % of the labels it gets 43.0 % of 10,000")
    assert "21.0 points above the best baseline, raw pixels" in said
    assert "10 min" in said
    assert "undersell MAE" in said
    assert two_sentences(said)


def test_verdict_tie_is_not_sure():
    results = judged(judged_run("simclr", 0.431), judged_run("dino", 0.428), pixels={"linear": {"1%": score(0.22)}})
    winner, said = verdict(results)
    assert winner
    assert winner["name"] == "simclr"
    assert not winner["sure"]
    assert said.startswith("Not sure:")
    assert two_sentences(said)


def test_verdict_weighs_the_spread_over_seeds_and_the_count():
    far = [judged_run("simclr", 0.46, std=0.004), judged_run("dino", 0.43, std=0.004)]
    assert verdict(judged(*far))[0]["sure"]
    spread = [judged_run("simclr", 0.46, std=0.03), judged_run("dino", 0.43, std=0.03)]
    assert not verdict(judged(*spread))[0]["sure"]
    few = copy.deepcopy(far)
    for run in few:
        run["linear"]["1%"]["n"] = 200
    assert not verdict(judged(*few))[0]["sure"]
    uncounted = copy.deepcopy(far)
    uncounted[0]["linear"]["1%"]["n"] = None
    winner, said = verdict(judged(*uncounted))
    assert not winner["sure"]
    assert "no test counts" in said


@pytest.mark.parametrize(
    "baselines, named",
    [
        ({"pixels": {"linear": {"1%": score(0.46)}}}, "raw pixels"),
        ({"random": {"resnet": {"linear": {"1%": score(0.46)}}}}, "a random resnet"),
        ({"scratch": {"resnet": {"1%": score(0.46)}}}, "resnet trained from scratch"),
        ({"majority": score(0.46)}, "always the commonest class"),
    ],
)
def test_verdict_none_beats_the_baselines(baselines, named):
    winner, said = verdict(judged(judged_run("simclr", 0.43), judged_run("dino", 0.41), **baselines))
    assert winner is None
    assert said.startswith("No method beat the baselines")
    assert named in said
    assert two_sentences(said)


def test_verdict_barely_above_a_baseline_is_not_sure():
    winner, said = verdict(
        judged(judged_run("simclr", 0.43), judged_run("dino", 0.35), pixels={"linear": {"1%": score(0.428)}})
    )
    assert winner
    assert not winner["sure"]
    assert said.startswith("Not sure: SimCLR learns best")


def test_verdict_supervised_is_a_reference_unless_all_labels_are_asked():
    runs = [judged_run("simclr", 0.43), judged_run("supervised", 0.68)]
    winner, said = verdict(judged(*runs))
    assert winner
    assert winner["name"] == "simclr"
    assert "reference" in said
    full = [judged_run("simclr", 0.43, at="100%"), judged_run("supervised", 0.68, at="100%")]
    assert verdict(judged(*full))[0]["name"] == "supervised"
    assert verdict(judged(judged_run("supervised", 0.68)))[0]["name"] == "supervised"


def test_verdict_takes_the_smallest_fraction_that_all_have():
    a = judged_run("simclr", 0.9, at="1%")
    a["linear"]["10%"] = score(0.5)
    winner, _ = verdict(judged(a, judged_run("dino", 0.6, at="10%")))
    assert winner
    assert (winner["name"], winner["by"]) == ("dino", "linear 10%")


def test_verdict_without_probes_or_labels():
    knn = [
        {"name": n, "method": n, "status": "finished", "knn": {"top1": v, "n": 1000}}
        for n, v in (("mae", 0.3), ("dino", 0.5))
    ]
    winner, said = verdict(judged(*knn))
    assert winner
    assert (winner["name"], winner["by"]) == ("dino", "knn")
    assert two_sentences(said)
    bare = [{"name": "mae", "method": "mae", "status": "finished", "rankme": 40.0}]
    assert verdict(judged(*bare))[0] is None
    assert two_sentences(verdict(judged(*bare))[1])
    assert verdict(judged())[0] is None


def test_standard_error():
    assert standard_error({"top1": 0.5, "n": 10_000}) == pytest.approx(0.005, rel=1e-3)
    assert standard_error({"top1": 0.5, "n": 10_000, "std": 0.03, "seeds": [0, 1, 2]}) == pytest.approx(
        math.hypot(0.005, 0.03 / math.sqrt(3)), rel=1e-3
    )
    assert standard_error({"top1": 0.0, "n": 10}) > 0.05
    assert standard_error({"top1": 0.5}) is None
    assert standard_error(None) is None
