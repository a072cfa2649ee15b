"""Metrics of online action detection: per-frame mAP, calibrated mAP, and delay.

Frames of all streams are ranked by a class's score; with TP and FP the true and false positives among the first k,
    AP  = mean over the class's frames of  TP / (TP + FP)  at their ranks
    cAP = the same of  w TP / (w TP + FP),    w = other frames / frames of the class         (De Geest et al., 2016,
arXiv:1604.06506), which does not depend on the fraction of background frames. Both are means over the classes
without the background. Tied frames share the precision after the last of them, so that the order of frames does not
matter (AP then equals scikit-learn's; without ties both equal the authors' scripts). A class without a frame is
excluded and listed. Frames of unknown label (-1) are excluded and counted.
Delay: an action is a run of frames of one class in one stream; it is recognized when its class is first the most likely
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sensorium.abilities import OnlineDetector
from sensorium.data.streams.open import UNKNOWN, AnyStream
from sensorium.errors import SensoriumError
from sensorium.judge.encode import judged

WITHIN = (0.5, 1.0, 2.0, 5.0)  # seconds
_BLOCK = 1024  # frames read together


def average_precision(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """(AP, cAP) of ``scores`` [N] for frames that are ``positive`` (bool [N]); nan without positives. cAP is 1 without
    negatives."""
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    if not np.isfinite(scores).all():
        raise SensoriumError("frame scores are not finite: the weights have diverged.")
    count = int(positive.sum())
    if not count:
        return math.nan, math.nan
    order = np.argsort(-scores, kind="stable")
    ranked, true = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    tp = np.cumsum(true)[last].astype(np.float64)
    fp = last + 1 - tp
    share = np.diff(tp, prepend=0) / count  # of the positives that have this score
    weight = (len(scores) - count) / count
    calibrated = np.ones_like(tp)
    np.divide(weight * tp, weight * tp + fp, out=calibrated, where=(weight * tp + fp) > 0)
    return float(share @ (tp / (tp + fp))), float(share @ calibrated)


def online_map(
    scores: np.ndarray, labels: np.ndarray, *, background: int | None = 0, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """``{"map", "cap", "n", "unknown", "classes": {name: {"ap", "cap", "n"}}, "absent": [name, ...]}``.

    scores: [N, K] of all frames. labels: integers [N], -1 unknown. ``n``: frames counted, in all and of each class.
    Raises SensoriumError if no class but the background has a frame.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores [N, K] and labels [N], got {list(scores.shape)} and {list(labels.shape)}")
    known = labels != UNKNOWN
    scores, seen = scores[known], labels[known]
    found: dict[str, dict[str, float | int]] = {}
    absent = []
    for k in range(scores.shape[1]):
        name = classes[k] if k < len(classes) else str(k)
        positive = seen == k
        if k == background:
            continue
        if not positive.any():
            absent.append(name)
            continue
        ap, cap = average_precision(scores[:, k], positive)
        found[name] = {"ap": ap, "cap": cap, "n": int(positive.sum())}
    if not found:
        raise SensoriumError("no frame has the label of an action (other than background), so nothing can be scored.")
    means = {
        key: float(np.mean([one[short] for one in found.values()])) for key, short in (("map", "ap"), ("cap", "cap"))
    }
    return {**means, "n": len(seen), "unknown": int((~known).sum()), "classes": found, "absent": absent}


def actions_of(labels: np.ndarray, background: int | None = 0) -> list[tuple[int, int, int]]:
    """(class, start, stop) of the actions in one stream's labels [N]."""
    labels = np.asarray(labels)
    edges = np.flatnonzero(np.diff(labels)) + 1
    starts, stops = [0, *edges.tolist()], [*edges.tolist(), len(labels)]
    runs = [(int(labels[a]), a, b) for a, b in zip(starts, stops, strict=True) if a < b]
    return [run for run in runs if run[0] not in (background, UNKNOWN)]


def delays(
    scores: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    *,
    seconds: float,
    within: Sequence[float] = WITHIN,
    background: int | None = 0,
) -> dict[str, Any]:
    """``{"median", "within": {"1s": share}, "recognised", "n"}`` over the actions of all streams.

    scores, labels: a stream's [N, K] and [N]. seconds: between two frames. ``median``: seconds from an action's first
    frame to the one at which it is recognized, infinite if it never is: None if that is half of all or more.
    ``within``: the fraction recognized within a number of seconds of the first frame. n: actions.
    """
    found = []
    for one, truth in zip(scores, labels, strict=True):
        likeliest = np.asarray(one).argmax(axis=1)
        for action, start, stop in actions_of(truth, background):
            hits = np.flatnonzero(likeliest[start:stop] == action)
            found.append(hits[0] * seconds if len(hits) else math.inf)
    waited = np.array(found)
    middle = float(np.median(waited)) if found else math.inf
    shares = {f"{limit:g}s": float((waited <= limit + 1e-9).mean()) if found else 0.0 for limit in within}
    return {
        "median": middle if math.isfinite(middle) else None,
        "within": shares,
        "recognised": int(np.isfinite(waited).sum()),
        "n": len(found),
    }


def online_scores(
    detector: OnlineDetector, streams: Sequence[AnyStream], *, device: torch.device | str = "cpu"
) -> list[np.ndarray]:
    """Probabilities [N, K] of each stream's frames, float32; streams are read in pieces, each from a reset state."""
    found = []
    with judged(detector, device):
        for stream in streams:
            pieces = (stream.frames(at, min(at + _BLOCK, len(stream))) for at in range(0, len(stream), _BLOCK))
            found.append(detector.predict(torch.from_numpy(x).to(device) for x in pieces).float().cpu().numpy())
    return found


def judge_online(
    detector: OnlineDetector,
    streams: Sequence[AnyStream],
    *,
    classes: Sequence[str],
    rate: float | None = None,
    background: int | None = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """:func:`online_map` of the streams, with :func:`delays` under "delay" if ``rate`` (frames per second) is
    known."""
    return scored(online_scores(detector, streams, device=device), streams, classes, rate, background)


def scored(
    scores: Sequence[np.ndarray],
    streams: Sequence[AnyStream],
    classes: Sequence[str],
    rate: float | None,
    background: int | None,
) -> dict[str, Any]:
    """The result of :func:`judge_online` from given scores."""
    labels = [stream.labels for stream in streams]
    found = online_map(np.concatenate(scores), np.concatenate(labels), background=background, classes=classes)
    if rate is not None:
        found["delay"] = delays(scores, labels, seconds=1 / rate, background=background)
    return found
