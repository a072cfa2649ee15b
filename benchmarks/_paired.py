"""Paired timing: both sides run in turn (A B, B A, A B ...) in one process, so that a noisy machine disturbs both alike.

What is claimed is the ratio: the median over the rounds of (their time / our time) within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """Medians in seconds a call; ``ratio`` above 1: ours is faster; ``low``, ``high``: the ratio's quartiles."""

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    rounds: int
    target: float | None = None


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def paired(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    rounds: int = 15,
    limit: float = 20.0,
    target: float | None = None,
) -> Pair:
    """Time both after one unmeasured call each: ``rounds`` rounds, at least three, fewer when ``limit`` seconds are spent."""
    ours()
    theirs()
    a: list[float] = []
    b: list[float] = []
    begin = time.perf_counter()
    while len(a) < rounds and (len(a) < 3 or time.perf_counter() - begin < limit):
        for call, times in ((ours, a), (theirs, b))[:: 1 if len(a) % 2 == 0 else -1]:
            times.append(seconds(call))
    ratios = [t / o for o, t in zip(a, b, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Pair(name, statistics.median(a), statistics.median(b), statistics.median(ratios), low, high, len(a), target)


def arguments(description: str | None) -> argparse.Namespace:
    """``--json`` and ``--rounds``."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each pair, at most")
    return parser.parse_args()


def show(pairs: list[Pair], *, as_json: bool = False) -> None:
    """Print a Markdown table, or JSON."""
    if as_json:
        print(json.dumps([asdict(pair) for pair in pairs], indent=1))
        return
    print("| what | ours ms | theirs ms | ratio (quartiles) | target | rounds |\n|---|---|---|---|---|---|")
    for p in pairs:
        target = "" if p.target is None else f">= {p.target:g}"
        times = f"{p.ours * 1e3:.2f} | {p.theirs * 1e3:.2f}"
        print(f"| {p.name} | {times} | {p.ratio:.2f} ({p.low:.2f} to {p.high:.2f}) | {target} | {p.rounds} |")
