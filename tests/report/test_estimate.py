"""How long a comparison takes, told before it starts."""

import re
import time
from dataclasses import replace

import pytest
import torch

from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.judge.feature_scores import AFTER
from sensorium.judge.score import Asked
from sensorium.recipe.trained import make_recipe
from sensorium.runs.compare import compare
from sensorium.runs.estimate import Cost, cost_of, told
from sensorium.runs.options import RunOptions


def cost(tmp_path, name, data, budget, **asked):
    source = Source(data, None, tmp_path / "cache", limit=200)
    wing = kind(kind_name(name))
    ready = wing.prepare(source)
    recipe = make_recipe(name, wing.situate(ready), {})
    return cost_of(recipe, ready, RunOptions(data=data, budget=budget), Asked(**asked), tmp_path), recipe, ready


def test_a_budget_of_time_is_what_training_takes(tmp_path):
    found, _, _ = cost(tmp_path, "simclr", "digits", "60s", seconds=30.0)
    assert found.training == 60.0
    assert found.features
    assert found.judging is not None
    assert found.tuning
    assert found.judging <= 30.0 + 1e-6  # fine-tuning takes at most what is left of half the budget
    frozen, _, _ = cost(tmp_path, "simclr", "digits", "60s", seconds=30.0, finetune=False)
    assert frozen.tuning == 0.0
    assert frozen.judging == pytest.approx((frozen.features or 0.0) + frozen.probes + AFTER)


def test_steps_are_timed(tmp_path):
    found, recipe, ready = cost(tmp_path, "supervised", "digits", "400steps", finetune=False)
    assert found.training is not None
    before = torch.random.get_rng_state()
    again = cost_of(recipe, ready, RunOptions(data="digits", budget="4000steps"), Asked(finetune=False), tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert 2 < (again.training or 0) / found.training < 50  # ten times the steps, on whatever else runs here
    begun = time.perf_counter()
    cost_of(recipe, ready, RunOptions(data="digits", budget="4000steps"), Asked(finetune=False), tmp_path)
    assert time.perf_counter() - begun < 20


def test_the_sentence():
    run = Cost(60.0, 1.0, 5.0, 4.0, 18.0, 7.0)
    one, two = told([run], ["net"], 1), told([run] * 4, ["net", "net", "vit", "net"], 1)
    assert run.judging == 27.0 + AFTER
    assert one == "1 run, 1m00s of training: about 2m27s in all, with evaluation and baselines."
    assert two.startswith("4 runs, 4m00s of training: about 8m")
    assert told([run] * 4, ["net"] * 4, 2).startswith("4 runs, 4m00s of training: about 4m12s")
    seeds = told([run] * 4, ["net"] * 4, 1, 3)
    assert seeds.startswith("12 runs (3 seeds each), 12m00s of training: about 2")
    assert "at least" in told([replace(run, features=None)], ["net"], 1)
    assert told([Cost()], ["net"], 1) == "1 run; how long they take is known when the first has trained."


def test_a_comparison_says_it_first(tmp_path, capsys):
    def compared():
        compare(["supervised"], "digits", out=tmp_path, limit=60, budget="2steps", labels="100%", finetune=False)
        return re.findall(r"1 run, .* of training: about .* in all", capsys.readouterr().err)

    assert len(compared()) == 1
    assert not compared()  # nothing is left to do
