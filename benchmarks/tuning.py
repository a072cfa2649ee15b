"""How a trained network is best fine-tuned with few labels: what is trained of it, and at which learning rate.

SimCLR (resnet-micro) and MAE (vit-micro) learn without labels from 16,000 of CIFAR-10's training pictures, 2,000 steps each;
`supervised` starts from them with 2,000 labels of other training pictures and is scored on 2,000 more; test pictures are not looked
at. Printed as Markdown: the accuracy of each choice, and of the same network from scratch. Finished runs in OUT are read, not
trained again.
Run: python -m benchmarks.tuning [--budget 300steps] [--pretrain 2000steps] [--seeds 1] [--only resnet,vit] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.held import accuracy, done, split

PARTS = {"pretrain": slice(4_000, 20_000), "train": slice(2_000), "test": slice(2_000, 4_000)}
STARTS = {"resnet": ("simclr", "resnet-micro"), "vit": ("mae", "vit-micro")}
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "resnet": (
        *({"tune": "full", "lr": lr} for lr in (2.5e-4, 5e-4, 1e-3, 2e-3)),
        {"tune": "full", "lr": 1e-3, "head_first": 0.2},
        *({"tune": "lora", "lr": lr} for lr in (1e-3, 2.5e-3, 5e-3)),
        *({"tune": "last", "lr": lr} for lr in (5e-3, 1.25e-2, 5e-2)),
    ),
    "vit": (
        *({"tune": "full", "lr": lr, "layer_decay": 0.75, "head_first": 0.2} for lr in (1.25e-4, 5e-4, 2e-3)),
        *({"tune": "full", "lr": lr, "layer_decay": 0.75, "head_first": 0.0} for lr in (5e-4, 2e-3)),
        *({"tune": "full", "lr": lr, "layer_decay": 1.0, "head_first": 0.0} for lr in (1.25e-4, 5e-4)),
        *({"tune": "lora", "lr": lr} for lr in (1e-3, 2.5e-3, 5e-3)),
        *({"tune": "last", "lr": lr} for lr in (5e-3, 1.25e-2, 5e-2)),
    ),
}


def rows(network: str, asked: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """(choice, an accuracy for each seed)."""
    method, backbone = STARTS[network]
    data, out = asked.out / "data", asked.out / network
    start = done(method, data / "pretrain.npz", out / "start", backbone=backbone, budget=asked.pretrain)
    scratch = {"backbone": backbone, "budget": asked.budget}
    for name, how in [
        ("from scratch", scratch),
        *(
            (spelled(choice), {**choice, "start": str(start.folder), "budget": asked.budget})
            for choice in CHOICES[network]
        ),
    ]:
        place = out / name.replace(" ", "").replace(",", "_")
        runs = [done("supervised", data / "train.npz", place / str(s), seed=s, **how) for s in range(asked.seeds)]
        yield name, [accuracy(run, data / "test.npz") for run in runs]


def spelled(choice: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else str(value) for name, value in choice.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="300steps", help="of each fine-tuning")
    parser.add_argument("--pretrain", default="2000steps", help="of each network without labels")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default=",".join(CHOICES), help="resnet, vit, or both")
    parser.add_argument("--out", type=Path, default=Path("sensorium-tuning"), help="folder of the runs")
    asked = parser.parse_args()
    split(asked.out / "data", PARTS)
    print("| network | trained, rate as used | top-1, mean | seeds |\n|---|---|---|---|")
    for network in asked.only.split(","):
        for name, found in rows(network, asked):
            each = ", ".join(f"{100 * value:.1f}" for value in found)
            print(f"| {STARTS[network][1]} | {name} | {100 * np.mean(found):.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
