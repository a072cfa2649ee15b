"""Encoders: kNN, a linear probe and fine-tuning at several label fractions, and the rank of the features.

A comparison of encoders is decided at one label fraction, the largest unless another is asked for: by the highest of
fine-tuning, linear probe and, with all labels, a head that was trained; means over subsets. By kNN if there is none of
them. Without labels no score decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sensorium.abilities import Encoder
from sensorium.base.bf16 import fast_bf16
from sensorium.judge import feature_baselines, feature_scores
from sensorium.judge.encode import encode
from sensorium.judge.evaluator import Evaluator
from sensorium.metrics.knn import knn
from sensorium.training.monitor import collapse

BANK, LOOKED = 2000, 500  # training and test images of an online evaluation


def online(method: Any, ready: Any) -> dict[str, float]:
    """kNN of up to 500 test images among 2,000 training images (half of them labeled, if there are so many), feature
    rank and spread; in bfloat16 where that is faster, as these are numbers to watch and not the judge's."""
    ready = feature_scores.seen(ready)
    rng, device = np.random.default_rng(0), next(method.parameters()).device
    order = rng.permutation(len(ready.train))
    if ready.train.labels is not None:  # few labels among many pictures could all be missed
        known = order[np.asarray(ready.train.labels)[order] >= 0][: BANK // 2]
        order = np.concatenate((known, order[~np.isin(order, known)])) if len(known) < len(order) else order
    train = ready.train.subset(np.sort(order[:BANK]))
    how: dict[str, Any] = {"device": device, "precision": "bf16" if fast_bf16(device) else "float32"}
    features = encode(method, train, **how)
    found = collapse(features)
    if not feature_scores.judgeable(ready):
        return found
    test = ready.test.subset(np.sort(rng.permutation(len(ready.test))[:LOOKED]))
    labels = [torch.as_tensor(part.labels) for part in (train, test)]
    score = knn(features, labels[0], encode(method, test, **how), labels[1], len(train.classes))
    return {"knn_top1": score["top1"], **found}


EVALUATOR = Evaluator(
    name="features",
    ability=Encoder,
    needs=frozenset({"image"}),
    judge=feature_scores.judge,
    online=online,
    rank=1,
    check=feature_scores.check_fractions,
    baselines=feature_baselines.judge_all,
)
