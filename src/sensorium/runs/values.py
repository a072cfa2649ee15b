"""The verdict of an ablation: which value of the setting is best, by what margin, whether significantly over seeds.

Values are compared on the first score that all of them share and that may decide, by its mean over the seeds. The seeds
of two values are the same trainings but for the value, so that they are compared paired:
    t = mean(d) / (sd(d) / sqrt(n)),  d_i the difference with seed i;   significant if p < 0.05, Student's t, n - 1 degrees
Where seeds are missing, by Welch's test. With one seed the differences between trainings are unknown, and nothing is
significant. Baselines are references: an ablation asks for the best value, and ranks the values also where none beats
them, which it says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sensorium.base.words import agreeing, count
from sensorium.judge.score import Score
from sensorium.runs.results import RunResult, Winner
from sensorium.runs.verdict import LEVEL, Difference, Verdict, deciding, p_value, price, ranked, undecided


def over_seeds(first: Score, second: Score) -> Difference:
    """The difference of two values' scores, by the module's rule; ``error``: half of its 95 % interval."""
    from scipy import stats

    assert first.value is not None
    assert second.value is not None
    margin = first.sign * (first.value - second.value)
    a, b = first.sign * np.array(first.seeds, np.float64), first.sign * np.array(second.seeds, np.float64)
    if min(len(a), len(b)) < 2:
        return Difference(margin, None, None, False, "")
    if len(a) == len(b):
        each = a - b
        scale, free, how = each.std(ddof=1) / math.sqrt(len(each)), len(each) - 1.0, "paired t-test over seeds"
    else:
        parts = [one.var(ddof=1) / len(one) for one in (a, b)]
        scale, how = math.sqrt(sum(parts)), "Welch's t-test over seeds"
        spent = sum(part**2 / (len(one) - 1) for part, one in zip(parts, (a, b), strict=True))
        free = sum(parts) ** 2 / spent if spent else math.inf
    if not scale:
        return Difference(margin, 0.0, 0.0 if margin else 1.0, margin > 0, how)
    p = 2 * float(stats.t.sf(abs(margin) / scale, free))
    return Difference(margin, float(stats.t.ppf(1 - LEVEL / 2, free)) * scale, p, margin > 0 and p < LEVEL, how)


def decide_values(runs: Sequence[RunResult], setting: str) -> Verdict:
    """The best value of ``setting``, one run a value, and what is to be said of it."""
    done = [run for run in runs if run.finished]
    first = deciding(done)
    if not done:
        return Verdict(None, "No value could be judged: no run finished. Fix each run's error and run it again.")
    if first is None:
        return Verdict(None, undecided(done))
    order = ranked(done, first)
    score, best = order[0]
    assert score.value is not None
    ahead = over_seeds(score, order[1][0]) if len(order) > 1 else None
    winner = Winner(
        best.name, score.name, score.value, score.n, ahead.margin if ahead else None, bool(ahead and ahead.sure),
        order[1][1].shown if ahead else None, ahead.error if ahead else None, ahead.p if ahead else None,
        ahead.how if ahead else "",
    )  # fmt: skip
    said = [_lead(best, score, order[1] if ahead else None, ahead, setting)]
    said += [f"All values, best first: {', '.join(_ranked(one, run) for one, run in order)}"] if len(order) > 2 else []
    said += _references(score, order)
    return Verdict(winner, f"{'. '.join(said)}. {price(best, first, runs, done)}")


def _lead(
    best: RunResult, score: Score, second: tuple[Score, RunResult] | None, ahead: Difference | None, setting: str
) -> str:
    """The best value, its score, and its margin over the next."""
    seeds = len(score.seeds)
    means = f"; mean of {seeds} seeds" if seeds > 1 else "; one seed"
    counted = f"{count(score.n)} {agreeing(score.n, score.counted)}" if score.n else score.counted
    reached = f"{score.name} {score.show(score.value or 0.0)} ({score.better} is better; {counted}{means})"
    if second is None or ahead is None:
        return f"{best.shown} is the only value of {setting} to judge: {reached}"
    next_, gap = second[1].shown, score.gap(ahead.margin)
    if not ahead.margin:
        return f"No best value of {setting}: {best.shown} and {next_} are level at {reached}"
    if ahead.error is None:
        why = "with one seed each nobody knows how much of that is chance: give --seeds 3 or more"
        return f"{best.shown} comes first: {reached}, {gap} ahead of {next_}; {why}"
    p = f"p {p_value(ahead.p)}" if ahead.p is not None else ""
    test = f"95 % interval ±{score.gap(ahead.error)}, {p}, {ahead.how}"
    if ahead.sure:
        return f"{best.shown} is the best value of {setting}: {reached}, clearly {gap} ahead of {next_} ({test})"
    return f"Not significant: {best.shown} comes first: {reached}, but only {gap} ahead of {next_} ({test})"


def _ranked(score: Score, run: RunResult) -> str:
    error = f" ± {score.show(score.error)}" if score.error and score.visible(score.error) and score.seeds else ""
    return f"{run.shown.rpartition('=')[2]} {score.show(score.value or 0.0)}{error}"


def _references(score: Score, order: Sequence[tuple[Score, RunResult]]) -> list[str]:
    """The baselines beside the values, and what it means where these are better."""
    if not score.baselines:
        return []
    told = ", ".join(f"{title} ({score.show(value)})" for title, value in score.baselines.items())
    bar = max(score.sign * value for value in score.baselines.values())
    below = [run for one, run in order if one.sign * (one.value or 0.0) <= bar]
    if len(below) == len(order):
        short = "no value reaches the best of them within this budget, and a longer one may change the order"
        return [f"For reference: {told}; {short}"]
    rest = f"; not better than the best of them: {', '.join(run.shown for run in below)}" if below else ""
    return [f"For reference: {told}{rest}"]
