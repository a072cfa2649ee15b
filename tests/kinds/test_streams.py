"""Streams from the command line: train, look, judge; rows as training reads them; and what people are told."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sensorium
from sensorium.base.draw import Draw
from sensorium.base.files import write_json
from sensorium.data.scenes.scenes import Scenes
from sensorium.data.source import Source
from sensorium.data.streams import prepare as streams
from sensorium.data.streams.clips import FRAMES, motion, open_clips
from sensorium.data.streams.open import Scaled, Windows, open_streams
from sensorium.errors import SensoriumError
from sensorium.judge import streams as judged
from sensorium.judge.evaluator import VERSION, read_judgement
from sensorium.pictures.streams import timeline
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.streaming.oadtr import recipe as streaming
from sensorium.streaming.oadtr.formats import save_oadtr
from sensorium.streaming.oadtr.method import OadTR

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
CLASSES = ("background", "walk", "jump")
TINY: dict[str, Any] = {
    "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 8, "future": 3, "batch_size": 16,
}  # fmt: skip
FLAGS = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def recordings(seed: int = 0, count: int = 6, steps: int = 1200) -> dict[str, np.ndarray]:
    """A signal of three channels that tells its class by its level and its rhythm; actions of two to four seconds."""
    rng = np.random.default_rng(seed)
    labels = []
    while sum(map(len, labels)) < count * steps:
        labels.append(np.full(rng.integers(100, 200), rng.integers(3)))
    label = np.concatenate(labels)[: count * steps].astype(np.int8)
    beat = np.sin(np.arange(len(label)) * (0.2 + 0.4 * label))
    signal = np.stack([beat, 100 + 20.0 * label, beat * label], axis=1) + 0.1 * rng.normal(size=(len(label), 3))
    return {
        "signal": signal.astype(np.float32),
        "label": label,
        "offsets": np.arange(count + 1) * steps,
        "class_names": np.array(CLASSES),
        "sample_rate_hz": np.array(50.0),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "phone.npz"
    np.savez(path, **recordings())
    return path


def prepared(path: Path | str, cache: Path, **settings: Any) -> streams.Prepared:
    return streams.prepare(Source(str(path), None, cache, settings=settings))


def test_it_learns_and_is_judged_frame_by_frame(data: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run"
    words = ("train", "oadtr", "--data", str(data), "--out", str(out), *FLAGS, "--lr", "0.01", "--quiet")
    code, said, err = command(*words, "--budget", "60steps", "--judge")
    assert code == 0, err
    for word in ("per-frame mAP", "calibrated mAP", "logistic regression", "most frequent class", "recognised"):
        assert word in said
    stored = json.loads((out / "evaluation.json").read_text())
    found = stored["details"]["online detection"]
    mine, beside = found["online"], found["baselines"]
    assert mine["map"] > beside["most frequent class"]["map"] + 0.1
    assert mine["n"] == beside["logistic regression"]["n"] == 2 * 100
    assert set(mine["classes"]) == set(CLASSES[1:])
    chance = beside["most frequent class"]
    for name, one in mine["classes"].items():  # a constant score ranks nothing: precision is the class's share
        assert chance["classes"][name]["ap"] == pytest.approx(one["n"] / mine["n"])
        assert chance["classes"][name]["cap"] == pytest.approx(0.5)
    with (out / "online.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["map"]) > float(rows[0]["map"])
    picture = stored["pictures"][0]
    assert Image.open(out.parent / picture["file"]).size[0] > 1000
    info = json.loads((out / "run.json").read_text())
    assert info["situation"]["rate"] == 50 / 12
    assert info["situation"]["background"] == 0
    assert [info["settings"][name]["value"] for name in ("frame", "length", "future")] == [12, 8, 3]
    before = (out / "evaluation.json").stat().st_mtime_ns
    code, again, _ = command("evaluate", str(out))
    assert code == 0
    assert "per-frame mAP" in again
    assert (out / "evaluation.json").stat().st_mtime_ns == before


def test_scores_are_in_order_and_only_of_what_is_known(data: Path, tmp_path: Path) -> None:
    run = train("oadtr", str(data), budget="2steps", out=tmp_path / "a", progress=False, **TINY)
    whole = run.judge(progress=False)
    rows, found = {score.name: score for score in whole.scores}, whole.details["online detection"]
    first = next(iter(rows.values()))
    assert (first.name, first.better, first.share, first.curve) == ("per-frame mAP", "higher", True, "map")
    assert set(first.baselines) == {"most frequent class", "logistic regression"}
    assert rows["recognised"].n == found["online"]["delay"]["n"]
    found["online"]["delay"] |= {"median": None}
    assert not [score for score in judged.scores(found) if "delay" in score.name]
    found["online"]["delay"] = {"median": None, "within": {}, "recognised": 0, "n": 0}
    assert [score.name for score in judged.scores(found)] == ["per-frame mAP", "calibrated mAP"]


def test_the_recordings_a_score_rests_on_are_resampled(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "train.npz", **recordings(0, 3))
    np.savez(data / "test.npz", **recordings(1, 6))
    run = train("oadtr", str(data), budget="2steps", out=tmp_path / "run", progress=False, **TINY)
    first = run.judge(progress=False).scores[0]
    assert first.error is not None
    assert 0 < first.error < 0.3
    assert first.outcomes is not None
    assert first.outcomes.shape == (6,)  # mAP of each recording alone


@pytest.mark.parametrize("unknown", [False, True])
def test_rows_are_the_windows(data: Path, tmp_path: Path, unknown: bool) -> None:
    arrays = recordings()
    if unknown:
        arrays["label"][500:900] = -1
    np.savez(tmp_path / "a.npz", **arrays)
    ready = prepared(tmp_path / "a.npz", tmp_path, length=8, future=3, frame=10)
    windows = Windows(ready.opened.train, 8, 3)
    assert len(ready.train) == len(windows) == len(ready.train.labels)
    assert ready.train.fields["frames"].shape == (8, 36)
    index = np.arange(len(windows))
    draw = Draw.seeded(0, 0, len(index))
    batch = streaming.windowed()(ready.train.take(index), draw)
    for name, wanted in windows.batch(index).items():
        assert torch.equal(batch[name], wanted), name
    noisy = streaming.windowed(0.5)(batch, draw)["frames"]
    assert (noisy - batch["frames"]).std() == pytest.approx(0.5, rel=0.05)


def test_frames_are_in_units_of_the_training_data(data: Path, tmp_path: Path) -> None:
    ready = prepared(data, tmp_path)
    assert ready.frame == 12
    every = np.concatenate([stream.frames(0, 10**6) for stream in ready.opened.train])
    np.testing.assert_allclose(every.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(every.std(axis=0), 1, atol=1e-3)
    raw = open_streams(data).framed(12)
    lazy = Scaled(raw.test[0], np.array(ready.mean), np.array(ready.std))
    assert np.array_equal(lazy.frames(5, 9), ready.test[0].frames(5, 9))
    assert np.array_equal(lazy.labels, ready.test[0].labels)
    assert ready.test[0].frames(98, 105).shape == (2, 42)
    ready.test[0].frames(5, 9)[:] = 0  # a copy: what is held stays as it is
    assert np.array_equal(lazy.frames(5, 9), ready.test[0].frames(5, 9))


def test_numbers_that_do_not_vary_or_are_large_have_units_too(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(900, 3)) * (0, 0.1, 1) + (7, 1e4, 0)
    np.savez(tmp_path / "a.npz", signal=values, label=np.arange(900) % 2, offsets=[0, 300, 600, 900])
    mean, std = open_streams(tmp_path / "a.npz").moments()
    np.testing.assert_allclose(mean, values[:600].mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(std, (1, values[:600, 1].std(), values[:600, 2].std()), rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "frame"),
    [
        ({}, 12),
        ({"sample_rate_hz": np.array(100.0)}, 25),
        ({"sample_rate_hz": np.array(10.0)}, 1),
        ({"sample_rate_hz": np.array("fast")}, 1),
        ({"signal": np.zeros((3600, 70), np.float32)}, 1),
    ],
)
def test_a_frame_is_a_quarter_of_a_second_of_a_signal(tmp_path: Path, change: dict, frame: int) -> None:
    np.savez(tmp_path / "a.npz", **(recordings(0, 3) | change))
    assert prepared(tmp_path / "a.npz", tmp_path).frame == frame


def test_only_what_says_so_is_background(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **(recordings(0, 3) | {"class_names": np.array(["sit", "walk", "jump"])}))
    ready = prepared(tmp_path / "a.npz", tmp_path)
    assert ready.background is None
    assert "'sit' counts as an action" in streams.describe(ready)["notes"][-1]
    assert streams.situate(ready).background is None


def test_the_same_data_come_back_for_a_run(data: Path, tmp_path: Path) -> None:
    run = train("oadtr", str(data), budget="1steps", out=tmp_path / "run", progress=False, frame=10, **TINY)
    again = Run(run.folder)
    ready = again.data()
    assert streams.situate(ready) == again.situation == streams.situate(prepared(data, tmp_path, frame=10, **TINY))
    about = streams.describe(ready)
    assert (about["train"], about["test"], about["unit"]) == (480, 240, "frames of 0.2 s")
    assert again.method(windows_of(ready))["loss"].isfinite()


def windows_of(ready: streams.Prepared, rows: int = 8) -> dict[str, Any]:
    at = np.arange(rows)
    views = streaming.windowed()
    draw = Draw.seeded(0, 0, rows)
    return views(ready.train.take(at), draw)


def test_scenes_in_motion(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run"
    small = [word if word != "8" else "6" for word in FLAGS]
    words = ("train", "oadtr", "--data", "scenes:24", "--out", str(out), *small, "--attention", "causal")
    code, said, err = command(*words, "--budget", "3steps", "--judge", "--quiet")
    assert code == 0, err
    assert "per-frame mAP" in said
    run = Run(out)
    assert run.situation.encoder == "motion"
    assert run.situation.classes == Scenes.actions
    ready = run.data()
    assert (len(ready.opened.train), len(ready.test)) == (24, 4)
    assert np.array_equal(ready.opened.train[5].labels, Scenes(24).clip(5, FRAMES)["actions"].numpy())
    assert sorted(file.name for file in (tmp_path / "cache").glob("clips*")) == [
        "clips-test-4-24-motion.npz", "clips-train-24-24-motion.npz",
    ]  # fmt: skip


def test_motion_points_where_brightness_goes(tmp_path: Path) -> None:
    """A soft spot that moves by a pixel: d g sums to less than 0 along its way and to nothing across it."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        at = [32 + step * t * (axis == i) for t in (0, 1) for i in (0, 1)]
        spots = [200 * np.exp(-((x - at[2 * t]) ** 2 + (y - at[2 * t + 1]) ** 2) / 72) for t in (0, 1)]
        frames = np.stack([np.repeat(spot[None].astype(np.uint8), 3, axis=0) for spot in spots])
        found = motion(frames)[0][1].reshape(3, 16)
        along = np.square(found[axis]) @ np.sign(found[axis])
        aside = np.square(found[1 - axis]) @ np.sign(found[1 - axis])
        assert -step * along > 10 * abs(aside)
        assert (found[2] >= 0).all()


