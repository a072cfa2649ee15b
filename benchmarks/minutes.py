"""Which network and optimizer learn most from labels in few pictures seen: the figures of docs/log.md.

`supervised` on 18,000 of CIFAR-10's training pictures, scored on the other 2,000; test pictures are not looked at. Printed as Markdown: for
each choice the accuracy, the pictures a second and the seconds of training. Budgets are counts of pictures, so that only the speeds need a
quiet machine. Finished runs in OUT are read, not trained again.
Run: python -m benchmarks.minutes [--budget 60000images] [--seeds 1] [--only TEXT] [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._held import accuracy, done, split

PARTS = {"train": slice(2_000, 20_000), "test": slice(2_000)}
CHOICES: tuple[dict[str, Any], ...] = tuple(
    {"backbone": backbone, "optimizer": optimizer, "lr": lr, "batch_size": batch}
    for backbone in ("resnet-micro", "airbench-micro")
    for optimizer, batch, rates in (("adamw", 64, (1e-3, 2e-3)), ("muon", 128, (5e-3, 1e-2, 2e-2)))
    for lr in rates
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="60000images", help="of each run")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="only choices whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path("sensorium-minutes"), help="folder of the runs")
    asked = parser.parse_args()
    split(asked.out / "data", PARTS)
    print("| network, optimizer, peak rate, batch | top-1, mean | seeds | images/s | seconds |\n|---|--:|---|--:|--:|")
    for choice in CHOICES:
        name = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in choice.values())
        if asked.only not in name:
            continue
        place = asked.out / asked.budget / name.replace(", ", "_")
        runs = [
            done(
                "supervised",
                asked.out / "data" / "train.npz",
                place / str(seed),
                seed=seed,
                budget=asked.budget,
                **choice,
            )
            for seed in range(asked.seeds)
        ]
        found = [100 * accuracy(run, asked.out / "data" / "test.npz") for run in runs]
        speed, took = (np.mean([getattr(run.outcome, what) for run in runs]) for what in ("per_second", "seconds"))
        each = ", ".join(f"{value:.1f}" for value in found)
        print(f"| {name} | {np.mean(found):.1f} | {each} | {speed:,.0f} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
