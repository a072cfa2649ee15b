"""Streams: recordings with a label for every step, learnt in windows, judged frame by frame as they would arrive.

A signal of many samples a second is cut into frames of a few of them; the numbers of a frame are brought to mean 0 and
deviation 1 over the training frames. Whoever shows a method new frames does both alike (:mod:`sensorium.use.watch`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sensorium.base.bf16 import fast_bf16
from sensorium.base.files import replace as write_file
from sensorium.base.files import write_json
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.images.open import open_data
from sensorium.data.streams.clips import open_clips
from sensorium.data.streams.open import UNKNOWN, AnyStream, Stream, Streams, Windows, open_streams
from sensorium.errors import SensoriumError
from sensorium.judge.online_map import actions_of, online_map, online_scores, scored
from sensorium.judge.window_baseline import window_baseline
from sensorium.kinds import Asked, Score, Source, Trained
from sensorium.method import Method
from sensorium.pictures.streams import timeline
from sensorium.recipes.streaming import StreamSituation

SITUATION = StreamSituation
UNIT = "labelled frames"
LENGTHS = {"cpu": 32}
USUAL_LENGTH, USUAL_FUTURE = 64, 8
SIGNAL, FAST = 64, 20.0  # at most so many numbers a step, and so many steps a second: a signal, to be cut into frames
FRAMES_A_SECOND = 4.0
LOOKED = 2000  # test frames of a look during training
SHOWN = 120  # frames that a picture should have, at least
ROUNDS = 50  # resamplings of the recordings, for the score's error
NO_ACTION = ("background", "none", "null", "nothing", "no action", "no_action", "idle", "other", "unknown", "ambiguous")


class Frames:
    """The windows' frames as an array that is read when it is indexed: float32 [N, T, F]."""

    def __init__(self, windows: Windows) -> None:
        self.windows, self.shape = windows, (len(windows), windows.length, windows.width)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self.windows.batch(np.atleast_1d(index))["frames"].numpy()


