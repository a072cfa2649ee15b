"""Per-frame (calibrated) mAP against scikit-learn and a slow reference, delays by hand, the baseline on the same
window."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from sensorium.data.streams.open import Stream, Windows
from sensorium.errors import SensoriumError
from sensorium.judge.online_map import actions_of, average_precision, delays, judge_online, online_map, online_scores
from sensorium.judge.window_baseline import flat, window_baseline


def slow(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Frame by frame, no frame tied with another."""
    weight = (~positive).sum() / positive.sum()
    tp = fp = 0
    ap = cap = 0.0
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if positive[i]:
            tp += 1
            ap += tp / (tp + fp)
            cap += weight * tp / (weight * tp + fp)
        else:
            fp += 1
    return ap / tp, cap / tp


@pytest.mark.parametrize(("frames", "share"), [(1, 1.0), (2, 0.5), (50, 0.1), (333, 0.5), (2000, 0.03)])
def test_average_precision(frames: int, share: float) -> None:
    rng = np.random.default_rng(frames)
    scores, positive = rng.permutation(frames) / 7.0, rng.random(frames) < share
    positive[0] = True
    if positive.all():
        assert average_precision(scores, positive) == (1.0, 1.0)
        return
    expected = slow(scores, positive)
    assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)
    assert expected[0] == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=60), st.integers(0, 1000))
@settings(deadline=None)
def test_ties(frames: list[tuple[int, bool]], seed: int) -> None:
    """scikit-learn's for any ties, whatever the order; calibration by repeating: w others a frame, each counted 1 / w
    times."""
    scores, positive = np.array([s for s, _ in frames], float), np.array([p for _, p in frames])
    found = average_precision(scores, positive)
    if not positive.any():
        assert all(map(math.isnan, found))
        return
    assert found[0] == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
    if not positive.all():
        weight = (~positive).sum() / positive.sum()
        calibrated = average_precision_score(positive, scores, sample_weight=np.where(positive, weight, 1.0))
        assert found[1] == pytest.approx(calibrated, abs=1e-9)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert average_precision(scores[order], positive[order]) == pytest.approx(found, abs=1e-12)


def test_mean_over_classes_without_background() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((400, 5)), rng.integers(-1, 4, 400)
    found = online_map(scores, labels, classes=("rest", "a", "b", "c", "d"))
    known = labels >= 0
    expected = {n: slow(scores[known, k], labels[known] == k) for k, n in enumerate("abc", start=1)}
    assert set(found["classes"]) == {"a", "b", "c"}
    assert found["absent"] == ["d"]
    for name, (ap, cap) in expected.items():
        assert (found["classes"][name]["ap"], found["classes"][name]["cap"]) == pytest.approx((ap, cap), abs=1e-12)
        assert found["classes"][name]["n"] == (labels == 1 + "abc".index(name)).sum()
    assert found["map"] == pytest.approx(np.mean([ap for ap, _ in expected.values()]))
    assert found["cap"] == pytest.approx(np.mean([cap for _, cap in expected.values()]))
    assert (found["n"], found["unknown"]) == (known.sum(), (~known).sum())
    assert "rest" in online_map(scores, labels, background=None, classes=("rest",))["classes"]


def test_calibration_does_not_see_how_much_background_there_is() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [200, 100])
    scores = np.stack([np.zeros(300), rng.normal(labels)], 1)
    many = np.concatenate([np.repeat(scores[:200], 10, axis=0), scores[200:]])
    one, ten = online_map(scores, labels), online_map(many, np.repeat([0, 1], [2000, 100]))
    assert ten["map"] < one["map"] - 0.2
    assert ten["cap"] == pytest.approx(one["cap"], abs=1e-9)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(SensoriumError, match="nothing can be scored"):
        online_map(np.zeros((3, 2)), np.array([0, -1, 0]))
    with pytest.raises(SensoriumError, match="not finite"):
        online_map(np.array([[0.0, np.nan]]), np.array([1]))
    with pytest.raises(ValueError, match="scores"):
        online_map(np.zeros((3, 2)), np.zeros(4))


def test_actions_are_runs_of_one_class() -> None:
    assert actions_of(np.array([0, 0, 1, 1, 2, 0, -1, 2, 2])) == [(1, 2, 4), (2, 4, 5), (2, 7, 9)]
    assert actions_of(np.array([3])) == [(3, 0, 1)]
    assert actions_of(np.zeros(0, int)) == []
    assert actions_of(np.array([0, 1]), background=None) == [(0, 0, 1), (1, 1, 2)]


