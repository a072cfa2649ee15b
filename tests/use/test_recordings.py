"""Recordings as features: of each frame those of the window that ends with it, and a detector learns from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.data.streams.open import Framed, Stream, open_streams
from sensorium.runs.run import Run
from sensorium.runs.train import train

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Learned for two steps from three recordings of 400 steps at 50 a second."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    label = np.repeat(rng.integers(0, 3, 12), 100)
    signal = (rng.normal(size=(1200, 2)) + 3 * label[:, None]).astype(np.float32)
    np.savez(
        folder / "a.npz", signal=signal, label=label, offsets=[0, 400, 800, 1200], sample_rate_hz=50.0,
        class_names=np.array(["background", "walk", "jump"]),
    )  # fmt: skip
    small = {"width": 16, "depth": 1, "heads": 2, "length": 4, "batch_size": 8}
    return train("mae_streams", str(folder / "a.npz"), budget="2steps", out=folder / "run", progress=False, **small)


def test_features_are_of_the_windows_that_end_with_a_frame(run: Run, tmp_path: Path, command: Command) -> None:
    data, out = run.info.data.path, tmp_path / "features.npz"
    code, said, err = command("embed", str(run.folder), "--data", data, "--out", str(out))
    assert code == 0, err
    assert "99 frames of 3 recordings x 16 features" in said
    found = open_streams(out)
    assert (found.classes, found.width, found.rate) == (("background", "walk", "jump"), 16, 50 / 12)
    with np.load(data) as kept:
        values, label = kept["signal"][:400], kept["label"][:400]
    framed = Framed(Stream("a", values, label), 12)
    x = (framed.frames(0, 33) - np.array(run.situation.mean)) / np.array(run.situation.std)
    window = torch.zeros(2, 4, x.shape[1])
    window[0, 3], window[1] = torch.from_numpy(x[0]), torch.from_numpy(x[17:21])
    with torch.no_grad():
        wanted = run.method.features(window).numpy()  # type: ignore[operator]
    assert found.train[0].frames(0, 1)[0] == pytest.approx(wanted[0], abs=1e-5)
    assert found.train[0].frames(20, 21)[0] == pytest.approx(wanted[1], abs=1e-5)
    assert np.array_equal(found.train[0].labels, framed.labels)


def test_a_detector_learns_from_them(run: Run, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "features.npz"
    assert command("embed", str(run.folder), "--data", run.info.data.path, "--out", str(out))[0] == 0
    small = ("--width", "16", "--depth", "1", "--heads", "2", "--decoder-depth", "1", "--length", "6", "--quiet")
    code, _, err = command(
        "train", "oadtr", "--data", str(out), "--out", str(tmp_path / "b"), "--budget", "2steps", *small
    )
    assert code == 0, err


def test_recordings_without_labels(run: Run, tmp_path: Path, command: Command) -> None:
    np.savez(tmp_path / "bare.npz", signal=np.ones((60, 2), np.float32))
    code, _, err = command(
        "embed", str(run.folder), "--data", str(tmp_path / "bare.npz"), "--out", str(tmp_path / "f.npz")
    )
    assert code == 0, err
    with np.load(tmp_path / "f.npz") as kept:
        assert kept["features"].shape == (5, 16)
        assert (kept["label"] == -1).all()


def test_what_does_not_fit_is_named(run: Run, tmp_path: Path, command: Command) -> None:
    for arrays, said in (
        ({"signal": np.ones((60, 3), np.float32)}, "3 values per step, but the run was trained on 2"),
        ({"signal": np.ones((60, 2), np.float32), "sample_rate_hz": 20.0}, "20 steps per second, but the run was"),
        ({"signal": np.ones((5, 2), np.float32)}, "no recording is as long as a frame of 12 steps"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
        code, _, err = command(
            "embed", str(run.folder), "--data", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "f.npz")
        )
        assert code == 1
        assert said in err
    code, _, err = command("embed", str(run.folder))
    assert code == 1
    assert "encodes recordings: give a file of them, --data RECORDINGS.npz" in err
