"""Watching: what it says of a file, of standard input and of a video is what the method says of the whole stream."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sensorium
from sensorium.data.scenes.scenes import Scenes
from sensorium.data.streams.clips import motion
from sensorium.data.streams.open import open_streams
from sensorium.data.streams.video import video_frames
from sensorium.errors import SensoriumError
from sensorium.judge.encode import normalised
from sensorium.networks.resnet import ResNet
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use.video import embed_video, is_video, read_encoder
from sensorium.use.watch import channels, follow, watch

av = pytest.importorskip("av")

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
TINY: dict[str, Any] = {
    "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 6, "future": 2, "batch_size": 16,
}  # fmt: skip
STEPS = 400


@pytest.fixture(scope="module", params=["full", "causal"])
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Run:
    """Learned for a few steps from three recordings of 400 steps at 50 a second."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    label = np.repeat(rng.integers(0, 3, 12), 100)
    signal = (rng.normal(size=(1200, 2)) + 3 * label[:, None]).astype(np.float32)
    np.savez(
        folder / "a.npz", signal=signal, label=label, offsets=[0, 400, 800, 1200], sample_rate_hz=50.0,
        class_names=np.array(["background", "walk", "jump"]),
    )  # fmt: skip
    settings = TINY | {"attention": request.param}
    return train("oadtr", str(folder / "a.npz"), budget="20steps", out=folder / "run", progress=False, **settings)


def signal_of(run: Run, recording: int = 0) -> np.ndarray:
    with np.load(run.info.data.path) as kept:
        return kept["signal"][recording * STEPS : (recording + 1) * STEPS]


def expected(run: Run, recording: int = 0) -> np.ndarray:
    """Probabilities of the whole stream [N, K], as judging computes them."""
    opened = run.data().opened
    stream = (*opened.train, *opened.test)[recording]
    return run.method.predict(torch.from_numpy(stream.frames(0, len(stream)))).numpy()  # pyright: ignore


