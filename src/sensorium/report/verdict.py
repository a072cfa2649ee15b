"""The verdict: which method learnt best from these images, by how much, how sure, at which cost.

The rule. Each finished run is scored by its best use of few labels: the higher of fine-tuning and linear probe
(means over seeds) at the smallest label fraction that every candidate has; where there are neither, by kNN. The
candidates are the self-supervised runs; a run that learnt from all labels is a candidate only where that fraction is
100 % (or where it ran alone) and a reference otherwise. The standard error of one score adds the counting
error of the test images to the spread over seeds, and that of a difference adds both scores:
    se^2 = p (1 - p) / n + std^2 / seeds        sure  <=>  p_1 - p_2 > 2 sqrt(se_1^2 + se_2^2)
Both scores come from the same test images, so the true error is rather smaller. A winner is sure when it is
that far ahead of the runner-up and of the best baseline; a winner that doesn't beat the baselines is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sensorium.report.html import count, duration, finished, fraction, memory, number, percent, run_title

WAYS = {"finetune": "fine-tuned", "linear": "linear probe", "knn": "kNN"}


@dataclass(frozen=True)
class Scored:
    """One run's or baseline's score: a share of ``n`` test images, and its standard error (None without counts)."""

    name: str
    title: str
    way: str
    top1: float
    n: int | None
    se: float | None
    run: dict[str, Any] | None = None


def standard_error(score: dict[str, Any] | None) -> float | None:
    """Of one score ``{"top1", "std", "n", "seeds"}``; None where it has no count of test images."""
    p, n = number((score or {}).get("top1")), number((score or {}).get("n"))
    if score is None or p is None or not n:
        return None
    seeds = score.get("seeds") or 1
    seeds = len(seeds) if isinstance(seeds, list | tuple) else max(number(seeds) or 1, 1)
    p = (p * n + 1) / (n + 2)  # one success and one failure more: 0 of 10 right is no proof of 0
    return math.sqrt(p * (1 - p) / n + (number(score.get("std")) or 0.0) ** 2 / seeds)


def at_fraction(scores: dict[str, Any] | None, wanted: float) -> dict[str, Any] | None:
    """The score at a label fraction, however its key is written."""
    for key, score in (scores or {}).items():
        if score and math.isclose(fraction(key), wanted) and number(score.get("top1")) is not None:
            return score
    return None


def is_reference(run: dict[str, Any]) -> bool:
    """Did its features learn from every label?"""
    return bool(run.get("trains_on_labels"))


def label_fractions(runs: list[dict[str, Any]]) -> list[float]:
    """Every fraction at which some run has a score, smallest first."""
    found = {
        fraction(key) for run in runs for way in ("linear", "finetune") for key, s in (run.get(way) or {}).items() if s
    }
    return sorted(found)


def _has(run: dict[str, Any], at: float) -> bool:
    return any(at_fraction(run.get(way), at) for way in ("finetune", "linear"))


def deciding_fraction(runs: list[dict[str, Any]]) -> float | None:
    """The smallest label fraction that most of the candidates have; None where nobody has any."""
    ranked = [(sum(_has(run, at) for run in runs), -at) for at in label_fractions(runs)]
    held, at = max(ranked, default=(0, 0.0))
    return -at if held else None


def _best(
    name: str, title: str, ways: dict[str, dict[str, Any] | None], run: dict[str, Any] | None = None
) -> Scored | None:
    """The higher of several scores."""
    known = [(float(s["top1"]), way, s) for way, s in ways.items() if s and number(s.get("top1")) is not None]
    if not known:
        return None
    top1, way, score = max(known, key=lambda item: item[0])
    n = number(score.get("n"))
    return Scored(name, title, way, top1, int(n) if n else None, standard_error(score), run)


def score_run(run: dict[str, Any], at: float | None) -> Scored | None:
    """A run's best use of the labels at fraction ``at``; its kNN where ``at`` is None."""
    ways = {"knn": run.get("knn")} if at is None else {w: at_fraction(run.get(w), at) for w in ("finetune", "linear")}
    return _best(run["name"], run_title(run), ways, run)


def score_baselines(results: dict[str, Any], at: float | None) -> list[Scored]:
    """Raw pixels, random backbones and training from scratch, with the same labels; best first."""
    given = results.get("baselines") or {}

    def ways(scores: dict[str, Any] | None) -> dict[str, Any]:
        scores = scores or {}
        return {"knn": scores.get("knn")} if at is None else {"linear": at_fraction(scores.get("linear"), at)}

    found = [_best("pixels", "raw pixels", ways(given.get("pixels")))]
    found += [_best("random", f"a random {b}", ways(s)) for b, s in (given.get("random") or {}).items()]
    if at is not None:
        scratch = (given.get("scratch") or {}).items()
        found += [_best("scratch", f"{b} trained from scratch", {"scratch": at_fraction(s, at)}) for b, s in scratch]
    found.append(_best("majority", "always the commonest class", {"majority": given.get("majority")}))
    return sorted((score for score in found if score), key=lambda score: -score.top1)


def _error(a: Scored, b: Scored) -> float | None:
    """Two standard errors of the difference."""
    return None if a.se is None or b.se is None else 2 * math.hypot(a.se, b.se)


def _ahead(a: Scored, b: Scored) -> bool:
    error = _error(a, b)
    return error is not None and a.top1 - b.top1 > error


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"