def test_motion_knows_the_frame_before(tmp_path: Path) -> None:
    frames = Scenes(3, size=32).clip(1, 9)["frames"].numpy()
    whole, last = motion(frames)
    assert whole.shape == (9, 48)
    assert not whole[0].any()
    assert whole[1:].any(axis=1).all()
    first, before = motion(frames[:4])
    rest, again = motion(frames[4:], before)
    assert np.array_equal(np.concatenate([first, rest]), whole)
    assert np.array_equal(again, last)
    assert motion(frames[..., :7, :5])[0].shape == (9, 48)
    drawn, kept = (open_clips(2, 1, tmp_path) for _ in range(2))
    assert np.array_equal(drawn.train[1].frames(0, 99), kept.train[1].frames(0, 99))
    wanted = motion(Scenes(2, size=32).clip(1, FRAMES)["frames"].numpy())[0]
    assert np.array_equal(kept.train[1].frames(0, 99), wanted)


def test_a_timeline_shows_what_is_true_and_what_is_likely() -> None:
    labels = np.repeat([0, 1, 2, 0], 30)
    scores = np.zeros((120, 4), np.float32)
    scores[:60, 0], scores[60:, 1] = 1, 1
    picture = np.asarray(timeline(scores, labels, ("background", "walk", "a name that is longer than a row", "never")))
    dark = (picture[:, 180:1140] < 30).all(axis=2)  # black lines
    top = 28
    for row, (start, stop) in {1: (30, 60), 2: (60, 90)}.items():
        line = dark[top + 22 * row + 17]
        assert line[8 * start + 1 : 8 * stop - 2].all()
        assert not line[: 8 * start - 1].any()
    warm = picture[:, 180:1140, 2] < 60
    assert warm[top + 22 + 3, 490:].all()
    assert not warm[top + 22 + 3, :470].any()
    assert picture.shape[0] == top + 3 * 22 + 30  # no row for what never is
    assert timeline(scores[:1], labels[:1], CLASSES, rate=25.0).size[0] > 960


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--image-size", "32"), "--image-size is for pictures"),
        (("--limit", "9"), "--limit is for pictures"),
        (("--length", "0"), "--length 0: must be at least 1"),
        (("--frame", "5000"), "no stream is as long as a frame of 5000 samples"),
        (("--heads", "3", "--width", "16"), "heads 3"),
        (("--depth", "0"), "at least 1"),
    ],
)
def test_what_people_are_told(data: Path, tmp_path: Path, command: Command, words: tuple[str, ...], said: str) -> None:
    code, _, err = command(
        "train", "oadtr", "--data", str(data), "--out", str(tmp_path / "x"), "--budget", "1steps", *words
    )
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_labels_that_do_not_fit_are_named(tmp_path: Path, command: Command) -> None:
    arrays = recordings(0, 3)
    np.savez(tmp_path / "a.npz", **(arrays | {"label": arrays["label"][:-5]}))
    code, _, err = command("train", "oadtr", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "x"))
    assert code == 1
    assert "a.npz: 'label'" in err
    assert "3,600 steps" in err
    np.savez(tmp_path / "b.npz", **(arrays | {"label": np.full(3600, -1), "class_names": np.zeros(0, "U1")}))
    code, _, err = command("train", "oadtr", "--data", str(tmp_path / "b.npz"), "--out", str(tmp_path / "x"))
    assert "no frame has a label" in err
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("one", "two", "short"):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(60, 4)))
    marks = {"one": [[3, 9, "walk"]], "two": [[5, 9, "jump"], [20, 30, "walk"]], "short": [0] * 59}
    (folder / "labels.json").write_text(json.dumps({"classes": CLASSES, "labels": marks}))
    ready = prepared(folder, tmp_path)
    assert any("short.npy: 60 frames, but 59 labels" in note for note in streams.describe(ready)["notes"])


