"""Encoders of streams are judged by their windows: from the command line, beside baselines, with errors over recordings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sensorium.abilities import StreamEncoder
from sensorium.data.source import Source
from sensorium.data.streams import prepare as streams
from sensorium.data.streams.open import Stream, Windows
from sensorium.errors import SensoriumError
from sensorium.judge import windows as judging
from sensorium.judge.evaluator import fitting
from sensorium.judge.window_baseline import flat, owners, spread
from sensorium.recipe.trained import make_recipe
from sensorium.runs.run import Run
from sensorium.runs.train import train

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
CLASSES = ("background", "walk", "jump")
SMALL = {"mae_streams": {"width": 16, "depth": 1, "heads": 2}, "cpc_streams": {"width": 16, "state": 16}}
SYSTEMS = sorted(SMALL)


def recordings(count: int = 12, steps: int = 600) -> dict[str, np.ndarray]:
    """Two channels whose rhythm tells the class, wherever a wave begins; actions of two to four seconds."""
    rng, labels = np.random.default_rng(0), []
    while sum(map(len, labels)) < count * steps:
        labels.append(np.full(rng.integers(100, 200), rng.integers(3)))
    label = np.concatenate(labels)[: count * steps].astype(np.int8)
    phase = np.cumsum(0.2 + 0.5 * label)
    signal = np.stack([np.sin(phase), np.cos(phase)], axis=1) + 0.05 * rng.normal(size=(len(label), 2))
    return {
        "signal": signal.astype(np.float32),
        "label": label,
        "offsets": np.arange(count + 1) * steps,
        "class_names": np.array(CLASSES),
        "subject": np.arange(count) // 2,
        "sample_rate_hz": np.array(50.0),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "phone.npz"
    np.savez(path, **recordings())
    return path


@pytest.fixture(scope="module")
def ready(data: Path, tmp_path_factory: pytest.TempPathFactory) -> streams.Prepared:
    return streams.prepare(Source(str(data), None, tmp_path_factory.mktemp("cache"), settings={"length": 6}))


class Levels(torch.nn.Module, StreamEncoder):
    """The last frame of a window, times a weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.weight = dim, torch.nn.Parameter(torch.ones(()))

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[:, -1] * self.weight


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_is_trained_and_judged(system: str, data: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run"
    flags = [word for name, value in SMALL[system].items() for word in (f"--{name}", str(value))]
    words = ("train", system, "--data", str(data), "--out", str(out), *flags, "--length", "6", "--batch-size", "16")
    code, said, err = command(*words, "--budget", "20steps", "--judge", "--quiet")
    assert code == 0, err
    for word in ("linear probe", "kNN", "RankMe", "raw windows", "random weights", "most frequent class"):
        assert word in said
    stored = json.loads((out / "evaluation.json").read_text())
    first = stored["scores"][0]
    assert (first["name"], first["counted"], first["share"]) == ("linear probe", "test windows", True)
    run = Run(out)
    assert first["n"] == sum(len(stream) for stream in run.data().test)
    assert 1 / 3 < first["value"] <= 1
    kept = np.load(out / "outcomes.npz")
    assert kept["linear probe"].shape == (len(run.data().test),)
    assert (out / "online.csv").read_text().splitlines()[0].count("knn_top1") == 1
    before = (out / "evaluation.json").stat().st_mtime_ns
    code, again, _ = command("evaluate", str(out))
    assert code == 0
    assert "linear probe" in again
    assert (out / "evaluation.json").stat().st_mtime_ns == before


def test_both_are_compared(data: Path, tmp_path: Path, command: Command) -> None:
    methods = [f"{name},length=6," + ",".join(f"{k}={v}" for k, v in SMALL[name].items()) for name in SYSTEMS]
    words = ("compare", *methods, "--data", str(data), "--budget", "4steps", "--out", str(tmp_path / "out"), "--quiet")
    code, _, err = command(*words)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["scores"][0]["name"] for run in found["runs"]] == ["linear probe"] * 2
    assert "linear probe" in (tmp_path / "out" / "report.html").read_text()


