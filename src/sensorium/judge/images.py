"""Runs on pictures: a quick look while they train, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Encoder
from sensorium.data.images.prepare import Prepared
from sensorium.judge.encode import encode
from sensorium.judge.score import Asked, Score, Trained
from sensorium.method import Method
from sensorium.metrics.knn import knn
from sensorium.training.monitor import collapse


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
    from sensorium.judge import generated, image_scores

    return (image_scores if isinstance(run.method, Encoder) else generated).judge(run, ready, asked)


def scores(found: dict[str, Any]) -> list[Score]:
    """kNN, linear probe, fine-tuning and RankMe, or what samples and likelihoods come to."""
    from sensorium.judge import generated

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
