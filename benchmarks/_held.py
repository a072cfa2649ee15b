"""Runs on parts of CIFAR-10's training file, scored on a part that they don't see: for choices that test pictures must not make."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.judge.encode import normalised
from sensorium.runs.run import Run
from sensorium.runs.train import train

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
