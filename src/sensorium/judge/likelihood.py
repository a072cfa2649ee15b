"""Evaluation of exact likelihoods: bits per pixel of held-out images, with independent pixels as baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sensorium.abilities import Likelihood
from sensorium.data.images.prepare import Prepared
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Score, Trained
from sensorium.metrics.densities import Bernoulli, bits_per_dim

BITS = "bits per pixel"


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Bits per pixel of the held-out images (of the training images if none are held out)."""
    found = kept.piece("likelihood", lambda: _likelihood(run.method, ready, kept))
    beside = {"independent pixels": found["baselines"]["independent"]}
    counted = "held-out pictures, black and white"
    row = Score(BITS, found["bits_per_dim"], "lower", found["n"], counted, beside, found["error"])
    return Judgement((row,))


def _likelihood(method: Any, ready: Prepared, kept: Kept) -> dict[str, Any]:
    held = ready.train if ready.test is None else ready.test
    train, test = (method.from_pixels(torch.from_numpy(np.array(x.images))) for x in (ready.train, held))
    device = next(method.parameters()).device
    with torch.no_grad():
        mine = torch.cat([method.log_prob(x.to(device), method.members).cpu() for x in test.split(256)])
    dimensions = test[0].numel()
    kept.outcomes[BITS] = (-mine.double() / dimensions / np.log(2)).numpy()
    beside = bits_per_dim(Bernoulli.fit(train).log_prob(test), dimensions)
    return {**bits_per_dim(mine, dimensions), "baselines": {"independent": beside["bits_per_dim"]}}


EVALUATOR = Evaluator(name="likelihood", ability=Likelihood, needs=frozenset({"image"}), judge=judge, rank=3)
