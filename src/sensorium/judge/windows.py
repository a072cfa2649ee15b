"""Encoders of streams: a linear probe and kNN of windows, whose class is the action of their last frame.

The encoder is frozen. At most ``MOST`` labeled windows of the training recordings are evenly chosen; of the test recordings,
which are other people's if the data say whose they are, every labeled frame ends one. Neighboring windows are nearly the
same: so the probe's strength is chosen on held-out recordings (:func:`sensorium.judge.window_baseline.probe_of`), and
standard errors are over recordings. Beside it are the same probes of the raw window and of the untrained network, and the
most frequent class. Without labels there is only the rank of the features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import StreamEncoder
from sensorium.base.precision import device_name
from sensorium.base.terminal import stages
from sensorium.data.streams.open import UNKNOWN, Windows
from sensorium.data.streams.prepare import Prepared
from sensorium.errors import SensoriumError
from sensorium.judge.encode import judged
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Score, Trained
from sensorium.judge.streams import same_frames
from sensorium.judge.window_baseline import flat, owners, probe_of, spread
from sensorium.metrics.knn import predict
from sensorium.metrics.spectrum import rankme
from sensorium.training.monitor import collapse

LINEAR, KNN = "linear probe", "kNN"
MOST = 4000  # training windows
BANK, LOOKED = 1000, 500  # training and test windows of an online evaluation
_BLOCK = 512
Encode = Callable[[Windows, np.ndarray], Tensor]  # windows and indices [n] -> features [n, D]


class Some(NamedTuple):
    """Windows that were chosen: ``index`` int64 [n] into ``windows``, ``labels`` int64 [n] of their last frames, ``owner``
    int64 [n], their recordings."""

    windows: Windows
    index: np.ndarray
    labels: Tensor
    owner: np.ndarray


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """kNN of up to 500 test windows among 1,000 training windows, feature rank and spread."""
    train, encode = _some(ready.train, BANK), encoded_by(method, next(method.parameters()).device)
    bank = encode(train.windows, train.index)
    if unlabeled(ready):
        return collapse(bank)
    test = _some(Windows(ready.test, ready.train.length), LOOKED)
    found, _ = predict(bank, train.labels, encode(test.windows, test.index), len(ready.opened.classes))
    return {"knn_top1": float((found == test.labels).double().mean()), **collapse(bank)}


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Linear probe and kNN of the frozen encoder beside those of the baselines, and the rank of its features."""
    same_frames(run, ready)
    if which := unlabeled(ready):
        return _without_labels(which, run, ready, asked, kept)
    train = _some(ready.train, MOST)
    windows = Windows(ready.test, ready.train.length)
    test, classes, device = _some(windows, len(windows)), len(ready.opened.classes), device_name()
    with stages(run.name, asked.progress) as say:
        if "encoder" not in kept.pieces:
            say("features of windows")
            right, bank = _right(encoded_by(run.method, device), train, test, classes)
            kept.outcomes.update({name: each_recording(one, test.owner) for name, one in right.items()})
            kept.piece("encoder", lambda: _shares(right, test.owner) | {"rankme": rankme(bank), "n": len(test.index)})
        if "baselines" not in kept.pieces:
            say("raw windows and random weights")
            commonest = np.bincount(train.labels, minlength=classes).argmax()
            guessed = (test.labels == int(commonest)).numpy()
            simple = {
                "most frequent class": {LINEAR: guessed, KNN: guessed},
                "raw windows": _right(lambda rows, index: flat(rows, index)[0], train, test, classes)[0],
                "random weights": _right(encoded_by(run.untrained(), device), train, test, classes)[0],
            }
            kept.piece("baselines", lambda: {name: _shares(one, test.owner) for name, one in simple.items()})
    return Judgement(tuple(scores(kept.pieces)))


def scores(found: dict[str, Any]) -> list[Score]:
    """Linear probe and kNN with their baselines, and RankMe."""
    mine, beside = found["encoder"], found["baselines"]
    rows = []
    for name, curve in ((LINEAR, ""), (KNN, "knn_top1")):
        values = {title: one[name] for title, one in beside.items()}
        errors = {title: one[f"{name} error"] for title, one in beside.items() if one[f"{name} error"] is not None}
        rows.append(
            Score(name, mine[name], "higher", mine["n"], "test windows", values, mine[f"{name} error"], True, curve, errors=errors)
        )  # fmt: skip
    return [*rows, _rank(mine["rankme"])]