def test_untrained_is_what_the_run_began_with(data: Path, tmp_path: Path) -> None:
    run = train(
        "mae_streams", str(data), budget="2steps", out=tmp_path / "a", progress=False, seed=5, length=6,
        **SMALL["mae_streams"],
    )  # fmt: skip
    torch.manual_seed(5)
    wanted = make_recipe("mae_streams", run.situation, run.info.given).method.state_dict()
    state = torch.get_rng_state()
    found = run.untrained()
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.training
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    assert any(not torch.equal(value, wanted[name]) for name, value in run.method.state_dict().items())


def test_who_fits(ready: streams.Prepared) -> None:
    assert [one.name for one in fitting(Levels(1), ready.train)] == ["windows"]


def test_windows_of_the_test_set_end_at_its_labeled_frames(ready: streams.Prepared, tmp_path: Path) -> None:
    width = ready.opened.width
    run: Any = SimpleNamespace(
        folder=tmp_path, name="run", method=Levels(width), untrained=lambda: Levels(width),
        situation=streams.situate(ready),
    )  # fmt: skip
    outcomes: dict[str, np.ndarray] = {}
    kept = judging.Kept(tmp_path, {}, outcomes, lambda: None)
    found = judging.judge(run, ready, judging.Asked(progress=False), kept)
    linear, knn, rank = found.scores
    assert (linear.name, knn.name, rank.name, rank.decides) == ("linear probe", "kNN", "RankMe", False)
    labels = np.concatenate([stream.labels for stream in ready.test])
    assert linear.n == len(labels)
    assert linear.baselines["random weights"] == linear.value  # nothing was learned here
    commonest = np.bincount(judging._some(ready.train, judging.MOST).labels).argmax()
    assert linear.baselines["most frequent class"] == pytest.approx((labels == commonest).mean())
    assert linear.value is not None
    assert linear.value > linear.baselines["most frequent class"] + 0.1
    sizes = np.array([len(stream) for stream in ready.test])
    for score in (linear, knn):
        assert (outcomes[score.name] * sizes).sum() / sizes.sum() == pytest.approx(score.value)
    looked = judging.online(Levels(width), ready)
    assert set(looked) == {"knn_top1", "rank", "spread"}


def test_the_bank_and_the_online_look_are_spread_over_all_recordings(ready: streams.Prepared) -> None:
    some = judging._some(ready.train, 20)
    assert len(some.index) == 20
    assert len(set(some.owner.tolist())) == len(ready.train.streams)
    every = ready.train.batch(some.index)
    assert torch.equal(every["actions"], some.labels)
    assert spread(5, 99).tolist() == [0, 1, 2, 3, 4]
    assert owners(ready.train, np.array([0, len(ready.train) - 1])).tolist() == [0, len(ready.train.streams) - 1]


def test_a_test_set_without_labels_is_not_looked_up(ready: streams.Prepared) -> None:
    width = ready.opened.width
    bare = [Stream("a", np.ones((9, width), np.float32), np.full(9, -1))]
    opened = SimpleNamespace(classes=ready.opened.classes)
    found = judging.online(Levels(width), SimpleNamespace(train=ready.train, test=bare, opened=opened))  # type: ignore[arg-type]
    assert set(found) == {"rank", "spread"}


def test_the_error_is_that_of_whole_recordings() -> None:
    """Of recordings that are right or wrong as a whole it is the standard error of their mean; of few there is none."""
    right = np.array([1.0, 1, 0, 1, 0, 0, 1])
    owner = np.arange(7)
    assert judging.clustered_error(right, owner) == pytest.approx(right.std(ddof=1) / np.sqrt(7))
    copies = 30
    assert judging.clustered_error(np.repeat(right, copies), np.repeat(owner, copies)) == pytest.approx(
        judging.clustered_error(right, owner)
    )
    assert judging.clustered_error(right[:4], owner[:4]) is None