def verdict(results: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """``({"name", "by", "score", "n", "margin", "sure", "over", "error"} | None, two sentences)`` by the module's rule.

    ``margin`` is the distance to the runner-up (to the best baseline where there is only one candidate), ``over`` the
    title of that one, ``error`` two standard errors of that difference.
    """
    done = finished(results)
    if not done:
        return (
            None,
            "No run finished, so there is no verdict. Mend what each run's error says and run the same command again.",
        )
    rivals = [run for run in done if not is_reference(run)]
    at = deciding_fraction(rivals or done)
    field = done if not rivals or (at is not None and at >= 1) else rivals
    scored = [score for score in (score_run(run, at) for run in field) if score]
    scored.sort(key=lambda score: -score.top1)
    if not scored:
        return None, _unlabelled(done)
    best, baselines = scored[0], score_baselines(results, at)
    second = scored[1] if len(scored) > 1 else None
    base = baselines[0] if baselines else None
    if base and best.top1 <= base.top1:
        return None, f"{_nobody(best, base, at)} {_cost(best, results, field, at)}"
    against = second or base
    sure = all(_ahead(best, other) for other in (second, base) if other) and against is not None
    winner = {
        "name": best.name,
        "by": best.way if at is None else f"{best.way} {100 * at:g}%",
        "score": best.top1,
        "n": best.n,
        "margin": best.top1 - against.top1 if against else None,
        "sure": sure,
        "over": against.title if against else None,
        "error": _error(best, against) if against else None,
    }
    return winner, f"{_lead(best, second, base, at)} {_cost(best, results, field, at)}"


def _right(score: Scored, at: float | None) -> str:
    """ "with 1 % of the labels it gets 43.1 % of 10,000 test images right (fine-tuned)"."""
    of = f"{count(score.n)} test images" if score.n else "the test images"
    labels = "" if at is None else "with all labels " if at >= 1 else f"with {100 * at:g} % of the labels "
    return f"{labels}it gets {percent(score.top1)} of {of} right ({WAYS.get(score.way, score.way)})"


def _chance(best: Scored, other: Scored) -> str:
    """What chance alone could make of a difference."""
    error = _error(best, other)
    return (
        "no test counts, so nobody can say how sure" if error is None else f"chance alone could make {100 * error:.1f}"
    )


def _lead(best: Scored, second: Scored | None, base: Scored | None, at: float | None) -> str:
    """The first sentence, where there is a winner."""
    floor = ""
    if base:
        floor = f"{_points(best.top1 - base.top1)} above the best baseline, {base.title}"
        if not _ahead(best, base):
            floor += f" (not surely: {_chance(best, base)})"
    if second is None:
        alone = f"{best.title} is the only run to judge: {_right(best, at)}"
        return f"{alone}, {floor}." if floor else f"{alone}, and there is no baseline to hold it to."
    gap = _points(best.top1 - second.top1)
    if _ahead(best, second):
        sure = "" if base is None or _ahead(best, base) else "Not sure: "
        lead = f"{sure}{best.title} learns best from these images: {_right(best, at)}"
        tail = f" and {floor}" if floor else ""
        return f"{lead}, clearly ahead of {second.title} (by {gap}; {_chance(best, second)}){tail}."
    tail = f"; it is {floor}" if floor else ""
    start = f"Not sure: {best.title} comes first, {_right(best, at)}"
    return f"{start}, but only {gap} ahead of {second.title} ({_chance(best, second)}){tail}."


def _nobody(best: Scored, base: Scored, at: float | None) -> str:
    return (
        f"No method beat the baselines: the best is {best.title}, {_right(best, at)}, "
        f"while {base.title} gets {percent(base.top1)} with the same labels and no pre-training."
    )


def _cost(best: Scored, results: dict[str, Any], field: list[dict[str, Any]], at: float | None) -> str:
    """The second sentence: the price, and what to keep in mind."""
    run, parts = best.run or {}, []
    price = [duration(run["seconds"])] if number(run.get("seconds")) is not None else []
    price += [f"{memory(run['peak_memory_mb'])} of memory"] if number(run.get("peak_memory_mb")) is not None else []
    parts.append(f"{best.title} took {' and '.join(price)}" if price else "Its cost was not measured")
    for run in finished(results):
        if run not in field:
            score = score_run(run, at)
            shown = f", {percent(score.top1)}" if score else ""
            parts.append(f"{run_title(run)}{shown}, learnt from every label and is a reference, no candidate")
        elif is_reference(run) and at is not None and at < 1:
            parts.append(f"{run_title(run)} learnt its features from every label")
    parts += dict.fromkeys(run["caveat"] for run in finished(results) if run.get("caveat"))
    unfinished = [run_title(run) for run in results.get("runs") or [] if run not in finished(results)]
    if unfinished:
        parts.append(f"{', '.join(unfinished)} did not finish")
    return "; ".join(parts) + "."


def _unlabelled(runs: list[dict[str, Any]]) -> str:
    ranked = sorted((run for run in runs if number(run.get("rankme")) is not None), key=lambda run: -run["rankme"])
    first = "Without labelled test images no method can be scored: judge by the pictures, the neighbours and the map."
    if not ranked:
        return f"{first} Give labels for a few hundred images (one folder a class) to get a verdict."
    hint = f"{run_title(ranked[0])}'s features use the most dimensions (RankMe {count(ranked[0]['rankme'])})"
    return f"{first} {hint}, which is a hint and no proof."