def _rank(value: float) -> Score:
    return Score("RankMe", value, "higher", 1, "run", curve="rank", decides=False)


def unlabeled(ready: Prepared) -> str:
    """Which set has no label at all, "training" or "test"; empty if both have some."""
    if not ready.train.labeled:
        return "training"
    return "" if any((stream.labels != UNKNOWN).any() for stream in ready.test) else "test"


def _without_labels(which: str, run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """The rank of the features of the training windows, and a note on what labels would add; ``which`` set has none."""

    def mine() -> float:
        encode, windows = encoded_by(run.method, device_name()), ready.train.everywhere()
        with stages(run.name, asked.progress) as say:
            say("features of windows")
            return rankme(encode(windows, spread(len(windows), MOST)))

    note = f"No {which} frame has a label: there is no linear probe and no kNN, only the rank of the features."
    return Judgement((_rank(kept.piece("rank", mine)),), notes=(note,))


def encoded_by(method: Any, device: torch.device | str) -> Encode:
    """The features that a method gives of windows, float32 on the CPU. Raises SensoriumError if they are not finite."""

    def encode(windows: Windows, index: np.ndarray) -> Tensor:
        found = []
        with judged(method, device):
            for at in range(0, len(index), _BLOCK):
                frames = windows.batch(index[at : at + _BLOCK])["frames"].to(device)
                found.append(method.features(frames).float().cpu())
        features = torch.cat(found)
        if not torch.isfinite(features).all():
            raise SensoriumError(
                "the features of the windows are not finite: the weights have diverged; train again with a lower "
                "learning rate."
            )
        return features

    return encode


def each_recording(right: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The fraction of each recording's windows that is right, float [R]; nan for one without labels. Windows of one
    recording are correlated, so recordings are the unit of resampling."""
    count = np.bincount(owner)
    return np.divide(np.bincount(owner, right), count, out=np.full(len(count), np.nan), where=count > 0)


def clustered_error(right: np.ndarray, owner: np.ndarray) -> float | None:
    """Standard error of the mean of ``right`` [n] over recordings: that of a ratio of sums, sqrt(R / (R - 1) sum_r e_r^2) / n
    with e_r the sum of a recording's deviations from the mean. None for four recordings or fewer."""
    off = np.bincount(owner, right - right.mean())[np.bincount(owner) > 0]
    R = len(off)
    return None if R < 5 else float(np.sqrt(R / (R - 1) * np.square(off).sum()) / len(right))


def _some(windows: Windows, most: int) -> Some:
    index = spread(len(windows), most)
    return Some(windows, index, torch.from_numpy(windows.labels[index]), owners(windows, index))


def _right(encode: Encode, train: Some, test: Some, classes: int) -> tuple[dict[str, np.ndarray], Tensor]:
    """Which test windows the linear probe and kNN classify correctly, float [n] each, and the training features."""
    bank = encode(train.windows, train.index)
    probe, _ = probe_of(bank, train.labels, train.owner, classes)
    found: dict[str, list[Tensor]] = {LINEAR: [], KNN: []}
    for at in range(0, len(test.index), _BLOCK):  # raw windows of all test recordings may be large
        features, labels = encode(test.windows, test.index[at : at + _BLOCK]), test.labels[at : at + _BLOCK]
        found[LINEAR].append(probe.right(features, labels))
        found[KNN].append(predict(bank, train.labels, features, classes)[0] == labels)
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}, bank


def _shares(right: dict[str, np.ndarray], owner: np.ndarray) -> dict[str, Any]:
    """The fraction that is right and its error, by the name of the score."""
    found: dict[str, Any] = {name: float(one.mean()) for name, one in right.items()}
    return found | {f"{name} error": clustered_error(one.astype(float), owner) for name, one in right.items()}


EVALUATOR = Evaluator(
    name="windows",
    ability=StreamEncoder,
    needs=frozenset({"frames"}),
    judge=judge,
    online=online,
    rank=1,
)
