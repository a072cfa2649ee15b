"""Online detectors: scores of the test recordings frame by frame."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from sensorium.abilities import OnlineDetector
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.streams.open import UNKNOWN, Stream
from sensorium.data.streams.prepare import Prepared
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.online_map import actions_of, online_map, online_scores, scored
from sensorium.judge.score import Asked, Judgement, Picture, Score, Trained
from sensorium.judge.window_baseline import window_baseline
from sensorium.pictures.images import save_picture
from sensorium.pictures.streams import timeline

MAP = "per-frame mAP"
LOOKED = 2000  # test frames of an online evaluation
SHOWN = 120  # minimum frames of an image
ROUNDS = 50  # bootstrap resamples of the recordings, for the standard error


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """Per-frame mAP of the first test recordings, enough of them for 2,000 frames."""
    parts, left = [], LOOKED
    for stream in ready.test:
        count = min(left, len(stream))
        if count > 0:
            parts.append(Stream(stream.name, stream.frames(0, count), stream.labels_of(0, count)))
        left -= count
    labels = np.concatenate([part.labels for part in parts])
    if not ((labels != UNKNOWN) & (labels != ready.background)).any():
        return {}
    scores = online_scores(method, parts, device=next(method.parameters()).device)
    return {"map": online_map(np.concatenate(scores), labels, background=ready.background)["map"]}


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Per-frame scores of the test recordings, those of baselines on the same windows, and an image."""
    same_frames(run, ready)
    if "pictures" not in kept.pieces:
        with bar("judging", asked.progress):
            found = online_scores(run.method, ready.test, device=device_name())
        kept.outcomes[MAP] = each_recording(found, ready)
        kept.piece("online", lambda: _scored(found, ready) | {"error": _error(found, ready)})
        kept.piece("pictures", lambda: [_picture(run, found, ready)])
    with bar("baselines", asked.progress and "baselines" not in kept.pieces):
        kept.piece("baselines", lambda: _baselines(ready))
    pictures = tuple(Picture(**one) for one in kept.pieces["pictures"])
    return Judgement(tuple(scores(kept.pieces)), pictures)


def same_frames(run: Trained, ready: Prepared) -> None:
    """Raise SensoriumError unless the data have the classes and the frames that a run was trained on."""
    if run.situation.classes != ready.opened.classes or len(run.situation.mean) != ready.opened.width:
        raise SensoriumError(
            f"{run.folder}: trained on {len(run.situation.classes)} classes and frames of {len(run.situation.mean)} "
            f"values, but the data have {len(ready.opened.classes)} and {ready.opened.width}."
        )


def each_recording(scores: list[np.ndarray], ready: Prepared) -> np.ndarray:
    """mAP of each test recording alone, float [R]; nan if it has no action. Frames of one recording are correlated, so
    recordings are the unit of resampling."""
    found = np.full(len(scores), np.nan)
    for i, (score, stream) in enumerate(zip(scores, ready.test, strict=True)):
        with suppress(SensoriumError):  # a recording without an action
            found[i] = online_map(score, stream.labels, background=ready.background)["map"]
    return found


def scores(found: dict[str, Any]) -> list[Score]:
    """Per-frame mAP, calibrated mAP and the delay, with logistic regression on the window and the most frequent class
    as baselines."""
    mine, beside = found["online"], found["baselines"]

    def of(key: str) -> dict[str, float]:
        return {name: one[key] for name, one in beside.items() if one.get(key) is not None}

    rows = [
        Score(MAP, mine["map"], "higher", mine["n"], "test frames", of("map"), mine["error"], True, "map"),
        Score("calibrated mAP", mine["cap"], "higher", mine["n"], "test frames", of("cap"), share=True),
    ]
    delay, simple = mine["delay"], {name: one["delay"] for name, one in beside.items()}
    if delay["n"]:
        shares = {name: one["recognised"] / one["n"] for name, one in simple.items()}
        rows.append(
            Score("recognised", delay["recognised"] / delay["n"], "higher", delay["n"], "actions", shares, share=True)
        )
    if delay["median"] is not None:
        waits = {name: one["median"] for name, one in simple.items() if one["median"] is not None}
        name = f"median delay, {mine['unit']}"
        rows.append(Score(name, delay["median"], "lower", delay["n"], "actions", waits, price=True))
    return rows


def _scored(scores: list[np.ndarray], ready: Prepared) -> dict[str, Any]:
    """As :func:`sensorium.judge.online_map.judge_online`; delays in frames if the rate is unknown."""
    found = scored(scores, ready.test, ready.opened.classes, ready.opened.rate or 1.0, ready.background)
    return found | {"unit": "frames" if ready.opened.rate is None else "s"}


def _error(scores: list[np.ndarray], ready: Prepared) -> float | None:
    """Bootstrap standard error of the mAP over the test recordings; None for four or fewer."""
    count = len(scores)
    if count < 5 or sum(map(len, scores)) > 50_000:
        return None
    rng, labels, found = np.random.default_rng(0), [stream.labels for stream in ready.test], []
    for _ in range(ROUNDS):
        drawn = rng.integers(0, count, count)
        try:
            one = online_map(
                np.concatenate([scores[i] for i in drawn]), np.concatenate([labels[i] for i in drawn]),
                background=ready.background,
            )  # fmt: skip
        except SensoriumError:  # recordings without an action
            continue
        found.append(one["map"])
    return float(np.std(found, ddof=1)) if len(found) > ROUNDS // 2 else None


def _baselines(ready: Prepared) -> dict[str, Any]:
    shares = np.bincount(ready.train.labels, minlength=len(ready.opened.classes)) / len(ready.train)
    constant = [np.tile(shares.astype(np.float32), (len(stream), 1)) for stream in ready.test]
    found = {"most frequent class": _scored(constant, ready)}
    if (shares > 0).sum() > 1:
        found["logistic regression"] = window_baseline(
            ready.opened.train,
            ready.test,
            length=ready.train.length,
            classes=ready.opened.classes,
            rate=ready.opened.rate or 1.0,
            background=ready.background,
            device="cpu",
        )
    return found


def _picture(run: Trained, scores: list[np.ndarray], ready: Prepared) -> dict[str, str]:
    """Plot the test recording with the most kinds of action, and the following ones until there are enough frames."""
    kinds = [len({action for action, _, _ in actions_of(s.labels, ready.background)}) for s in ready.test]
    chosen = [int(np.argmax(kinds))]
    while sum(len(scores[i]) for i in chosen) < SHOWN and chosen[-1] + 1 < len(scores):
        chosen.append(chosen[-1] + 1)
    ends = np.cumsum([len(scores[i]) for i in chosen])
    drawn = timeline(
        np.concatenate([scores[i] for i in chosen]),
        np.concatenate([ready.test[i].labels for i in chosen]),
        ready.opened.classes,
        rate=ready.opened.rate,
        joints=ends[:-1].tolist(),
    )
    folder = run.folder / "pictures"
    save_picture(drawn, folder / "timeline.png")
    names = ready.test[chosen[0]].name + (f" and {len(chosen) - 1} after it" if chosen[1:] else "")
    return {
        "title": "Predictions, frame by frame",
        "caption": f"{names}: the test recording with the most kinds of action. Each prediction uses only earlier frames.",
        "file": f"{run.folder.name}/pictures/timeline.png",
    }


EVALUATOR = Evaluator(
    name="online detection",
    ability=OnlineDetector,
    needs=frozenset({"frames", "actions"}),
    judge=judge,
    online=online,
)
