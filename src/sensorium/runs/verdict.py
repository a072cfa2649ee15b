"""The verdict, for every family: which run is best, by what margin, whether significantly, at which cost.

A comparison is decided by the first score that all its finished runs share and that may decide. If that score uses only
a fraction of the labels, runs that learned from every label are references, not candidates. The best candidate wins if
it beats the baselines on the same data.

Two runs evaluated on the same samples are compared paired, sample by sample:
    right or wrong    McNemar's exact test. Of the samples that just one of two runs gets right, b and c,
                      p = min(1, 2 P(X <= min(b, c))),  X ~ Binomial(b + c, 1/2);          significant if p < 0.05
    anything else     bootstrap of the differences d_i, 2,000 resamples of the samples, seed 0: the interval between the
                      quantiles 2.5 % and 97.5 % of their mean;                    significant if it excludes 0
Outcomes that are means over subsets of the labels, or over seeds of the training, are compared by bootstrap, and the
spread over the subsets and the seeds (Student's t, as they are few) is added to the interval. Without outcomes there are two standard errors of the difference, 2 sqrt(e_1^2 + e_2^2), if both are known.

The best of several runs is compared with each of the others, so that one of the comparisons may seem significant by
chance: the p-values are Holm's (1979), p_(i) -> max over j <= i of (m - j + 1) p_(j) for m of them in ascending order.
Where a test gives an interval only, p is that of a normal distribution with its standard error.

An open difference d with standard error e on n samples would be found significant with a probability of 80 % on
    n ((z + 0.84) e / d)^2          z = 1.96; of m comparisons the normal quantile of 1 - 0.025 / m
samples, as its standard error falls with the square root of their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sensorium.base.words import agreeing, count, duration, memory
from sensorium.judge.score import Score
from sensorium.runs.results import Results, RunResult, Winner
from sensorium.runs.seeds import spread_of

RESAMPLES, LEAST = 2000, 10  # bootstrap resamples; minimum number of samples for a bootstrap
LEVEL = 0.05
POWER = 0.8416212335729143  # normal quantile of 80 %


class Difference(NamedTuple):
    """The difference of two scores: ``margin`` (positive if the first is better), half the width of its 95 % interval
    (None if unknown), its ``p``-value, whether it is significant (``sure``), and ``how`` it was tested; ``among``: the
    comparisons for which p is corrected."""

    margin: float
    error: float | None
    p: float | None
    sure: bool
    how: str
    among: int = 1


@dataclass(frozen=True)
class Verdict:
    """The winner, if any, and two sentences about it."""

    winner: Winner | None
    said: str


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value of two methods that are right or wrong on the same samples, bool [N] each."""
    from scipy.stats import binom

    b, c = int((first & ~second).sum()), int((~first & second).sum())
    return min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5))) if b + c else 1.0


