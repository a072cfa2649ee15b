"""How long a comparison takes, before it starts.

A budget of time says what training takes; of steps or epochs, a few steps are timed. What judging an encoder takes
follows from the time of a few of its features (see :mod:`sensorium.judge.feature_scores`): all features, probes of them
and as much fine-tuning as half of the budget leaves time for. For other kinds only the training is known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Encoder
from sensorium.base.precision import device_name, resolve_precision
from sensorium.base.terminal import duration
from sensorium.base.words import counted
from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.baselines import SIDE
from sensorium.judge.encode import encode
from sensorium.judge.feature_scores import AFTER, VIEWED, fractions_of, judgeable, seen, settled, tuning_of
from sensorium.judge.features import BANK, LOOKED
from sensorium.judge.score import Asked
from sensorium.method import Progress
from sensorium.metrics.linear import FEW, FOLDS
from sensorium.recipe.recipe import Recipe
from sensorium.runs.options import RunOptions
from sensorium.training.batches import Batches, Share
from sensorium.training.budget import Budget
from sensorium.training.step import Step

STARTING = 9.0  # seconds of a process until it trains, and from there to its evaluation
PROBE, WIDER = 5.6e-7, 530  # seconds of a linear probe for each label and dimension on one core, and dimensions added
TRIED, STEPS = 512, 3  # features and steps that are timed


@dataclass(frozen=True)
class Cost:
    """Seconds of one run, None where unknown: of its training and its evaluation, the latter in parts."""

    training: float | None = None
    looks: float = 0.0
    features: float | None = None
    probes: float = 0.0
    tuning: float = 0.0
    pixels: float = 0.0  # of the baseline that all runs share

    @property
    def judging(self) -> float | None:
        return None if self.features is None else self.features + self.probes + self.tuning + AFTER


def cost_of(recipe: Recipe, ready: Any, options: RunOptions, asked: Asked, cache: Path) -> Cost:
    """What a run of ``recipe`` will take on ``ready`` data. Its method may be trained a few steps for it, on rows that
    it derives into ``cache``, as the run will."""
    spend, cost = Budget.parse(options.budget), Cost()
    with torch.random.fork_rng(), suppress(SensoriumError):  # the run itself will tell
        if not any(parameter.requires_grad for parameter in recipe.method.parameters()):
            cost = Cost(0.0)
        elif spend.kind == "seconds":
            cost = Cost(spend.amount)
        else:
            rows = ready.train if recipe.derive is None else recipe.derive(ready.train, cache, True)
            cost = Cost(_training(recipe, rows, spend, options))
        if isinstance(recipe.method, Encoder) and isinstance(ready.train, Pixels):
            cost = _judging(cost, recipe.method, ready, asked, 1 + spend.looks if cost.training else 0)
    return cost


def _training(recipe: Recipe, rows: Any, spend: Budget, options: RunOptions) -> float:
    share, device = Share(recipe.batch_size, options.accumulate), torch.device(device_name())
    batches = Batches(rows, recipe.views, share, seed=options.seed)
    batches.device = device
    step = Step(recipe.method.to(device), recipe.optimizers, recipe.schedule, accumulate=share.accumulate)
    low = resolve_precision(options.precision, device) == "bf16-mixed"
    begun = 0.0
    for k in range(STEPS + 1):  # the first one is slower
        begun = begun if k != 1 else time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            # Most of a run is after the part in which the head alone is trained.
            loss = step(islice(batches, share.accumulate), Progress(k, 0, recipe.method.head_first))["loss"]
        float(loss)  # a GPU has finished then
    batches.close()
    each = (time.perf_counter() - begun) / STEPS
    return each * (spend.steps(batch=share.batch_size * rows.each, data=len(rows) * rows.each) or 0)


def _judging(cost: Cost, method: Encoder, ready: Any, asked: Asked, times: int) -> Cost:
    images = seen(ready)
    asked = settled(asked, images)
    train, test = images.train, images.test
    each, dim, count = 0.0, 0, 16
    for _ in range(3):  # the first ones are slower; then as many as two seconds allow
        few = np.arange(min(count, TRIED, len(train)))
        begun = time.perf_counter()
        dim = encode(method, train, indices=few, device=device_name()).shape[1]
        each = (time.perf_counter() - begun) / len(few)
        count = max(16, int(2 / each))
    fast = tuning_of(images, asked)["precision"] == "bf16"
    held = 0 if test is None else len(test)
    looked = each * (min(BANK, len(train)) + min(LOOKED, held)) * (0.6 if fast else 1.0)
    views = min(VIEWED[0], len(train)) * VIEWED[1]
    cost = replace(cost, looks=looked * times, features=each * (len(train) + held + views))
    if not judgeable(images):
        return cost
    labels, seeds = int((np.asarray(train.labels) >= 0).sum()), asked.label_seeds
    parts = [(share * labels, 1 if share == 1 else seeds) for share in fractions_of(asked)]
    raw = _probes(parts, 3 * min(images.size, SIDE) ** 2)
    cost = replace(cost, probes=_probes(parts, dim), pixels=raw)
    if asked.finetune:
        how = tuning_of(images, asked)
        steps = sum(count * how["max_steps"] for _, count in parts)
        longest = (2 if fast else 3) * each * how["batch_size"] * steps
        left = longest if asked.seconds is None or asked.full else asked.seconds - (cost.judging or 0.0)
        cost = replace(cost, tuning=max(0.0, min(longest, left)))
    return cost


def _probes(parts: Sequence[tuple[float, int]], dim: int) -> float:
    """Seconds of linear probes: each chooses its strength on one or five held-out fifths, and is then fitted."""
    rounds = sum(times * labels * (1 + (FOLDS if labels < FEW else 1)) for labels, times in parts)
    return PROBE * rounds * (dim + WIDER) / (os.cpu_count() or 1)


def told(costs: Sequence[Cost], networks: Sequence[str], jobs: int, times: int = 1) -> str:
    """One sentence on what the runs of ``costs``, ``jobs`` at a time, take in all, and the baselines of their networks;
    ``times``: with so many seeds."""
    trained = sum(cost.training or 0.0 for cost in costs)
    judged = [cost.judging for cost in costs if cost.judging is not None]
    looked = sum(cost.looks for cost in costs)
    whole = (trained + looked + sum(judged) + STARTING * len(costs)) / max(1, min(jobs, len(costs)))
    runs = counted(len(costs) * times, "run") + (f" ({counted(times, 'seed')} each)" if times > 1 else "")
    if any(cost.training is None for cost in costs):
        return f"{runs}; how long they take is known when the first has trained."
    what = f"{runs}, {duration(trained * times)} of training"
    if len(judged) < len(costs):
        return f"{what}: at least {duration(whole * times)} in all, and the evaluation of each run."
    first = dict(zip(networks, costs, strict=True))
    beside = sum((cost.features or 0.0) + cost.probes + cost.tuning for cost in first.values()) + costs[0].pixels
    return f"{what}: about {duration((whole + beside + AFTER) * times)} in all, with evaluation and baselines."
