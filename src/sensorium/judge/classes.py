"""Classifiers: the accuracy of the head that was trained, and whether its probabilities can be believed.

The temperature that divides its logits is fitted to the labeled test images, the only ones that it was not trained on.
It is one number and changes no prediction; the calibration error that is reported is measured on halves of them that did
not choose it (:mod:`sensorium.metrics.calibration`).
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.abilities import Classifier
from sensorium.base.precision import device_name
from sensorium.base.records import Range, decode
from sensorium.data.images.cache import Pixels
from sensorium.judge.encode import encode, judged, labels_of
from sensorium.judge.evaluator import FILE, Evaluator, Kept, read_judgement
from sensorium.judge.feature_scores import COUNTED, HEAD, HEAD_GROUP, seen
from sensorium.judge.score import Asked, Judgement, Score, Trained, share_error
from sensorium.metrics.calibration import COLDEST, HOTTEST, calibration_error, crossfitted, temperature

NAME = "classification"
ERROR = "calibration error"
Temperature = Annotated[float, Range(COLDEST, HOTTEST)]
TIMED = (1, 32)  # batch sizes
PAIRS, LOOKED_AT = 2000, 24  # pairs of classes, and pictures of each kind, that are kept
_REPEATS, _LONGEST = 20, 2.0  # of a latency: calls, and seconds


class Logits(nn.Module):
    """A classifier whose features are its logits, for :func:`sensorium.judge.encode.encode`."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method, self.dim = method, method.classes

    def features(self, images: Tensor) -> Tensor:
        return self.method.logits(images)


def logits_of(method: Any, pixels: Pixels, **how: Any) -> Tensor:
    """Logits [N, classes], float32, on the CPU; ``how``: of :func:`sensorium.judge.encode.encode`."""
    return encode(Logits(method), pixels, device=device_name(), **how)  # type: ignore[arg-type]


def judge(run: Trained, ready: Any, asked: Asked, kept: Kept) -> Judgement:
    """Accuracy and calibration on the labeled test images, and the latency; nothing without them."""
    ready = seen(ready)
    test = ready.test
    if test is None or not (labels_of(test) >= 0).any() or len(test.classes) != run.method.classes:
        return Judgement()

    truth = labels_of(test)
    known = np.flatnonzero(truth >= 0)
    labels = torch.from_numpy(truth[known])
    seen_by = cache(lambda: logits_of(run.method, test, indices=known))  # two pieces need it, and either may be kept

    def found() -> dict[str, Any]:
        logits = seen_by()
        right = logits.argmax(dim=1) == labels
        kept.outcomes[HEAD] = right.numpy()
        return {
            "top1": float(right.double().mean()),
            "n": len(known),
            "temperature": temperature(logits, labels),
            "error": calibration_error(crossfitted(logits, labels), labels),
            "uncalibrated": calibration_error(logits.double().softmax(dim=1), labels),
        }

    head = kept.piece("head", found)
    kept.piece("errors", lambda: errors(seen_by() / head["temperature"], labels, known))
    kept.piece("latency", lambda: latency(run.method, run.situation.image_size))
    top1, n = head["top1"], head["n"]
    learned = int((labels_of(ready.train) >= 0).sum())
    return Judgement((
        Score(HEAD, top1, "higher", n, COUNTED, error=share_error(top1, n), share=True, group=HEAD_GROUP, at=1.0, labels=learned),
        Score(ERROR, head["error"], "lower", n, COUNTED, share=True, decides=False, references={"uncalibrated": head["uncalibrated"]}),
    ))  # fmt: skip


def errors(logits: Tensor, labels: Tensor, where: np.ndarray) -> dict[str, Any]:
    """Which classes are taken for which, and the pictures to look at, for logits [N, K] and labels [N] of the images
    ``where``: ``confused`` (given, taken, number), the most frequent first; ``worst``: the most confident errors, and
    ``doubtful``: where the two likeliest classes are nearest to each other, as (image, given, likely, their
    probabilities)."""
    chances = logits.double().softmax(dim=1)
    taken = chances.argmax(dim=1)
    classes = chances.shape[1]
    wrong = taken != labels
    pairs = torch.bincount(labels[wrong] * classes + taken[wrong], minlength=classes**2)
    order = pairs.argsort(descending=True, stable=True)[: min(PAIRS, int((pairs > 0).sum()))]
    top, best = chances.topk(min(2, classes), dim=1)

    def shown(rows: Tensor, other: Tensor) -> list[list[Any]]:
        return [
            [int(where[i]), int(labels[i]), int(k), float(chances[i, labels[i]]), float(chances[i, k])]
            for i, k in zip(rows.tolist(), other.tolist(), strict=True)
        ]

    worst = torch.nonzero(wrong)[:, 0]
    worst = worst[top[worst, 0].argsort(descending=True, stable=True)[:LOOKED_AT]]
    doubtful = (top[:, 0] - top[:, -1]).argsort(stable=True)[:LOOKED_AT]
    second = torch.where(best[:, 0] == labels, best[:, -1], best[:, 0])  # the other class of the two
    return {
        "confused": [[int(one) // classes, int(one) % classes, int(pairs[one])] for one in order],
        "worst": shown(worst, taken[worst]),
        "doubtful": shown(doubtful, second[doubtful]),
    }


def temperature_of(folder: Path) -> float | None:
    """The temperature of the run in ``folder``; None if it was not judged. Raises SensoriumError that names a damaged
    field."""
    found = read_judgement(folder)
    head = None if found is None else found.details.get(NAME, {}).get("head")
    if not isinstance(head, dict):
        return None
    where = str(folder / FILE)
    return decode(Temperature, head.get("temperature"), where, field=f"details.{NAME}.head.temperature")


def latency(method: Any, side: int) -> dict[str, float]:
    """Median seconds a picture, by batch size, of a forward pass on this machine's device."""
    device, found = device_name(), {}
    with judged(method, device):
        for batch in TIMED:
            images, times = torch.zeros(batch, 3, side, side, device=device), []
            begun = time.perf_counter()
            while len(times) < _REPEATS and (len(times) < 3 or time.perf_counter() - begun < _LONGEST):
                since = time.perf_counter()
                method.logits(images).sum().item()  # waits for the device
                times.append((time.perf_counter() - since) / batch)
            found[str(batch)] = float(np.median(times[1:]))
    return found


EVALUATOR = Evaluator(name=NAME, ability=Classifier, needs=frozenset({"image", "label"}), judge=judge)