def likely(*classes: int) -> np.ndarray:
    return np.eye(3)[list(classes)]


def test_delays_by_hand() -> None:
    labels = [np.array([0, 1, 1, 1, 0, 2, 2]), np.array([1, 1, 2, 2])]
    # after 2 frames, at once; never (for then it is over), after 1
    scores = [likely(1, 0, 0, 1, 0, 2, 2), likely(0, 2, 1, 2)]
    found = delays(scores, labels, seconds=0.5, within=(0.0, 1.0, 10.0))
    assert found == {"median": 0.75, "within": {"0s": 0.25, "1s": 0.75, "10s": 0.75}, "recognised": 3, "n": 4}
    assert delays([likely(0, 0, 1)], [np.array([1, 1, 2])], seconds=1.0)["median"] is None
    nothing = delays([likely(0)], [np.array([0])], seconds=1.0)
    assert (nothing["n"], nothing["median"]) == (0, None)


class Follows(nn.Module):
    """Names the class that its first feature says, so many frames late."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.late, self.seen = late, []

    def reset(self) -> None:
        self.seen = []

    def step(self, frame: Tensor) -> Tensor:
        self.seen.append(frame)
        return self.predict(torch.stack(self.seen))[-1]

    def predict(self, frames: Tensor) -> Tensor:
        frames = frames if isinstance(frames, Tensor) else torch.cat(list(frames))
        old = torch.cat([torch.zeros(self.late), frames[:, 0]])[: len(frames)].long()
        return torch.eye(3)[old] * 0.9 + 0.1 / 3


def streams(count: int, seed: int) -> list[Stream]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        labels = np.repeat(rng.integers(0, 3, 12), rng.integers(8, 20, 12))
        values = np.stack([labels, rng.normal(size=len(labels)), rng.normal(labels == 2)], 1).astype(np.float32)
        found.append(Stream(f"s{i}", values, labels))
    return found


def test_a_detector_is_judged_stream_by_stream() -> None:
    held = streams(3, 0)
    prompt = judge_online(Follows(0), held, classes=("rest", "a", "b"), rate=4.0)
    late = judge_online(Follows(3), held, classes=("rest", "a", "b"), rate=4.0)
    assert (prompt["map"], prompt["cap"], prompt["delay"]["median"]) == (1.0, 1.0, 0.0)
    assert late["map"] < 0.95
    assert late["delay"]["median"] == 0.75
    assert late["delay"]["within"] == {"0.5s": pytest.approx(0, abs=0.1), "1s": 1.0, "2s": 1.0, "5s": 1.0}
    assert late["n"] == sum(map(len, held))
    assert "delay" not in judge_online(Follows(0), held, classes=("rest", "a", "b"))
    json.dumps(late, allow_nan=False)
    assert [len(s) for s in online_scores(Follows(0), held)] == [len(s) for s in held]


def test_the_baseline_reads_the_window() -> None:
    """The class is what the first feature was two frames ago: within reach of a window of 3, not of 2."""
    train, test = streams(6, 1), streams(2, 2)
    for stream in (*train, *test):
        stream.values[2:, 0] = stream.values[:-2, 0].copy()
        hidden = np.random.default_rng(len(stream)).permutation(stream.values[:, 0])
        stream.values[:, 0] = np.roll(stream.labels, -2) * 1.0
        stream.values[:, 2] = hidden
    options = {"classes": ("rest", "a", "b"), "rate": 4.0, "most": 500}
    enough = window_baseline(train, test, length=3, **options)
    short = window_baseline([*train], test, length=1, **options)
    assert enough["map"] > 0.95 > short["map"] + 0.02
    assert enough["windows"] == 500
    assert enough["n"] == sum(map(len, test))
    assert enough["delay"]["n"] > 10
    with pytest.raises(SensoriumError, match="one class"):
        window_baseline([Stream("a", np.ones((9, 2)), np.ones(9, int))], test, length=2, classes=("rest", "a"))


def test_the_baseline_repeats_the_first_frame_before_a_stream() -> None:
    windows = Windows([Stream("a", np.array([[5.0], [6.0], [7.0]]), np.arange(3))], 3)
    assert flat(windows, np.arange(3))[0].tolist() == [[5, 5, 5], [5, 5, 6], [5, 6, 7]]
