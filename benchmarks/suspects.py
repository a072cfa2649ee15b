"""How many swapped labels a comparison finds: CIFAR-10 files with some labels replaced at random by another class.

SimCLR and the supervised baseline learn from the wrong labels as they are, and OUT/suspects.csv lists whose labels they doubt.
Printed: of as many suspects as there are swaps, the share that was swapped (at random: the share of swaps), ranked as listed and by the margin, and of all
that are listed. With --methods others, with --runs DIR the finished comparison of a former call.
Run: python -m benchmarks.suspects [--share 0.05] [--budget 2m] [--limit 20000] [--seed 0] [--out DIR]
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path

import numpy as np

from sensorium.runs.compare import compare

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"


def swapped(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which ``share`` are another class, and which these are."""
    rng = np.random.default_rng(seed)
    where = np.sort(rng.permutation(len(labels))[: round(share * len(labels))])
    wrong, classes = labels.copy(), int(labels.max()) + 1
    wrong[where] = (labels[where] + rng.integers(1, classes, len(where))) % classes
    return wrong, where


def write(folder: Path, limit: int, share: float, seed: int) -> np.ndarray:
    """The data with wrong labels in ``folder``, as the readers of Sensorium take them; returns which are wrong."""
    train, test = (dict(np.load(DATA / f"{name}.npz", allow_pickle=False)) for name in ("train", "test"))
    kept = np.random.default_rng(0).permutation(len(train["labels"]))[:limit]
    labels, where = swapped(train["labels"][kept], share, seed)
    names = {"class_names": train["class_names"]}
    np.savez(folder / "train.npz", images=train["images"][kept], labels=labels, **names)
    np.savez(folder / "test.npz", images=test["images"], labels=test["labels"], **names)
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["simclr", "supervised"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"no data at {DATA}: set SENSORIUM_DATA.")
    with tempfile.TemporaryDirectory() as temporary:
        out = asked.out or Path(temporary) / "out"
        data = out.parent / f"{out.name}-data"
        data.mkdir(parents=True, exist_ok=True)
        where = set(write(data, asked.limit, asked.share, asked.seed).tolist())
        found = compare(
            asked.methods, str(data), budget=asked.budget, out=out, labels="100%", finetune=False, seed=asked.seed
        )
        assert found.suspects is not None
        rows = list(csv.DictReader((out / found.suspects.file).open()))
        listed = [int(row["image"]) for row in rows]
        first = listed[: len(where)]
        hit, all_hit = len(where & set(first)), len(where & set(listed))
        print(f"{len(where):,} of {found.suspects.n:,} labels swapped ({asked.share:.0%}); {len(listed):,} suspects")
        print(f"among the first {len(first):,}: {hit:,} swapped, {hit / len(where):.1%} (at random {asked.share:.1%})")
        by_margin = [int(row["image"]) for row in sorted(rows, key=lambda row: float(row["margin"]))][: len(where)]
        print(f"ranked by the margin instead: {len(where & set(by_margin)) / len(where):.1%}")
        print(f"among all {len(listed):,}: {all_hit:,}, {all_hit / len(where):.1%} of the swapped")
        print(f"probabilities agree with {found.suspects.accuracy:.1%} of the labels as given")


if __name__ == "__main__":
    main()
