"""What the methods learn in ten minutes each: the main job on CIFAR-10 files, held against floors and baselines.

Runs (or, where OUT holds finished runs, reads) the comparison and prints its table and a line a check. Twenty thousand
training pictures, 4,000 test pictures, seed 0; the floors are what a one-page script reached with its bfloat16 units.
Run: python -m benchmarks.learning [--budget 10m] [--out DIR]; alone, for the budget is a time.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from sensorium.runs.compare import compare

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"
METHODS = ("mae", "simclr", "dino", "supervised")
SHARES = ("1%", "10%", "100%")
# method -> score -> least top1
FLOORS = {
    "simclr": {"knn": 0.540, "linear 100%": 0.589, "linear 1%": 0.418},
    "mae": {"knn": 0.366, "linear 100%": 0.474, "linear 1%": 0.331},
}


def flat(scores: dict[str, Any]) -> dict[str, float]:
    """``{"knn": top1, "linear 1%": top1, ...}`` of a run or a baseline."""
    found = {"knn": scores["knn"]["top1"]} if scores.get("knn") else {}
    for kind in ("linear", "finetune"):
        found |= {f"{kind} {share}": score["top1"] for share, score in (scores.get(kind) or {}).items()}
    return found


def checks(results: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, figure, what it has to exceed)."""
    beside, found = results["baselines"], []
    pixels = flat(beside["pixels"])
    for run in results["runs"]:
        if run["status"] != "finished" or run["trains_on_labels"]:
            continue
        name, mine = run["name"], flat(run)
        random = flat(beside["random"][run["backbone"]])
        scratch = beside["scratch"][run["backbone"]]
        for score in ("linear 100%", *(("knn",) if name in ("simclr", "dino") else ())):
            found.append((f"{name}: {score} above raw pixels", mine[score], pixels[score]))
            found.append((f"{name}: {score} above its random backbone", mine[score], random[score]))
        found.append((f"{name}: finetune 1% above from scratch", mine["finetune 1%"], scratch["1%"]["top1"]))
        found += [
            (f"{name}: {score}, floor", mine[score], least) for score, least in FLOORS.get(run["method"], {}).items()
        ]
    return found


def table(results: dict[str, Any]) -> str:
    """The scores in percent, as Markdown."""
    columns = ["knn", *(f"linear {s}" for s in SHARES), *(f"finetune {s}" for s in SHARES)]
    lines = [
        f"| {' | '.join(['', 'images seen', 'images/s', *columns, 'RankMe'])} |",
        "|---" * (len(columns) + 4) + "|",
    ]

    def row(name: str, scores: dict[str, Any], seen: str = "", rate: str = "", rank: float | None = None) -> None:
        found = flat(scores)
        cells = [f"{found[c] * 100:.1f}" if c in found else "" for c in columns]
        lines.append(f"| {' | '.join([name, seen, rate, *cells, '' if rank is None else f'{rank:.0f}'])} |")

    for run in results["runs"]:
        if run["status"] == "finished":
            name = f"{run['name']} ({run['backbone']})"
            row(name, run, f"{run['images_seen']:,}", f"{run['images_per_second']:.0f}", run["rankme"])
    beside = results["baselines"]
    row("raw pixels", beside["pixels"])
    for backbone, scores in beside["random"].items():
        row(f"random {backbone}", scores, rank=scores["rankme"])
        row(f"{backbone} from scratch", {"finetune": beside["scratch"].get(backbone)})
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="10m", help="of each method")
    parser.add_argument("--out", default="sensorium-cifar10", help="folder of the comparison")
    options = parser.parse_args()
    if not (DATA / "train.npz").is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    data, test = str(DATA / "train.npz"), str(DATA / "test.npz")
    results = compare(METHODS, data, test=test, budget=options.budget, labels=",".join(SHARES), out=options.out)
    print(table(results), end="\n\n")
    failed = 0
    for what, figure, least in checks(results):
        failed += figure <= least
        print(f"{'holds' if figure > least else 'FAILS'}  {what}: {figure * 100:.1f} against {least * 100:.1f}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
