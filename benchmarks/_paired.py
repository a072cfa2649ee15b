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

import torch
from torch import Tensor, nn


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
    while len(a) < max(3, rounds) and (len(a) < 3 or time.perf_counter() - begin < limit):
        for call, times in ((ours, a), (theirs, b))[:: 1 if len(a) % 2 == 0 else -1]:
            times.append(seconds(call))
    ratios = [t / o for o, t in zip(a, b, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Pair(name, statistics.median(a), statistics.median(b), statistics.median(ratios), low, high, len(a), target)


def step_of(model: nn.Module, loss_of: Callable[[], Tensor], device: str) -> Callable[[], None]:
    """One training step, as a call."""
    model.train().to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Highest memory above the start of one step; the optimizer's state exists by then."""
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    results: Any = profile.profiler.kineto_results
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


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