def test_the_error_is_near_that_of_resampled_recordings() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 40, 30)
    parts = [(rng.random(n) < p).astype(float) for n, p in zip(sizes, rng.random(30), strict=True)]
    owner = np.repeat(np.arange(30), sizes)
    found = [np.concatenate([parts[i] for i in rng.integers(0, 30, 30)]).mean() for _ in range(1000)]
    assert judging.clustered_error(np.concatenate(parts), owner) == pytest.approx(np.std(found), rel=0.15)


def test_each_recording_counts_its_own_windows() -> None:
    found = judging.each_recording(np.array([1.0, 0, 1, 1, 1]), np.array([0, 0, 2, 2, 2]))
    assert found[[0, 2]].tolist() == [0.5, 1.0]
    assert np.isnan(found[1])


def test_features_that_are_not_finite_are_named(ready: streams.Prepared) -> None:
    broken = Levels(ready.opened.width)
    torch.nn.init.constant_(broken.weight, torch.inf)
    with pytest.raises(SensoriumError, match="not finite: the weights have diverged"):
        judging.encoded_by(broken, "cpu")(ready.train, np.arange(3))


def test_raw_windows_begin_with_their_first_frame(ready: streams.Prepared) -> None:
    windows = Windows(ready.test, 6)
    x, _ = flat(windows, np.array([0]))
    assert torch.equal(x.view(6, -1), torch.from_numpy(ready.test[0].frames(0, 1)).expand(6, -1))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings without their labels."""
    path = tmp_path_factory.mktemp("bare") / "phone.npz"
    np.savez(path, **{name: one for name, one in recordings().items() if name not in ("label", "class_names")})
    return path


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_labels_it_learns_and_is_judged_by_what_needs_none(
    system: str, bare: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "run"
    flags = [word for name, value in SMALL[system].items() for word in (f"--{name}", str(value))]
    words = ("train", system, "--data", str(bare), "--out", str(out), *flags, "--length", "6", "--batch-size", "16")
    code, said, err = command(*words, "--budget", "4steps", "--judge", "--quiet")
    assert code == 0, err
    assert "No training frame has a label: there is no linear probe and no kNN" in " ".join((said + err).split())
    stored = json.loads((out / "evaluation.json").read_text())
    names = [score["name"] for score in stored["scores"]]
    assert names == ["RankMe"] + ["next moment told", "future told"] * (system == "cpc_streams")
    assert stored["scores"][0]["value"] > 1
    assert "knn_top1" not in (out / "online.csv").read_text()
    run = Run(out)
    assert run.situation.classes == ()
    assert len(run.data().train) == sum(len(stream) for stream in run.data().opened.train)
    code, again, err = command("evaluate", str(out))
    assert code == 0, err
    assert "RankMe" in again
    assert "no linear probe and no kNN" in " ".join((again + err).split())


def test_a_labeled_test_set_does_not_help_a_training_set_without(bare: Path, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"length": 6} | SMALL["mae_streams"]
    run = train(
        "mae_streams", str(bare), test=str(data), budget="2steps", out=tmp_path / "a", progress=False, **settings
    )
    found = run.judge(progress=False)
    assert [score.name for score in found.scores] == ["RankMe"]
    assert found.notes == (
        "No training frame has a label: there is no linear probe and no kNN, only the rank of the features.",
    )
    other = train(
        "mae_streams", str(data), test=str(bare), budget="2steps", out=tmp_path / "b", progress=False, **settings
    )
    assert other.judge(progress=False).notes[0].startswith("No test frame has a label")


def test_what_learns_without_labels_learns_from_frames_that_have_none(data: Path, tmp_path: Path) -> None:
    arrays = recordings()
    arrays["label"][: len(arrays["label"]) // 2] = -1
    np.savez(tmp_path / "some.npz", **arrays)
    ready = streams.prepare(Source(str(tmp_path / "some.npz"), None, tmp_path, settings={"length": 6}))
    frames = sum(len(stream) for stream in ready.train.streams)
    assert len(ready.train) < frames
    for system in SYSTEMS:
        recipe = make_recipe(system, streams.situate(ready), SMALL[system])
        assert recipe.derive is not None
        assert len(recipe.derive(ready.train, tmp_path, False)) == frames
