"""Training steps of a small MAE on a machine that is busy: torch's own threads against Sensorium's.

Each case is a process of its own, as threads wait as they were told to when torch was loaded. Rates are steps a second in a
window of seconds after the first steps; the busy program is a shell's endless loop, started and ended here. Each
round has all cases, so that a machine that changes changes them all; shares are those of the same round's quiet rate with
torch's own threads; the table has medians over rounds. It says where programs that are not ours were busy: repeat it then.
``--spin`` is for choosing ``threads.SPIN``: one table for each count, without ``threads.Watch``, which would hide what it does.
Run: ``python -m benchmarks.busy [--rounds 5] [--seconds 5] [--spin 1000,3000,10000] [--json]``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sensorium.base import live, machine, threads

WARM = 5  # steps before the first that counts
# case -> the least share of the quiet rate that is wanted
TARGETS = {"quiet": 0.95, "busy at start": 0.55, "busy later": 0.25, "two side by side": 0.40}


def mae_step() -> Callable[[], None]:
    """One step as ``sensorium train mae`` takes it on pictures of 64 pixels: views, loss, backward, AdamW."""
    import torch

    from sensorium.base.bf16 import fast_bf16
    from sensorium.base.draw import Draw
    from sensorium.data.augment.views import masked_views
    from sensorium.networks.vit import ViT
    from sensorium.selfsup.mae.method import MAE

    torch.manual_seed(0)
    method = MAE(ViT(64, 8, 192, 6, 3, positions="sincos"), decoder_width=96, decoder_depth=1, decoder_heads=3)
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-4, fused=True)
    views = masked_views((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 64, lambda draw: draw.rand(64))
    images = torch.randint(256, (512, 3, 64, 64), dtype=torch.uint8)
    count = itertools.count()

    def step() -> None:
        at = next(count)
        draw = Draw.seeded(0, at, 32)
        batch = views({"image": images[torch.randperm(512, generator=draw.generator)[:32]]}, draw)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16("cpu")):
            loss = method(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def work(policy: str, watched: bool) -> None:
    """The process that is measured: says "ready" after some steps, trains until told to end, prints when each step ended."""
    watch = None
    if policy == "sensorium":
        threads.before_torch()
        live.register()
        chosen = threads.choose()
        threads.use(chosen)
        print(f"# {chosen.count}: {chosen.reason}", file=sys.stderr)
        watch = threads.Watch(chosen.count) if watched else None
    step = mae_step()
    ended: list[float] = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        step()
        ended.append(time.monotonic())
        if len(ended) == WARM:
            print("ready", flush=True)
        if watch and (said := watch()):
            print(f"# {said}", file=sys.stderr)
    print(json.dumps(ended))


class Worker:
    """A running ``work``."""

    def __init__(self, policy: str, spin: int | None, verbose: bool) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
        if policy == "sensorium" and spin is not None:
            environment["GOMP_SPINCOUNT"] = str(spin)
        command = [sys.executable, "-m", "benchmarks.busy", "--work", policy, *["--static"] * (spin is not None)]
        errors = None if verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )

    def ready(self) -> float:
        """Wait for its first steps; when they were done."""
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"a measured process ended with code {self.process.wait()}; --verbose shows why")
        return time.monotonic()

    def end(self) -> list[float]:
        """Stop it; when each step ended."""
        return json.loads(self.process.communicate("x")[0])


def rate(ended: list[float], begin: float, end: float) -> float:
    """Steps a second between two moments, the step that crosses either counted by its part inside."""
    steps = 0.0
    for before, after in itertools.pairwise(ended):
        steps += max(0.0, min(after, end) - max(before, begin)) / (after - before)
    return steps / (end - begin)


@contextmanager
def busy() -> Iterator[None]:
    """One program that never rests."""
    loop = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def alone(seconds: float, *how: object) -> dict[str, float]:
    """One process: quiet at first, then with a busy program beside it."""
    worker = Worker(*how)  # type: ignore[arg-type]
    begin = worker.ready()
    time.sleep(seconds)
    quiet = time.monotonic()
    with busy():
        time.sleep(2 * seconds)
        end = time.monotonic()
    ended = worker.end()
    return {"quiet": rate(ended, begin, quiet), "busy later": rate(ended, quiet, end)}


def started_busy(seconds: float, *how: object) -> dict[str, float]:
    with busy():
        time.sleep(0.5)
        worker = Worker(*how)  # type: ignore[arg-type]
        begin = worker.ready()
        time.sleep(seconds)
        end = time.monotonic()
        ended = worker.end()
    return {"busy at start": rate(ended, begin, end)}


def side_by_side(seconds: float, *how: object) -> dict[str, float]:
    """Two at once: the rate of the slower one while both train."""
    pair = [Worker(*how) for _ in range(2)]  # type: ignore[arg-type]
    begin = max(worker.ready() for worker in pair)
    time.sleep(seconds)
    end = time.monotonic()
    return {"two side by side": min(rate(worker.end(), begin, end) for worker in pair)}


def others() -> float:
    """Cores that programs other than this benchmark's keep busy, before a case begins."""
    before = machine.now()
    time.sleep(0.5)
    return machine.busy_between(before, machine.now(), usable=len(machine.processors()))