def said(lines: Iterator[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_a_file_is_watched_recording_by_recording(run: Run) -> None:
    rows = said(watch(run.folder, run.info.data.path, as_json=True))
    assert len(rows) == 3 * (STEPS // 12)
    for i in range(3):
        own, wanted = [row for row in rows if row["stream"] == f"a.npz[{i}]"], expected(run, i)
        assert [row["frame"] for row in own] == list(range(33))
        assert [row["action"] for row in own] == [run.situation.classes[k] for k in wanted.argmax(axis=1)]
        np.testing.assert_allclose([row["probability"] for row in own], wanted.max(axis=1), atol=1e-5)
    assert rows[0]["time"] == pytest.approx(11 / 50)  # a frame is known with its last step
    assert rows[1]["time"] == pytest.approx(23 / 50)


def test_files_of_every_kind_say_the_same(run: Run, tmp_path: Path) -> None:
    signal = signal_of(run)
    wanted = [row["probability"] for row in said(watch(run, run.info.data.path, as_json=True))][:33]
    np.savez_compressed(tmp_path / "bare.npz", x=signal)  # no labels
    np.save(tmp_path / "a.npy", signal)
    np.savetxt(tmp_path / "a.csv", signal, delimiter=",", header="x,y")
    np.savetxt(tmp_path / "a.txt", signal)
    for name in ("bare.npz", "a.npy", "a.csv", "a.txt"):
        rows = said(watch(run, str(tmp_path / name), as_json=True))
        errors = [row["error"] for row in rows if "error" in row]
        assert errors == (["line 1: 3 numbers, expected 2; skipped"] if name == "a.csv" else [])
        np.testing.assert_allclose([row["probability"] for row in rows if "frame" in row], wanted, atol=1e-5)


def typed(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def test_standard_input_and_what_is_wrong_with_it(run: Run, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    lines = [" ".join(f"{v:.9g}" for v in row).encode() for row in signal_of(run)]
    broken = [b"1 2 3", b"one two", b"nan 1", b"\xff\xfe\x00", b"1e99 0", b"7", b"9" * (1 << 20) + b" 1" * 9]
    mixed = [*lines]
    for i, line in enumerate(broken):
        mixed.insert(20 * (i + 1), line)
    mixed.insert(33, b"   ")  # an empty line is nothing
    typed(monkeypatch, b"\n".join(mixed))
    code, out, _ = command("watch", str(run.folder), "-", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    errors = [row["error"] for row in rows if "error" in row]
    assert len(errors) == 6
    assert errors[0] == "line 21: 3 numbers, expected 2; skipped"
    assert "could not convert" in errors[1]
    assert "not all are finite" in errors[2]
    assert errors[5] == "7 of 408 lines were skipped"
    np.testing.assert_allclose(
        [row["probability"] for row in rows if "frame" in row], expected(run).max(axis=1), atol=1e-5
    )


def test_frames_are_judged_when_they_are_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(read, "r"))
    lines, signal = watch(run, "-"), signal_of(run)
    for i in range(3):
        for row in signal[12 * i : 12 * i + 12]:
            os.write(write, b"%f,%f\n" % tuple(row))
        assert next(lines).split()[0] == f"{(12 * i + 11) / 50:.2f}"
    os.close(write)
    assert not list(lines)


def test_only_changes_and_every_so_many(run: Run) -> None:
    path = run.info.data.path
    whole = said(watch(run, path, as_json=True))
    some = said(watch(run, path, every=10, as_json=True))
    wanted = [
        row for before, row in zip([None, *whole], whole, strict=False)
        if row["frame"] % 10 == 0 or row["action"] != (before or {}).get("action")
    ]  # fmt: skip
    assert some == wanted
    assert len(some) < len(whole)
    text = list(watch(run, path, every=10))
    assert [line for line in text if line.startswith("a.npz[")] == [f"a.npz[{i}]" for i in range(3)]
    assert len(text) == len(some) + 3


def test_a_key_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    rows = iter([b"1 2\n"] * 30)

    def readline(limit: int) -> bytes:
        if (line := next(rows, None)) is None:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=SimpleNamespace(readline=readline), isatty=lambda: False))
    code, out, _ = command("watch", str(run.folder), "-")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert run.method._past is None


def test_steps_that_are_not_finite_are_held(run: Run, tmp_path: Path) -> None:
    signal = signal_of(run).copy()
    held = signal.copy()
    signal[50:55] = np.nan
    held[50:55] = held[49]
    np.save(tmp_path / "holes.npy", signal)
    np.save(tmp_path / "held.npy", held)
    rows = said(watch(run, str(tmp_path / "holes.npy"), as_json=True))
    assert rows[0]["error"] == "holes.npy: 5 of 400 steps are not finite; each is replaced by the last finite one"
    assert rows[1:] == said(watch(run, str(tmp_path / "held.npy"), as_json=True))
    np.save(tmp_path / "none.npy", signal * np.nan)
    assert [row["error"] for row in said(watch(run, str(tmp_path / "none.npy"), as_json=True))] == [
        "none.npy: no frame is finite; skipped"
    ]


def test_following_in_pieces_of_any_size(run: Run) -> None:
    signal = signal_of(run)
    method: Any = run.method
    method.step(torch.ones(run.situation.features))  # another stream, which is forgotten
    for size in (1, 5, 12, 100, 400):
        found = list(follow(run, (signal[i : i + size] for i in range(0, 400, size))))
        np.testing.assert_allclose(np.stack(found), expected(run), atol=1e-5)
    assert channels(run.situation) == 2


def test_what_cannot_be_watched(run: Run, tmp_path: Path, command: Command) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((50, 5)))
    np.savez(tmp_path / "other.npz", images=np.zeros((3, 3)))
    np.savez(tmp_path / "fast.npz", signal=np.zeros((90, 3)), sample_rate_hz=100.0)
    (tmp_path / "cut.npz").write_bytes(b"PK")
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "a.mp4").write_bytes(b"")
    for stream, wanted in (
        (tmp_path / "wide.npy", "5 values per step, but the run was trained on 2"),
        (tmp_path / "other.npz", "Looked for 'signal'; it holds images"),
        (tmp_path / "fast.npz", "fast.npz has 100 steps per second, but the run was trained on 50"),
        (tmp_path / "cut.npz", "cut.npz: not readable as .npz"),
        (tmp_path / "text.npy", "text.npy: not readable as .npy"),
        (tmp_path / "a.mp4", "Embed videos first"),
        (tmp_path / "none.npz", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        code, _, err = command("watch", str(run.folder), str(stream))
        assert code == 1, stream
        assert wanted in err
    with pytest.raises(SensoriumError, match="--every 0"):
        watch(run, "-", every=0)
    other = Run(run.folder)
    other.__dict__["method"] = nn.Linear(1, 1)
    with pytest.raises(SensoriumError, match="which needs a run of oadtr"):
        watch(other, "-")


def film(path: Path, frames: np.ndarray, rate: int = 8) -> Path:
    """Frames uint8 [T, 3, H, W] as a video without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], "bgr0"
        for frame in frames:
            picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with labels, one without, and a damaged one."""
    folder, scenes = tmp_path_factory.mktemp("videos"), Scenes(8, size=32)
    labels = {}
    for i in range(3):
        clip = scenes.clip(i, 20)
        film(folder / f"clip{i}.mkv", clip["frames"].numpy())
        labels[f"clip{i}"] = clip["actions"].tolist()
    film(folder / "clip7.mkv", scenes.clip(7, 20)["frames"].numpy())
    whole = (folder / "clip7.mkv").read_bytes()
    (folder / "clip8.mkv").write_bytes(whole[:90])
    (folder / "labels.json").write_text(json.dumps({"classes": list(Scenes.actions), "labels": labels, "rate": 8}))
    return folder


def test_videos_become_features_that_are_learnt_from_and_watched(
    videos: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "features.npz"
    line = embed_video("motion", videos, out)
    assert line.startswith(f"{out}: 80 frames of 4 videos x 48 features; clip8.mkv was skipped: ")
    opened = open_streams(out)
    assert (opened.rate, opened.encoder, opened.classes) == (8.0, "motion", Scenes.actions)
    first = np.stack([frame.image for frame in video_frames(videos / "clip0.mkv")])
    np.testing.assert_allclose(opened.train[0].frames(0, 99), motion(first)[0], atol=1e-6)
    assert np.array_equal(opened.train[0].labels, Scenes(8).clip(0, 20)["actions"].numpy())
    assert opened.test[-1].labels.tolist() == [-1] * 20
    settings = TINY | {"length": 5}
    run = train("oadtr", str(out), budget="2steps", out=tmp_path / "run", progress=False, **settings)
    assert (run.situation.encoder, run.situation.frame) == ("motion", 1)
    code, text, err = command("watch", str(run.folder), str(videos / "clip0.mkv"), "--json")
    assert code == 0, err
    rows, wanted = [json.loads(line) for line in text.splitlines()], expected(run)
    np.testing.assert_allclose([row["probability"] for row in rows], wanted.max(axis=1), atol=1e-5)
    assert [row["time"] for row in rows] == [i / 8 for i in range(20)]
    code, _, err = command("watch", str(run.folder), str(videos / "clip8.mkv"))
    assert code == 1
    assert "clip8.mkv" in err


def test_one_video_without_labels(videos: Path, tmp_path: Path) -> None:
    line = embed_video("motion", videos / "clip7.mkv", tmp_path / "one.npz", limit=7)
    assert "7 frames of 1 video x 48 features" in line
    with np.load(tmp_path / "one.npz") as kept:
        assert kept["label"].tolist() == [-1] * 7
        assert kept["sample_rate_hz"] == 8.0
        assert kept["offsets"].tolist() == [0, 7]
    with pytest.raises(SensoriumError, match=r"clip8\.mkv"):
        embed_video("motion", videos / "clip8.mkv", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    with pytest.raises(SensoriumError, match="has no video"):
        embed_video("motion", tmp_path, videos.parent / "x.npz")
    with pytest.raises(SensoriumError, match="lies in the data"):
        embed_video("motion", tmp_path, tmp_path / "x.npz")
    assert (is_video(videos), is_video(tmp_path), is_video("a.MP4"), is_video("a.npz")) == (True, False, True, False)


def test_an_encoder_of_pictures_sees_the_middle_of_frames(videos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = ResNet((1, 1), (4, 6), bottleneck=False, stem="small", stem_width=4).eval()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    sensorium.export(net, "safetensors", tmp_path / "net")
    frames = np.random.default_rng(0).integers(0, 255, (5, 3, 224, 300), np.uint8)
    loaded: Any = sensorium.load(tmp_path / "net")
    mean, std = getattr(loaded, "normalization", (mean, std))
    with torch.no_grad():
        wanted = net.features(normalised(torch.from_numpy(frames[:, :, :, 38:262].copy()), mean, std))
    for together in (1, 2):
        found = list(read_encoder(tmp_path / "net", together=together)(iter(frames)))
        assert len(found[0]) == together
        np.testing.assert_allclose(np.concatenate(found), wanted.numpy(), atol=1e-4)
    line = embed_video(tmp_path / "net", videos / "clip0.mkv")
    assert line.startswith(str(tmp_path / "net" / "clip0.npz"))
    with np.load(tmp_path / "net" / "clip0.npz") as kept:
        assert str(kept["encoder"]) == str(tmp_path / "net")
        assert kept["features"].shape == (20, 6)
    with pytest.raises(SensoriumError, match="no checkpoint"):
        read_encoder(tmp_path / "nothing")