def bootstrap(differences: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the mean of bootstrap resamples of ``differences`` [N], with a fixed seed."""
    rng, count = np.random.default_rng(0), len(differences)
    means = [differences[rng.integers(0, count, count)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def difference(first: Score, second: Score) -> Difference:
    """The difference of ``first`` and ``second``, by the module's rule."""
    assert first.value is not None
    assert second.value is not None
    margin = first.sign * (first.value - second.value)
    a, b = first.outcomes, second.outcomes
    if a is not None and b is not None and a.shape == b.shape and a.ndim == 1:
        spread = math.hypot(_spread(first), _spread(second), _seeds_apart(first, second))
        if a.dtype == bool and b.dtype == bool and len(a) and not spread:
            p = mcnemar(a, b)
            return Difference(margin, _paired_error(a, b), p, margin > 0 and p < LEVEL, "McNemar's test")
        each = first.sign * (a.astype(np.float64) - b.astype(np.float64))
        each = each[np.isfinite(each)]
        if len(each) >= LEAST:
            low, high = bootstrap(each)
            below, above = (math.hypot(abs(each.mean() - end), 2 * spread) for end in (low, high))
            sure = margin > 0 and float(each.mean()) - below > 0
            error = max(below, above)
            return Difference(margin, error, _normal_p(margin, error), sure, "paired bootstrap")
    if first.error is None or second.error is None:
        return Difference(margin, None, None, False, "")
    error = 2 * math.hypot(first.error, second.error)
    return Difference(margin, error, _normal_p(margin, error), margin > error, "standard errors")


def _normal_p(margin: float, error: float) -> float:
    """The two-sided p-value of a normal ``margin``, ``error`` two standard errors."""
    return math.erfc(abs(margin) / (error / 2) / math.sqrt(2)) if error else float(not margin)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method, in the order given."""
    corrected, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = least
    return corrected


def corrected(all_of: Sequence[Difference]) -> list[Difference]:
    """The differences of one run to several others, their p-values corrected for their number; one without a p-value
    stays as it is."""
    known = [one for one in all_of if one.p is not None]
    by = dict(zip(map(id, known), holm([one.p or 0.0 for one in known]), strict=True))
    return [
        one._replace(p=by[id(one)], sure=one.sure and by[id(one)] < LEVEL, among=len(known)) if id(one) in by else one
        for one in all_of
    ]


def needed(score: Score, ahead: Difference) -> int | None:
    """How many samples in all would settle a difference that isn't significant, with a probability of 80 %; None where
    it is, where there is none, and where more samples would not help (the variance between trainings or subsets)."""
    if ahead.sure or ahead.error is None or not score.n or ahead.margin <= 0 or score.spread or score.seeds:
        return None
    strict = NormalDist().inv_cdf(1 - LEVEL / 2 / ahead.among)  # of Holm's levels
    return max(score.n + 1, math.ceil(score.n * ((strict + POWER) * ahead.error / 2 / ahead.margin) ** 2))


def deciding(runs: Sequence[RunResult]) -> Score | None:
    """The first score that may decide and that all ``runs`` have: the first run's."""
    for score in runs[0].scores if runs else ():
        if score.decides and all(run.score(score) is not None for run in runs):
            return score
    return None


def decided_at(results: Results) -> float | None:
    """The label fraction of the score that decides between results' finished runs; None if it has none."""
    score = deciding(results.finished)
    return None if score is None else score.at


def is_reference(run: RunResult, at: float | None) -> bool:
    """Whether a run learned from more labels than the fraction ``at`` of the score."""
    return run.by_labels and at is not None and at < 1


def ranked(done: Sequence[RunResult], by: Score) -> list[tuple[Score, RunResult]]:
    """The candidates with their scores, best first; references only where nobody else is."""
    field = [run for run in done if not is_reference(run, by.at)] or done
    return sorted(((_of(run, by), run) for run in field), key=lambda one: -one[0].sign * (one[0].value or 0.0))


def best_run(runs: Sequence[RunResult]) -> RunResult | None:
    """The best of the finished runs, whether or not it wins: by the deciding score, else by the first that they share."""
    done = [run for run in runs if run.finished]
    by = deciding(done) or next(
        (one for one in (done[0].scores if done else ()) if all(run.score(one) is not None for run in done)), None
    )
    return ranked(done, by)[0][1] if by is not None else done[0] if done else None


def decide(runs: Sequence[RunResult]) -> Verdict:
    """The winner and two sentences, by the module's rule; ``Score.outcomes`` are used if available."""
    done = [run for run in runs if run.finished]
    if not done:
        return Verdict(None, "No run could be judged: none finished. Fix each run's error and run it again.")
    first = deciding(done)
    if first is None:
        return Verdict(None, undecided(done))
    order = ranked(done, first)
    field = [run for _, run in order]
    (score, best), rest = order[0], order[1:]
    assert score.value is not None
    bar = max(score.baselines, key=lambda name: score.sign * score.baselines[name], default=None)
    cost = price(best, first, runs, field)
    if bar is not None and score.sign * (score.value - score.baselines[bar]) <= 0:
        said = f"No run beat the baselines: the best is {best.shown}, {_told(score)}, while {bar} reaches"
        return Verdict(None, f"{said} {score.show(score.baselines[bar])}. {cost}")
    floor = None if bar is None else _above(score, bar)
    second = rest[0] if rest else None
    apart = corrected([difference(score, other) for other, _ in rest])
    ahead = apart[0] if apart else floor
    sure = bool(ahead and ahead.sure and (floor is None or floor.error is None or floor.sure))
    winner = Winner(
        best.name, f"{score.name}, {score.best_of}" if score.best_of else score.name, score.value, score.n,
        ahead.margin if ahead else None, sure, second[1].shown if second else bar,
        ahead.error if ahead else None, ahead.p if ahead else None, ahead.how if ahead else "",
        needed(score, ahead) if ahead else None,
    )  # fmt: skip
    lead = _lead(best, score, (second[1].shown, apart[0]) if second else None)
    tail = (
        ""
        if bar is None or floor is None
        else f"; {_beside(score, bar, floor)}{_others(rest, score) if floor.sure else ''}"
    )
    if second is not None and ahead is not None and ahead.error is None:
        cost += " The sampling error is unknown: try another --seed before you rely on it."
    return Verdict(
        winner, f"{'' if sure or not ahead or ahead.error is None else 'Not significant: '}{lead}{tail}. {cost}"
    )


def _of(run: RunResult, like: Score) -> Score:
    found = run.score(like)
    assert found is not None
    return found


def _spread(score: Score) -> float:
    """Standard error of a mean over subsets of the labels."""
    return (score.spread or 0.0) / math.sqrt(score.subsets)


def _seeds_apart(first: Score, second: Score) -> float:
    """Standard error of the difference between trainings: paired by seed where both have the same number of them."""
    a, b = first.seeds, second.seeds
    if len(a) == len(b):
        return spread_of([x - y for x, y in zip(a, b, strict=True)])
    return math.hypot(spread_of(a), spread_of(b))


def _paired_error(a: np.ndarray, b: np.ndarray) -> float:
    """Two standard errors of the difference of two fractions of the same samples."""
    n, off, gap = len(a), int((a != b).sum()), int(a.sum()) - int(b.sum())
    return 2 * math.sqrt(max(off - gap**2 / n, 0.0)) / n


def _above(score: Score, bar: str) -> Difference:
    """The difference of a score and a baseline's."""
    assert score.value is not None
    margin = score.sign * (score.value - score.baselines[bar])
    own = (spread_of(score.seeds) or score.error, score.errors.get(bar, 0.0), _sampled(score))
    error = None if score.error is None else 2 * math.hypot(*(one or 0.0 for one in own))
    p = None if error is None else _normal_p(margin, error)
    return Difference(margin, error, p, error is not None and margin > error, "standard errors")


def _sampled(score: Score) -> float:
    """Of a mean over seeds, whose ``error`` is that between trainings, the standard error of its few test samples."""
    if len(score.seeds) < 2 or score.outcomes is None:
        return 0.0
    known = score.outcomes[np.isfinite(score.outcomes)]
    return float(known.std() / math.sqrt(max(1, len(known))))


def _told(score: Score) -> str:
    """ "top-1 with 1 % of the labels (fine-tuned) 43.1 % (higher is better; 10,000 test images)"."""
    way = f" ({score.best_of})" if score.best_of else ""
    counted = f"{count(score.n)} {agreeing(score.n, score.counted)}" if score.n else score.counted
    return f"{score.name}{way} {score.show(score.value or 0.0)} ({score.better} is better; {counted})"


def _lead(best: RunResult, score: Score, second: tuple[str, Difference] | None) -> str:
    """Which run is first, and its margin over the next."""
    if second is None:
        return f"{best.shown} is the only run to judge: {_told(score)}"
    name, ahead = second
    first = f"{best.shown} comes first: {_told(score)}"
    gap = score.gap(ahead.margin)
    if not ahead.margin:
        return f"{first}, level with {name}"
    if ahead.error is None:
        return f"{first}, {gap} ahead of {name}"
    several = f" by Holm's correction for {ahead.among} comparisons" if ahead.among > 1 else ""
    named = "test" in ahead.how
    told = ahead.p is not None and (named or several)
    test = f", {ahead.how + ' ' if named else ''}p {p_value(ahead.p or 0.0)}{several}" if told else ""
    within = f"+-{score.gap(ahead.error)} is within sampling error{test}"
    more = needed(score, ahead)
    settle = f"; about {count(_rounded(more))} {agreeing(more, score.counted)} would settle it" if more else ""
    return f"{first}, {'clearly ' if ahead.sure else 'but only '}{gap} ahead of {name} ({within}{settle})"


def _rounded(number: int) -> int:
    """Two significant digits are all that an estimate has."""
    return int(float(f"{number:.2g}"))


def _others(rest: Sequence[tuple[Score, RunResult]], best: Score) -> str:
    """Which further runs are clearly better than every baseline, those of the ``best`` score, too: of a run that a search stopped
    early not all were measured."""
    whole = [
        (replace(score, baselines=best.baselines | score.baselines, errors=best.errors | score.errors), run)
        for score, run in rest
    ]
    clear = [f"{run.shown} ({score.show(score.value or 0.0)})" for score, run in whole if _clear(score)]
    listed = " and ".join(filter(None, (", ".join(clear[:-1]), *clear[-1:])))
    return f", clearly less than {listed}, too" if clear else ""


def _clear(score: Score) -> bool:
    """Whether a score is better than each of its baselines, beyond the sampling error."""
    return bool(score.baselines) and all(_above(score, name).sure for name in score.baselines)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _beside(score: Score, bar: str, floor: Difference) -> str:
    """Its margin over the best baseline."""
    shown = score.show(score.baselines[bar])
    if floor.error is None or floor.sure:
        return f"the best baseline, {bar}, reaches {shown}"
    within = f"+-{score.gap(floor.error)} is within sampling error"
    return f"it is only {score.gap(floor.margin)} ahead of the best baseline, {bar} ({shown}; {within})"


def price(best: RunResult, first: Score, runs: Sequence[RunResult], field: Sequence[RunResult]) -> str:
    """The second sentence: the cost, and caveats."""
    cost = [duration(best.seconds)] if best.seconds is not None else []
    cost += [f"{memory(best.peak_memory_mb)} of memory"] if best.peak_memory_mb is not None else []
    parts = [f"{best.shown} took {' and '.join(cost)}" if cost else f"The cost of {best.shown} was not measured"]
    done = [run for run in runs if run.finished]
    for run in done:
        value = _of(run, first).value or 0.0
        if run not in field:
            parts.append(
                f"{run.shown}, {first.show(value)}, learned from every label and is a reference, not a candidate"
            )
        elif is_reference(run, first.at):
            parts.append(f"{run.shown} learned its features from every label")
    parts += dict.fromkeys(run.caveat for run in done if run.caveat)
    parts += _with_fewer(best, first, done)
    if lost := [run.shown for run in runs if not run.finished]:
        parts.append(f"{', '.join(lost)} did not finish")
    return "; ".join(parts) + "."


def _with_fewer(best: RunResult, first: Score, done: Sequence[RunResult]) -> list[str]:
    """Which run comes first at the smallest label fraction, if another than at the one that decides, and clearly ahead
    of the baselines."""
    shares = {s.at for run in done for s in run.scores if s.group and s.at}
    few = min(shares, default=None)
    if first.at is None or few is None or few >= first.at:
        return []
    found = [(s, run) for run in done if not is_reference(run, few) for s in run.scores if s.group and s.at == few]
    top, run = max(found, key=lambda one: one[0].value or 0.0, default=(first, best))
    if run is best or not _clear(top):
        return []
    return [
        f"with {100 * few:g} % of the labels {run.shown} comes first, {top.show(top.value or 0.0)} (--decide {100 * few:g}%)"
    ]


def undecided(done: Sequence[RunResult]) -> str:
    """The message if the runs share no score that may decide."""
    told = [(run, next((s for s in run.scores if s.decides and s.value is not None), None)) for run in done]
    if any(score is not None for _, score in told):
        said = "; ".join(f"{run.shown}: {'no score' if score is None else _told(score)}" for run, score in told)
        return f"No verdict: the runs have no score in common. {said}."
    first = "No score can decide: without labeled test samples, judge by the pictures, the neighbors and the map."
    hints = [(s.sign * s.value, run, s) for run in done for s in run.scores if s.value is not None]
    if not hints:
        return f"{first} Give labels for a few hundred samples (one folder a class) to get a verdict."
    _, run, score = max((one for one in hints if one[2].name == hints[0][2].name), key=lambda one: one[0])
    return f"{first} {run.shown} has the {score.better[:-2]}est {score.name} ({score.name} {count(score.value)}), a hint, not a proof."
