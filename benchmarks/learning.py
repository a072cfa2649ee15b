"""What the methods learn in ten minutes each: the main job on CIFAR-10 files, held against floors and baselines.

Runs (or, where OUT holds finished runs, reads) the comparison and prints its table and a line a check. Twenty thousand
training pictures, 4,000 test pictures, seed 0; the floors are what a one-page script reached with its bfloat16 units.
Run: python -m benchmarks.learning [--budget 10m] [--limit N] [--out DIR]; alone, for the budget is a time. Of fewer pictures
(``--limit``) nothing is held against the floors.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from sensorium.report.table import simple_models
from sensorium.runs.compare import compare
from sensorium.runs.results import Results, RunResult

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"
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


def checks(results: Results) -> list[tuple[str, float, float]]:
    """(what, figure, what it has to exceed)."""
    found = []
    for run in results.finished:
        if run.by_labels:
            continue
        for name in ("linear, 100%", *(("kNN",) if run.name in ("simclr", "dino") else ())):
            beside = run.score(name).baselines  # type: ignore[union-attr]
            found.append((f"{run.name}: {name} above raw pixels", value(run, name), beside["raw pixels"]))
            random = beside[f"random {run.backbone}"]
            found.append((f"{run.name}: {name} above its random backbone", value(run, name), random))
        scratch = run.score("fine-tuned, 1%").baselines[f"{run.backbone} from scratch"]  # type: ignore[union-attr]
        found.append((f"{run.name}: fine-tuned, 1% above from scratch", value(run, "fine-tuned, 1%"), scratch))
        floors = FLOORS.get(run.method, {})
        found += [(f"{run.name}: {name}, floor", value(run, name), least) for name, least in floors.items()]
    return found


def table(results: Results) -> str:
    """The scores in percent, as Markdown."""
    columns = ["kNN", *(f"linear, {s}" for s in SHARES), *(f"fine-tuned, {s}" for s in SHARES)]
    lines = [
        f"| {' | '.join(['', 'images seen', 'images/s', *columns, 'RankMe'])} |",
        "|---" * (len(columns) + 4) + "|",
    ]

    def row(name: str, found: Mapping[str, float], seen: str = "", rate: str = "") -> None:
        cells = [f"{found[c] * 100:.1f}" if c in found else "" for c in columns]
        rank = f"{found['RankMe']:.0f}" if "RankMe" in found else ""
        lines.append(f"| {' | '.join([name, seen, rate, *cells, rank])} |")

    for run in results.finished:
        own = {score.name: score.value for score in run.scores if score.value is not None}
        row(f"{run.name} ({run.backbone})", own, f"{run.seen or 0:,.0f}", f"{run.per_second or 0:.0f}")
    for title, found in simple_models(results.finished).items():
        row(title, found)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="10m", help="of each method")
    parser.add_argument("--out", default="sensorium-cifar10", help="folder of the comparison")
    parser.add_argument("--limit", type=int, help="only so many pictures, to try it")
    options = parser.parse_args()
    if not (DATA / "train.npz").is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    data, test = str(DATA / "train.npz"), str(DATA / "test.npz")
    results = compare(
        METHODS, data, test=test, budget=options.budget, limit=options.limit, labels=",".join(SHARES), out=options.out
    )
    print(table(results), end="\n\n")
    if options.limit is not None:
        return
    failed = 0
    for what, figure, least in checks(results):
        failed += figure <= least
        print(f"{'holds' if figure > least else 'FAILS'}  {what}: {figure * 100:.1f} against {least * 100:.1f}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
