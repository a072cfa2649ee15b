"""Parts of CIFAR-10's training file, for choices that test pictures must not make.

The command writes OUT/train.npz, of 18,000 pictures, and OUT/test.npz, of the other 2,000, for the comparisons of docs/log.md.
Run: python -m benchmarks.held [OUT]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.judge.encode import normalised
from sensorium.runs.run import Run
from sensorium.runs.train import train

PARTS = {"train": slice(2_000, 20_000), "test": slice(2_000)}
DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10" / "train.npz"


def split(folder: Path, parts: Mapping[str, slice]) -> None:
    """Parts of the training file, of its pictures in one random order, as ``folder/NAME.npz``. Ends the command if the
    file is not there."""
    if not DATA.is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    folder.mkdir(parents=True, exist_ok=True)
    whole = dict(np.load(DATA, allow_pickle=False))
    order = np.random.default_rng(0).permutation(len(whole["labels"]))
    for name, chosen in parts.items():
        some = {key: whole[key][order[chosen]] for key in ("images", "labels")}
        np.savez(folder / f"{name}.npz", **some, class_names=whole["class_names"])


def accuracy(run: Run, file: Path) -> float:
    """Of the run's own head, on the pictures of ``file``."""
    data, on = np.load(file, allow_pickle=False), run.situation
    images = torch.from_numpy(data["images"])
    images = images.permute(0, 3, 1, 2) if images.shape[-1] == 3 else images
    with torch.inference_mode():
        found = [run.method.logits(normalised(some, on.mean, on.std)).argmax(1) for some in images.split(250)]
    return float((torch.cat(found).numpy() == data["labels"]).mean())


def done(method: str, data: Path, out: Path, **how: Any) -> Run:
    """The finished run in ``out``, or a new one on all of ``data``, beside which lies test.npz."""
    if (out / "run.json").is_file() and (run := Run(out)).finished:
        return run
    return train(method, str(data), test=str(data.with_name("test.npz")), out=out, progress=False, fresh=True, **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("sensorium-held"), help="folder of the two files")
    asked = parser.parse_args()
    split(asked.out, PARTS)
    print(f"{asked.out / 'train.npz'}, {asked.out / 'test.npz'}")


if __name__ == "__main__":
    main()
