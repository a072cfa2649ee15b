"""Pictures: decoded once into a memory map, square, with labels or without."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Encoder
from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.images.cache import Pixels, cache, natural_size
from sensorium.data.images.open import Opened, open_data
from sensorium.errors import SensoriumError
from sensorium.judge.encode import encode
from sensorium.kinds import Asked, Score, Source, Trained
from sensorium.method import Method
from sensorium.metrics.knn import knn
from sensorium.recipe.recipe import Situation
from sensorium.training.monitor import collapse

SITUATION = Situation
UNIT = "readable training images"


@dataclass(frozen=True)
class Prepared:
    """Data ready for training and judging: decoded, square, memory-mapped."""

    opened: Opened
    train: Pixels
    test: Pixels | None
    size: int


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Open the data, choose the working size (``source.image_size`` pixels, or what the pictures suggest) and cache the pixels."""
    opened = open_data(source.path, test=source.test, limit=source.limit)
    size = source.image_size or natural_size(opened.train, cpu=device_name() == "cpu")
    if size < 8:
        raise SensoriumError(f"--image-size {size}: 8 pixels is the least.")
    held = opened.test if opened.test is not None else opened.val
    with bar("decoding", progress) as advance:
        train = cache(opened.train, size, source.cache, progress=advance)
    with bar("decoding the test set", progress) as advance:
        test = None if held is None else cache(held, size, source.cache, progress=advance)
    return Prepared(opened, train, test, size)


def situate(ready: Prepared) -> Situation:
    """Size, count, classes and statistics of the pictures, and the machine."""
    device, pixels = device_name(), ready.train
    return Situation(
        ready.size,
        len(pixels),
        tuple(pixels.classes),
        pixels.mean,
        pixels.std,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
    )


def wanted(situation: Situation) -> dict[str, Any]:
    return {"image_size": situation.image_size}


def keep(ready: Prepared, folder: Path) -> None:
    """Nothing: the pictures are where they were."""


def online(ready: Prepared, most: int = 2000) -> Callable[[Method], dict[str, float]]:
    """A quick look during training: kNN of up to 500 test images among ``most`` training images, feature rank and spread."""
    rng = np.random.default_rng(0)
    train = ready.train.subset(np.sort(rng.permutation(len(ready.train))[:most]))
    test = ready.test.subset(np.sort(rng.permutation(len(ready.test))[:500])) if ready.test is not None else None

    def look(method: Any) -> dict[str, float]:
        device = next(method.parameters()).device
        if not isinstance(method, Encoder):
            return {}
        features = encode(method, train, device=device)
        found = collapse(features)
        if test is not None and train.labels is not None and test.labels is not None and len(train.classes) > 1:
            score = knn(
                features,
                torch.as_tensor(train.labels),
                encode(method, test, device=device),
                torch.as_tensor(test.labels),
                len(train.classes),
            )
            found = {"knn_top1": score["top1"], **found}
        return found

    return look


def judge(run: Trained, ready: Prepared, asked: Asked) -> dict[str, Any]:
    """What the method offers is what it is judged by: features, or samples and likelihoods."""
    from sensorium.kinds import generated, image_scores

    return (image_scores if isinstance(run.method, Encoder) else generated).judge(run, ready, asked)


def scores(found: dict[str, Any]) -> list[Score]:
    """kNN, linear probe, fine-tuning and RankMe, or what samples and likelihoods come to."""
    from sensorium.kinds import generated

    rows = generated.scores(found)
    if knn_found := found.get("knn"):
        rows.append(
            Score("kNN", knn_found["top1"], "higher", knn_found["n"], "test images", share=True, curve="knn_top1")
        )
    for way, title in (("linear", "linear"), ("finetune", "fine-tuned")):
        rows += [
            Score(f"{title}, {share}", one["top1"], "higher", one["n"], "test images", error=one["std"], share=True)
            for share, one in (found.get(way) or {}).items()
        ]
    if found.get("rankme") is not None:
        rows.append(Score("RankMe", found["rankme"], "higher", 1, "run"))
    return rows


def describe(ready: Prepared) -> dict[str, Any]:
    return {
        "layout": ready.opened.layout,
        "train": len(ready.train),
        "test": len(ready.test) if ready.test is not None else 0,
        "classes": list(ready.train.classes),
        "image_size": ready.size,
    }
