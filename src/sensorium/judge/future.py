"""Systems that predict the future: how often they tell a held-out sequence's own future from those of others.

At most ``MOST`` windows of the test recordings or rows of the held-out text, evenly chosen, are put into groups of ``AMONG`` by
chance. In a group the future of each, k moments ahead, is told from those of all at that time: by chance one in ``AMONG`` is
right. What a moment is, and how far ahead is predicted, are the system's: compare systems of one and the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import FuturePredictor
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.streams.open import Windows
from sensorium.errors import SensoriumError
from sensorium.judge.encode import judged
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Score, Trained
from sensorium.judge.window_baseline import spread

NEXT, ALL = "next moment told", "future told"
AMONG = 64
MOST, LOOKED = 16 * AMONG, 4 * AMONG  # sequences in all, and of an online evaluation


def online(method: Any, ready: Any) -> dict[str, float]:
    """How often the next moment is told."""
    told = told_of(method, held_sequences(ready, LOOKED), next(method.parameters()).device)
    return {"next_told": float(told[:, 0].mean())}


def judge(run: Trained, ready: Any, asked: Asked, kept: Kept) -> Judgement:
    """How often the next moment is told, and on average over all steps ahead that are predicted."""

    def mine() -> dict[str, Any]:
        with bar("judging the future", asked.progress):
            told = told_of(run.method, held_sequences(ready, MOST), device_name())
        kept.outcomes.update({NEXT: told[:, 0], ALL: told.mean(1)})
        count = len(told)
        found = {name: float(kept.outcomes[name].mean()) for name in (NEXT, ALL)}
        errors = {f"{name} error": float(kept.outcomes[name].std(ddof=1) / count**0.5) for name in (NEXT, ALL)}
        return {**found, **errors, "n": count, "chance": 1 / min(AMONG, count)}

    found = kept.piece("told", mine)
    rows = [
        Score(
            name, found[name], "higher", found["n"], "held-out sequences", {"chance": found["chance"]}, found[f"{name} error"], True, curve
        )
        for name, curve in ((NEXT, "next_told"), (ALL, ""))
    ]  # fmt: skip
    return Judgement(tuple(rows))


def held_sequences(ready: Any, most: int) -> Tensor:
    """At most ``most`` windows [R, T, F] or rows of tokens [R, T] that were not trained on, in an order by chance, a multiple of
    ``AMONG`` unless there are fewer. Raises SensoriumError if there are not two."""
    if "frames" in ready.train.fields:
        windows = Windows(ready.test, ready.train.length, every=True)
        found = windows.batch(spread(len(windows), most))["frames"]
    else:
        count = len(ready.test) // ready.length
        rows = np.asarray(ready.test)[: count * ready.length].reshape(count, ready.length)
        found = torch.from_numpy(rows[spread(count, most)].astype(np.int64))
    if len(found) < 2:
        raise SensoriumError(f"{ready.opened.path}: {len(found)} held-out sequence has no other to be told from.")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(found)))
    return found[order[: len(found) // AMONG * AMONG or len(found)]]


def told_of(method: Any, sequences: Tensor, device: torch.device | str) -> np.ndarray:
    """[R, T, ...] -> for each sequence and number of steps, the fraction of its moments whose future is told in its group:
    float64 [R, steps]."""
    with judged(method, device):
        return torch.cat([method.tell(part.to(device)).double().cpu() for part in sequences.split(AMONG)]).numpy()


EVALUATOR = Evaluator(
    name="future", ability=FuturePredictor, needs=frozenset(), judge=judge, online=online, rank=2
)  # fmt: skip