def measure(given: argparse.Namespace, spin: int | None) -> tuple[dict[str, list[float]], list[float]]:
    """Rates by "policy, case", one a round, and how busy the machine was before each case."""
    found: dict[str, list[float]] = {}
    disturbed: list[float] = []
    for _ in range(given.rounds):
        for policy in ("torch", "sensorium"):
            for case in (alone, started_busy, side_by_side):
                disturbed.append(others())
                got = case(given.seconds, policy, spin, given.verbose)
                for name, value in got.items():
                    found.setdefault(f"{policy}, {name}", []).append(value)
    return found, disturbed


def show(found: dict[str, list[float]], disturbed: list[float], spin: int | None) -> None:
    base = found["torch, quiet"]
    print(f"\nspin count {threads.SPIN if spin is None else spin}, {machine.cores()} cores, {len(base)} rounds")
    print("| threads | case | steps/s | share of quiet (lowest to highest) | wanted |  |\n|---|---|---|---|---|---|")
    for name, rates in found.items():
        policy, case = name.split(", ")
        shares = [rate / quiet for rate, quiet in zip(rates, base, strict=True)]
        share, wanted = statistics.median(shares), TARGETS[case] if policy == "sensorium" else None
        mark = "" if wanted is None else "yes" if share >= wanted else "NO"
        least = "" if wanted is None else f">= {wanted:.0%}"
        spread = f"{share:.0%} ({min(shares):.0%} to {max(shares):.0%})"
        print(f"| {policy} | {case} | {statistics.median(rates):.2f} | {spread} | {least} | {mark} |")
    loud = sum(value > 0.1 for value in disturbed)
    if loud:
        print(
            f"Disturbed: before {loud} of {len(disturbed)} cases other programs kept up to {max(disturbed):.1f} cores busy."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window (twice that where busy later)")
    parser.add_argument("--spin", help="spin counts to compare, each without the watch")
    parser.add_argument("--verbose", action="store_true", help="show what the measured processes say")
    parser.add_argument("--json", action="store_true", help="print JSON: rates by spin count and case")
    parser.add_argument("--static", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=("torch", "sensorium"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, not given.static)
        return
    spins = [int(part) for part in given.spin.split(",")] if given.spin else [None]
    every = {spin: measure(given, spin) for spin in spins}
    if given.json:
        print(json.dumps({str(spin or threads.SPIN): rates for spin, (rates, _) in every.items()}, indent=1))
        return
    for spin, (rates, disturbed) in every.items():
        show(rates, disturbed, spin)


if __name__ == "__main__":
    main()
