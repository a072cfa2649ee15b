"""Evaluation of likelihoods: bits per pixel of held-out binary images, or per value of those of 256 levels, beside simple models.

The density of values with uniform noise in [0, 1) is a lower bound of their probability (Theis et al., 2016, arXiv:1511.01844, section
3.1), so that its bits are an upper bound; the noise is that of seed 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Likelihood
from sensorium.data.images.prepare import Prepared
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Score, Trained
from sensorium.metrics.densities import Bernoulli, GaussianPCA, bits_per_dim
from sensorium.parts.density.pixels import LEVELS

BITS, VALUES = "bits per pixel", "bits per dimension"
COMPONENTS = 64
CHUNK = 256


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Bits per pixel or dimension of the held-out images (of the training images if none are held out)."""
    found = kept.piece("likelihood", lambda: _likelihood(run.method, ready, kept))
    name, counted, simple = _told(run.method)
    row = Score(name, found["bits_per_dim"], "lower", found["n"], counted, {simple: found["baseline"]}, found["error"])
    return Judgement((row,))


def _told(method: Any) -> tuple[str, str, str]:
    """Name of the score, what is counted, and the simple model."""
    bound = f"; an upper bound, by {method.bound}" if method.bound else ""
    if _binary(method):
        return BITS, f"held-out pictures, black and white{bound}", "independent pixels"
    return VALUES, f"held-out pictures{bound}", "Gaussian in PCA"


def _binary(method: Any) -> bool:
    """Whether its images are zeros and ones."""
    values = method.from_pixels(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1))
    return len(values.unique()) == 2


def _likelihood(method: Any, ready: Prepared, kept: Kept) -> dict[str, Any]:
    held = ready.train if ready.test is None else ready.test
    train, test = (method.from_pixels(torch.from_numpy(np.array(x.images))) for x in (ready.train, held))
    binary = _binary(method)
    dense = (train, test) if binary else tuple(_noisy(x, seed) for seed, x in enumerate((train, test)))
    asked = test if method.width == 1 else dense[1]
    device = next(method.parameters()).device
    with torch.no_grad():
        mine = torch.cat([method.log_prob(x.to(device), method.members).cpu() for x in asked.split(CHUNK)])
    dimensions = test[0].numel()
    found = bits_per_dim(mine, dimensions, width=method.width)
    kept.outcomes[_told(method)[0]] = (-mine.double() / dimensions / np.log(2) - np.log2(method.width)).numpy()
    components = min(COMPONENTS, len(train) - 1, dimensions)
    simple = Bernoulli.fit(train) if binary else GaussianPCA.fit(dense[0], components)
    beside = torch.cat([simple.log_prob(x) for x in dense[1].split(CHUNK)])
    return {**found, "baseline": bits_per_dim(beside, dimensions, width=1.0 if binary else 1 / LEVELS)["bits_per_dim"]}


def _noisy(images: Tensor, seed: int) -> Tensor:
    """With noise of the width of a level around its middle."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return images + (noise.clamp_(max=1 - 2**-15) - 0.5) / LEVELS


EVALUATOR = Evaluator(name="likelihood", ability=Likelihood, needs=frozenset({"image"}), judge=judge, rank=3)
