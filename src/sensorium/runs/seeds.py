"""Runs that differ in their seed alone: where they are, and what they say together.

OUT/<run>             of the first seed
OUT/seed-1/<run>      of the others, each a comparison of its own
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sensorium.judge.score import Score, Z
from sensorium.runs.results import RunResult


def folder_of(folder: Path, seed: int, first: int) -> Path:
    """Where the runs of ``seed`` are; ``first``: the first of the seeds."""
    return folder if seed == first else folder / f"seed-{seed}"


def spread_of(values: Sequence[float]) -> float:
    """The standard error of the mean of a few values, as large as it must be for 1.96 of them to be a 95 % interval by
    Student's t; 0 for one value, whose error is unknown."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / math.sqrt(len(values)) * float(t.ppf(0.975, len(values) - 1)) / Z


def over_seeds(each: Sequence[Sequence[RunResult]]) -> list[RunResult]:
    """The first seed's runs, each score the mean over all seeds: ``seeds`` its values, ``error`` the standard error of the
    mean over them, ``outcomes`` each test sample's mean. A run that did not finish with every seed has the finished ones,
    and a note; one that is not trained is the same with every seed, and only among the first's."""
    if len(each) == 1:
        return list(each[0])
    merged = []
    for run in each[0]:
        others = [next((other for other in runs if other.name == run.name), run) for runs in each]
        done = [other for other in others if other.finished]
        notes = run.notes
        if not run.finished or len(done) < len(each):
            notes = (*notes, f"finished with {len(done)} of {len(each)} seeds")
        scores = tuple(_mean(score, [other.score(score) for other in done]) for score in run.scores)
        merged.append(replace(run, notes=notes, scores=scores))
    return merged


def _mean(score: Score, over: Sequence[Score | None]) -> Score:
    known = [one for one in over if one is not None and one.value is not None]
    values = [one.value for one in known if one.value is not None]
    if not values:
        return score
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else score.error
    shapes = {None if one.outcomes is None else one.outcomes.shape for one in known}
    outcomes = None
    if len(shapes) == 1 and None not in shapes:
        outcomes = np.mean([np.asarray(one.outcomes, np.float64) for one in known], axis=0)
    shared = set.intersection(*(set(one.baselines) for one in known))
    baselines = {
        name: statistics.fmean(one.baselines[name] for one in known) for name in score.baselines if name in shared
    }
    return replace(
        score, value=statistics.fmean(values), error=error, seeds=tuple(values), outcomes=outcomes, baselines=baselines
    )
