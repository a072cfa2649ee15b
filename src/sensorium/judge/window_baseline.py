"""A baseline for online detectors: logistic regression on the concatenated frames of the same window.

The windows are those of :class:`sensorium.data.streams.Windows`; a window that begins before its stream is padded with
the stream's first frame. The L2 penalty is the one with the highest likelihood on held-out recordings (the last ones, a
fifth of the windows; recordings, because neighboring windows are nearly the same); the classifier is then refitted on
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.data.streams.open import AnyStream, Windows
from sensorium.errors import SensoriumError
from sensorium.judge.online_map import scored
from sensorium.metrics.linear import ROUGHLY
from sensorium.metrics.logistic import Logistic, Probe

GRID = (3.0, 0.3, 0.03, 0.003, 0.0003)  # strongest first: each solution initializes the next
UNDECIDED = 0.1  # for a single recording, of which nothing can be held out
MOST = 4000  # maximum training windows
_BLOCK = 1024


def window_baseline(
    train: Sequence[AnyStream],
    test: Sequence[AnyStream],
    *,
    length: int,
    classes: Sequence[str],
    rate: float | None = None,
    background: int | None = 0,
    most: int = MOST,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """The scores of :func:`sensorium.judge.online_map.judge_online` for ``test``, and ``windows`` (the number
    trained on, at most ``most``, evenly chosen) and ``regularisation``. length: T, frames of a window."""
    windows = Windows(train, length)
    chosen = spread(len(windows), most)
    features, labels = flat(windows, chosen)
    probe, strength = probe_of(features.to(device), labels, owners(windows, chosen), len(classes))
    scores = []
    for stream in test:
        every = Windows([stream], length, every=True)
        parts = [
            probe.logits(flat(every, np.arange(at, min(at + _BLOCK, len(every))))[0].to(device)).softmax(dim=1).cpu()
            for at in range(0, len(every), _BLOCK)
        ]
        scores.append(torch.cat(parts).numpy())
    found = scored(scores, test, classes, rate, background)
    return found | {"windows": len(chosen), "regularisation": strength}


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` indices, evenly chosen: int64, ascending."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def owners(windows: Windows, indices: np.ndarray) -> np.ndarray:
    """The recording of each window: int64 [n]."""
    return np.array([windows.place(int(i))[0] for i in indices])


def probe_of(features: Tensor, labels: Tensor, owner: np.ndarray, classes: int) -> tuple[Probe, float]:
    """The probe of windows' features [n, D], and its strength, chosen on held-out recordings; ``owner``: each window's
    recording [n]."""
    if labels.min() == labels.max():
        raise SensoriumError(f"all {len(labels):,} training windows end in one class: a classifier needs two.")
    problem = Logistic(features, labels, classes)
    strength = _strength(problem, owner)
    problem.reset()
    return problem.fit(strength), strength


def flat(windows: Windows, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Flat windows [n, T F] and their labels [n]."""
    batch = windows.batch(indices)
    frames, missing = batch["frames"], batch["missing"]
    for row in missing.nonzero().flatten().tolist():
        frames[row, : missing[row]] = frames[row, missing[row]]
    return frames.flatten(1), batch["actions"]


def _strength(problem: Logistic, owner: np.ndarray) -> float:
    """The strength from GRID with the highest likelihood on held-out recordings; ``owner``: each window's recording
    [n]."""
    held = torch.from_numpy(owner >= owner[int(0.8 * len(owner))])
    if bool(held.all()):
        return UNDECIDED
    likely = []
    for l2 in GRID:
        problem.solve(l2, ~held, ROUGHLY)
        likely.append(problem.log_likelihood(held))
    return GRID[int(np.argmax(likely))]