def test_a_run_is_not_judged_on_other_data(data: Path, tmp_path: Path) -> None:
    run = train("oadtr", str(data), budget="1steps", out=tmp_path / "run", progress=False, **TINY)
    other = prepared(data, tmp_path, frame=7)
    with pytest.raises(SensoriumError, match=r"frames of 42 values, but the data have 3 and 27"):
        run.judge(other, progress=False)


def test_settings_that_the_data_were_not_prepared_with(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length 5, but the data were prepared with 8"):
        streaming.oadtr(streams.situate(prepared(data, tmp_path, length=8)), length=5)


@pytest.mark.parametrize("arguments", [False, True])
def test_the_authors_files_load(tmp_path: Path, arguments: bool) -> None:
    torch.manual_seed(0)
    model = OadTR(
        6, 4, width=16, length=5, depth=1, heads=8, hidden=16, future=2, decoder_depth=1, decoder_hidden=16
    ).eval()
    path = save_oadtr(model, tmp_path / "a.pth")
    if arguments:
        kept = torch.load(path, weights_only=True)
        torch.save(kept | {"args": argparse.Namespace(num_heads=8, decoder_num_heads=4, lr=1.0)}, path)
    loaded = sensorium.load(path)
    frames = torch.randn(3, 5, 6)
    assert isinstance(loaded, OadTR)
    assert torch.equal(loaded.logits(frames)[0], model.logits(frames)[0])


def test_a_half_written_evaluation_is_finished(data: Path, tmp_path: Path) -> None:
    run = train("oadtr", str(data), budget="1steps", out=tmp_path / "run", progress=False, **TINY)
    whole = run.judge(progress=False)
    half = {name: whole.details["online detection"][name] for name in ("online", "pictures")}
    write_json(run.folder / "evaluation.json", {"version": VERSION, "details": {"online detection": half}})
    assert read_judgement(run.folder) is None
    assert run.judge(progress=False) == whole == read_judgement(run.folder)