@dataclass(frozen=True)
class Rows:
    """Windows as training reads them: ``images`` [N, T, F], ``labels`` [N, 1 + L + 1] as ``recipes.streaming.windowed``
    takes them."""

    images: Frames
    labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[()] = ()
    std: tuple[()] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Prepared:
    """Streams ready for training and judging; ``opened`` are in frames and in units of the training data."""

    opened: Streams
    train: Rows
    frame: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    background: int | None

    @property
    def test(self) -> tuple[AnyStream, ...]:
        """The recordings that are held out."""
        return self.opened.test


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Open the recordings, cut signals into frames of ``frame`` samples, and windows of ``length`` frames and
    ``future`` after them."""
    for flag, value in (("--image-size", source.image_size), ("--limit", source.limit)):
        if value is not None:
            raise SensoriumError(f"{flag} is for pictures; this system learns from streams.")
    settings = source.settings
    opened = _open(source, progress)
    if not opened.classes:
        raise SensoriumError(f"{opened.path}: no frame has a label: there is nothing to learn.")
    frame = _setting(settings, "frame", _usual_frame(opened))
    if frame > 1:
        opened = opened.framed(frame)
    longest = max(map(len, opened.train))
    length = _setting(settings, "length", min(LENGTHS.get(device_name(), USUAL_LENGTH), longest))
    future = _setting(settings, "future", USUAL_FUTURE)
    mean, std = (tuple(float(f"{v:.6g}") for v in values) for values in opened.moments())
    opened = opened.scaled(np.array(mean), np.array(std))
    windows = Windows(opened.train, length)
    rows = Rows(Frames(windows), _labels(opened.train, length, future), opened.classes)
    background = 0 if opened.classes[0].strip().casefold() in NO_ACTION else None
    return Prepared(opened, rows, frame, mean, std, background)


def situate(ready: Prepared) -> StreamSituation:
    """Size of frames and windows, classes, units and rate of the streams, and the machine."""
    device, (windows, length, features) = device_name(), ready.train.images.shape
    return StreamSituation(
        features,
        tuple(ready.opened.classes),
        ready.frame,
        length,
        ready.train.labels.shape[1] - 2,
        windows,
        ready.mean,
        ready.std,
        ready.opened.rate,
        ready.background,
        ready.opened.encoder,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
    )


def wanted(situation: StreamSituation) -> dict[str, Any]:
    return {"settings": {name: getattr(situation, name) for name in ("frame", "length", "future")}}


def keep(ready: Prepared, folder: Path) -> None:
    """Nothing: classes and units are in the situation."""


def online(ready: Prepared) -> Callable[[Method], dict[str, float]]:
    """A quick look during training: per-frame mAP of the first test recordings, enough of them for 2,000 frames."""
    parts, left = [], LOOKED
    for stream in ready.test:
        count = min(left, len(stream))
        if count > 0:
            parts.append(Stream(stream.name, stream.frames(0, count), stream.labels_of(0, count)))
        left -= count
    labels = np.concatenate([part.labels for part in parts])
    judgeable = ((labels != UNKNOWN) & (labels != ready.background)).any()

    def look(method: Any) -> dict[str, float]:
        if not judgeable:
            return {}
        scores = online_scores(method, parts, device=next(method.parameters()).device)
        return {"map": online_map(np.concatenate(scores), labels, background=ready.background)["map"]}

    return look


def judge(run: Trained, ready: Prepared, asked: Asked) -> dict[str, Any]:
    """Scores of the test recordings frame by frame, those of simple models of the same windows, and a picture."""
    if run.situation.classes != ready.opened.classes or len(run.situation.mean) != ready.opened.width:
        raise SensoriumError(
            f"{run.folder}: trained on {len(run.situation.classes)} classes and frames of {len(run.situation.mean)} "
            f"numbers, but the data have {len(ready.opened.classes)} and {ready.opened.width}."
        )
    path = run.folder / "evaluation.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if "online" not in found or "pictures" not in found:
        with bar("judging", asked.progress):
            scores = online_scores(run.method, ready.test, device=device_name())
        found["online"] = _scored(scores, ready) | {"error": _error(scores, ready)}
        found["pictures"] = [_picture(run, scores, ready)]
        write_json(path, found)
    if "baselines" not in found:
        with bar("simple models", asked.progress):
            found["baselines"] = _baselines(ready)
        write_json(path, found)
    return found


def scores(found: dict[str, Any]) -> list[Score]:
    """Per-frame mAP, calibrated mAP and the delay, beside logistic regression on the window and the most frequent
    class."""
    mine, beside = found["online"], found["baselines"]

    def of(key: str) -> dict[str, float]:
        return {name: one[key] for name, one in beside.items() if one.get(key) is not None}

    rows = [
        Score("per-frame mAP", mine["map"], "higher", mine["n"], "test frames", of("map"), mine["error"], True, "map"),
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


def describe(ready: Prepared) -> dict[str, Any]:
    """Counts are of frames."""
    opened = ready.opened
    lasting = "" if opened.rate is None else f" of {1 / opened.rate:.3g} s"
    notes = [*opened.notes, *(f"{skip.file}: {skip.reason}" for skip in opened.skipped[:5])]
    if len(opened.skipped) > 5:
        notes.append(f"{len(opened.skipped)} recordings in all were skipped, or have broken frames.")
    if ready.background is None:
        notes.append(f"No class is taken for background: '{opened.classes[0]}' counts as an action.")
    return {
        "layout": opened.layout,
        "train": sum(map(len, opened.train)),
        "test": sum(map(len, opened.test)),
        "classes": list(opened.classes),
        "unit": f"frames{lasting}",
        "recordings": {"train": len(opened.train), "test": len(opened.test)},
        "notes": notes,
    }


def _open(source: Source, progress: bool) -> Streams:
    if source.path != "scenes" and not source.path.startswith("scenes:"):
        return open_streams(source.path, test=source.test)
    scenes = open_data(source.path)
    with bar("drawing clips", progress) as advance:
        found = open_clips(len(scenes.train), len(scenes.test or ()), source.cache, progress=advance)
    return replace(found, path=source.path)


def _setting(settings: dict[str, Any], name: str, usual: int) -> int:
    value = settings.get(name)
    value = usual if value is None else int(value)
    if value < 1:
        raise SensoriumError(f"--{name} {value}: 1 is the least.")
    return value


def _usual_frame(opened: Streams) -> int:
    """A quarter of a second of what is a signal by its rate and its few numbers a step; 1 of all else."""
    if opened.rate is None or opened.rate < FAST or opened.width > SIGNAL:
        return 1
    shortest = min(map(len, (*opened.train, *opened.test)))
    return max(1, min(round(opened.rate / FRAMES_A_SECOND), shortest))


def _labels(streams: tuple[AnyStream, ...], length: int, future: int) -> np.ndarray:
    """Of each window, in the order of ``Windows``: labels of its last frame and of ``future`` more, and how many frames
    it lacks before its stream. int32 [N, 1 + L + 1]."""
    found = []
    for stream in streams:
        count = len(stream)
        ahead = sliding_window_view(stream.labels_of(0, count + future), 1 + future)
        lacking = np.maximum(length - 1 - np.arange(count), 0)
        rows = np.concatenate([ahead, lacking[:, None]], axis=1).astype(np.int32)
        found.append(rows[rows[:, 0] != UNKNOWN])
    return np.concatenate(found)


def _scored(scores: list[np.ndarray], ready: Prepared) -> dict[str, Any]:
    """As :func:`sensorium.judge.online_map.judge_online`; delays in frames where the rate is not known."""
    found = scored(scores, ready.test, ready.opened.classes, ready.opened.rate or 1.0, ready.background)
    return found | {"unit": "frames" if ready.opened.rate is None else "s"}


def _error(scores: list[np.ndarray], ready: Prepared) -> float | None:
    """Standard deviation of the mAP when the test recordings are drawn anew with replacement; None of four or less."""
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
    shares = np.bincount(ready.train.labels[:, 0], minlength=len(ready.opened.classes)) / len(ready.train)
    constant = [np.tile(shares.astype(np.float32), (len(stream), 1)) for stream in ready.test]
    found = {"most frequent class": _scored(constant, ready)}
    if (shares > 0).sum() > 1:
        found["logistic regression"] = window_baseline(
            ready.opened.train,
            ready.test,
            length=ready.train.images.windows.length,
            classes=ready.opened.classes,
            rate=ready.opened.rate or 1.0,
            background=ready.background,
            device="cpu",
        )
    return found


def _picture(run: Trained, scores: list[np.ndarray], ready: Prepared) -> dict[str, str]:
    """Draw the test recording of most kinds of action, with those after it until there is enough to see."""
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
    folder.mkdir(exist_ok=True)
    write_file(folder / "timeline.png", lambda temporary: drawn.save(temporary, "PNG"))
    names = ready.test[chosen[0]].name + (f" and {len(chosen) - 1} after it" if chosen[1:] else "")
    return {
        "title": "What it said, frame by frame",
        "caption": f"{names}: the test recording with the most kinds of action. An answer rests on what came before.",
        "file": f"{run.folder.name}/pictures/timeline.png",
    }
