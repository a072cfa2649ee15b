"""What the methods learn in ten minutes each: the main job on CIFAR-10 files (20,000 training pictures, 4,000 test pictures) or on
Fashion-MNIST (60,000 and 10,000), held against floors and baselines.

Runs (or, where OUT holds finished runs, reads) the comparison and prints its table, means and standard deviations over the seeds, and a
line a check. The floors are what a one-page script reached on CIFAR-10 with its bfloat16 units. With ``--all`` every system that
learns pictures is a row, with their settings if METHODS names them: supervised,backbone=airbench-micro.
Run: python -m benchmarks.learning [METHODS] [--all] [--on cifar10|fashion-mnist] [--seeds 1] [--budget 10m] [--limit N] [--out DIR];
alone, for the budget is a time. Of fewer pictures (``--limit``) nothing is held against the floors.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

from sensorium.report.table import simple_models
from sensorium.runs.compare import alike, compare
from sensorium.runs.results import Results, RunResult

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETS = {"cifar10": ("train.npz", "test.npz"), "fashion-mnist": ("", "")}  # the IDX files of a folder are both
METHODS = ("mae", "simclr", "dino", "supervised")
SHARES = ("1%", "10%", "100%")
# method -> score -> least top1
FLOORS = {
    "simclr": {"kNN": 0.540, "linear, 100%": 0.589, "linear, 1%": 0.418},
    "mae": {"kNN": 0.366, "linear, 100%": 0.474, "linear, 1%": 0.331},
}


def value(run: RunResult, name: str) -> float:
    score = run.score(name)
    assert score is not None, f"{run.name} has no {name}"
    assert score.value is not None
    return score.value


def above(run: RunResult, name: str) -> list[tuple[str, float, float]]:
    """What a network has to exceed that has learned something."""
    beside = run.score(name).baselines  # type: ignore[union-attr]
    return [
        (f"{run.name}: {name} above raw pixels", value(run, name), beside["raw pixels"]),
        (f"{run.name}: {name} above its random backbone", value(run, name), beside[f"random {run.backbone}"]),
    ]


def checks(results: Results, on: str = "cifar10") -> list[tuple[str, float, float]]:
    """(what, figure, what it has to exceed)."""
    found = []
    for run in results.finished:
        if run.by_labels or run.score("linear, 100%") is None:
            continue
        for name in ("linear, 100%", "whitened kNN", *(("kNN",) if run.name in ("simclr", "dino") else ())):
            found += above(run, name)
        scratch = run.score("fine-tuned, 1%").baselines[f"{run.backbone} from scratch"]  # type: ignore[union-attr]
        found.append((f"{run.name}: fine-tuned, 1% above from scratch", value(run, "fine-tuned, 1%"), scratch))
        floors = FLOORS.get(run.name, {}) if on == "cifar10" else {}
        found += [(f"{run.name}: {name}, floor", value(run, name), least) for name, least in floors.items()]
    return found


def table(results: Results) -> str:
    """The scores in percent, as Markdown."""
    columns = ["kNN", "whitened kNN", *(f"linear, {s}" for s in SHARES), *(f"fine-tuned, {s}" for s in SHARES)]
    lines = [
        f"| {' | '.join(['', 'images seen', 'images/s', *columns, 'RankMe'])} |",
        "|---" * (len(columns) + 4) + "|",
    ]

    def row(name: str, found: Mapping[str, float], spread: Mapping[str, float], seen: str = "", rate: str = "") -> None:
        cells = [
            f"{found[c] * 100:.1f}" + (f" +-{spread[c] * 100:.1f}" if c in spread else "") if c in found else ""
            for c in columns
        ]
        rank = f"{found['RankMe']:.0f}" if "RankMe" in found else ""
        lines.append(f"| {' | '.join([name, seen, rate, *cells, rank])} |")

    for run in results.finished:
        own = {score.name: score.value for score in run.scores if score.value is not None}
        spread = {score.name: statistics.stdev(score.seeds) for score in run.scores if len(score.seeds or ()) > 1}
        row(f"{run.name} ({run.backbone})", own, spread, f"{run.seen or 0:,.0f}", f"{run.per_second or 0:.0f}")
    for title, found in simple_models(results.finished).items():
        if any(name in found for name in columns):
            row(title, found, {})
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=METHODS, help=f"by default {', '.join(METHODS)}")
    parser.add_argument("--all", action="store_true", help="every system that learns pictures, beside those named")
    parser.add_argument("--on", default="cifar10", choices=SETS, help="the data")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each method")
    parser.add_argument("--budget", default="10m", help="of each training")
    parser.add_argument("--out", help="folder of the comparison, by default sensorium-DATA")
    parser.add_argument("--limit", type=int, help="only so many pictures, to try it")
    asked = parser.parse_args()
    data, test = (str(DATA / asked.on / name) for name in SETS[asked.on])
    if not Path(data).exists():
        raise SystemExit(f"skipped: {data} is not there (set SENSORIUM_DATA to the folder of data sets)")
    methods = tuple(asked.methods)
    methods += tuple(name for name in alike(METHODS[-1]) if name not in methods) if asked.all else ()
    results = compare(
        methods, data, test=test if test != data else None, budget=asked.budget, limit=asked.limit,
        labels=",".join(SHARES), seeds=asked.seeds, out=asked.out or f"sensorium-{asked.on}",
    )  # fmt: skip
    print(table(results), end="\n\n")
    if asked.limit is not None:
        return
    failed = 0
    for what, figure, least in checks(results, asked.on):
        failed += figure <= least
        print(f"{'holds' if figure > least else 'FAILS'}  {what}: {figure * 100:.1f} against {least * 100:.1f}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
