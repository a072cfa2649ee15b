"""Streams: each layout, what is wrong with a file, frames that are broken, framing, and windows that belong to a
seed."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.base.draw import Draw
from sensorium.data.streams.open import Framed, Stream, Windows, open_streams
from sensorium.errors import SensoriumError

HAR = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")) / "har"
CLASSES = ("background", "walk", "jump")


def made(seed: int = 0, lengths: tuple[int, ...] = (40, 25, 60)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    return {
        "signal": rng.normal(size=(total, 3)).astype(np.float32),
        "label": rng.integers(0, 3, total).astype(np.int8),
        "offsets": np.cumsum([0, *lengths]),
        "class_names": np.array(CLASSES),
        "sample_rate_hz": np.array(50.0),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save) -> None:
    arrays = made()
    save(tmp_path / "a.npz", **arrays)
    found = open_streams(tmp_path / "a.npz")
    assert (found.layout, found.classes, found.rate, found.width) == ("npz", CLASSES, 50.0, 3)
    assert [len(s) for s in (*found.train, *found.test)] == [40, 25, 60]
    assert "1 of 3 recordings is held out" in found.notes[0]
    for stream, start, stop in zip((*found.train, *found.test), arrays["offsets"], arrays["offsets"][1:], strict=False):
        assert np.array_equal(stream.frames(0, 10**6), arrays["signal"][start:stop])
        assert np.array_equal(stream.labels, arrays["label"][start:stop])
        assert stream.labels.dtype == np.int64
        assert isinstance(stream.values, np.memmap)
    assert np.array_equal(found.train[1].frames(3, 9), arrays["signal"][43:49])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int16, np.uint8])
def test_types_orders_and_shapes(tmp_path: Path, dtype) -> None:
    values = np.random.default_rng(0).integers(0, 99, (30, 2, 4)).astype(dtype)
    np.savez(tmp_path / "a.npz", features=np.asfortranarray(values), labels=np.zeros(30, int), offsets=[0, 10, 30])
    found = open_streams(tmp_path / "a.npz")
    assert found.width == 8
    assert np.array_equal(found.test[0].frames(0, 20), values[10:].reshape(20, 8).astype(np.float32))
    np.savez(tmp_path / "b.npz", signal=values[:, 0, 0], label=np.zeros(30, int), offsets=[0, 10, 30])
    assert open_streams(tmp_path / "b.npz").width == 1


def test_labels_may_be_missing(tmp_path: Path) -> None:
    arrays = made()
    bare = {name: one for name, one in arrays.items() if name not in ("label", "class_names")}
    np.savez(tmp_path / "bare.npz", **bare)
    np.savez(tmp_path / "labeled.npz", **arrays)
    found = open_streams(tmp_path / "bare.npz")
    assert found.classes == ()
    assert all((stream.labels == -1).all() for stream in (*found.train, *found.test))
    assert np.array_equal(found.train[0].frames(0, 40), arrays["signal"][:40])
    beside = open_streams(tmp_path / "bare.npz", test=tmp_path / "labeled.npz")
    assert beside.classes == ()
    assert all((stream.labels == -1).all() for stream in beside.test)  # no name is known
    other = open_streams(tmp_path / "labeled.npz", test=tmp_path / "bare.npz")
    assert other.classes == CLASSES
    assert all((stream.labels == -1).all() for stream in other.test)
    np.savez(tmp_path / "x.npz", x=arrays["signal"], offsets=arrays["offsets"])  # could be anything
    with pytest.raises(SensoriumError, match="Looked for 'signal' and 'label'; it holds offsets, x"):
        open_streams(tmp_path / "x.npz")


def test_splits_beside_each_other_and_apart(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "val")):
        np.savez(tmp_path / f"{name}.npz", **made(seed))
    found = open_streams(tmp_path)
    assert not found.notes
    assert np.array_equal(found.test[0].frames(0, 40), made(1)["signal"][:40])
    np.savez(tmp_path / "test.npz", **made(2))
    assert np.array_equal(open_streams(tmp_path).test[0].frames(0, 40), made(2)["signal"][:40])
    other = open_streams(tmp_path / "train.npz", test=tmp_path / "val.npz")
    assert np.array_equal(other.test[0].frames(0, 40), made(1)["signal"][:40])
    assert len(other.train) == 3


def test_a_subject_is_not_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **made(0, (10,) * 6), subject=np.array([1, 2, 3, 1, 2, 3]))
    found = open_streams(tmp_path / "a.npz")
    assert {s.group for s in found.train} == {"1", "2"}
    assert [s.name for s in found.test] == ["a.npz[2]", "a.npz[5]"]


def folder(at: Path, labels: dict, values: dict[str, np.ndarray] | None = None, **more) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in labels if values is None else values:
        np.save(at / f"{name}.npy", rng.normal(size=(12, 4)) if values is None else values[name])
    (at / "labels.json").write_text(json.dumps({"classes": CLASSES, "labels": labels} | more))
    return at


def test_folder_of_arrays(tmp_path: Path) -> None:
    labels = {"s2": [0] * 5 + ["walk"] * 7, "s10": [[2, 6, "jump"], [6, 12, 1]], "s1": ["jump"] * 11 + [-1]}
    found = open_streams(folder(tmp_path / "a", labels, rate=25))
    assert (found.layout, found.classes, found.rate, found.width) == ("folder of npy", CLASSES, 25.0, 4)
    assert [s.name for s in (*found.train, *found.test)] == ["s1.npy", "s2.npy", "s10.npy"]
    assert found.train[0].labels.tolist() == [2] * 11 + [-1]
    assert found.train[1].labels.tolist() == [0] * 5 + [1] * 7
    assert found.test[0].labels.tolist() == [0] * 2 + [2] * 4 + [1] * 6
    folder(tmp_path / "b" / "train", {"x": [0] * 12})
    folder(tmp_path / "b" / "test", {"y": [1] * 12})
    split = open_streams(tmp_path / "b")
    assert [s.name for s in (*split.train, *split.test)] == ["x.npy", "y.npy"]


def test_streams_that_do_not_fit_are_skipped_by_name(tmp_path: Path) -> None:
    good = np.ones((12, 4), np.float32)
    values = {"a": good, "b": good, "short": good, "odd": good, "none": good, "nan": good * np.nan, "empty": good[:0],
              "text": np.array(["x"] * 12), "beyond": good, "objects": good, "cut": good}  # fmt: skip
    labels = {name: [0] * 12 for name in values} | {
        "short": [0] * 11, "odd": ["fly"] * 12, "beyond": [[3, 13, "jump"]], "nan": [1] * 12, "empty": [],
    }  # fmt: skip
    del labels["none"]
    folder(tmp_path, labels, values)
    np.save(tmp_path / "objects.npy", np.array([{}] * 12), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-40])
    found = open_streams(tmp_path)
    assert [s.name for s in (*found.train, *found.test)] == ["a.npy", "b.npy"]
    said = {skip.file.removesuffix(".npy"): skip.reason for skip in found.skipped}
    assert set(said) == set(values) - {"a", "b"}
    assert said["short"] == "12 frames, but 11 labels"
    assert said["odd"] == "the label 'fly' is not one of the classes"
    assert said["none"] == "labels.json has no labels for it"
    assert said["nan"] == "no frame is finite"
    assert said["beyond"] == "the segment 3 to 13 is not within its 12 frames"
    assert "pickle" in said["objects"] or "Python objects" in said["objects"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"label": np.zeros(9, int)},
            r"'label' is int64 of shape \[9\]; expected an integer for each of 125 steps",
        ),
        ({"label": np.full(125, 3)}, "'label' runs from 3 to 3, but there are 3 class names"),
        ({"label": np.full(125, -2)}, "'label' runs from -2 to -2"),
        ({"label": np.zeros(125)}, "'label' is float64"),
        ({"offsets": np.array([0, 50])}, "'offsets' must be integers that rise from 0 to the 125 steps"),
        ({"offsets": np.array([0, 90, 50, 125])}, "'offsets' must"),
        ({"signal": None}, "no streams. Looked for 'signal' and 'label'; it holds class_names, label"),
        ({"signal": np.array(["x"] * 125)}, "'signal' is <U1"),
        ({"signal": np.array([{}] * 125)}, "'signal' is object"),
        ({"signal": np.zeros((125, 3), complex)}, "'signal' is complex128"),
        ({"signal": np.full((125, 3), np.nan)}, "no stream can be used .*no frame is finite"),
        ({"class_names": np.array([{}])}, "Python objects"),
        ({"offsets": None}, "give a test set"),
    ],
)
def test_what_is_wrong_with_an_npz_is_named(tmp_path: Path, change: dict, said: str) -> None:
    np.savez(tmp_path / "a.npz", **{k: v for k, v in (made() | change).items() if v is not None}, allow_pickle=True)
    with pytest.raises(SensoriumError, match=f"a.npz.*{said}") as caught:
        open_streams(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_damaged_files_and_empty_places(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **made())
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:700])
    (tmp_path / "bits.npz").write_bytes(b"PK\x03\x04" + bytes(400))
    (tmp_path / "nothing").mkdir()
    folder(tmp_path / "json", {})
    (tmp_path / "json" / "a.npy").write_bytes(b"")
    (tmp_path / "json" / "labels.json").write_text("[]")
    for name, said in (
        ("cut.npz", "not readable as .npz"),
        ("bits.npz", "not readable as .npz"),
        ("nothing", "has no streams"),
        ("none", "has no streams"),
        ("json", "labels.json: should be a JSON object"),
    ):
        with pytest.raises(SensoriumError, match=said):
            open_streams(tmp_path / name)
    rng = np.random.default_rng(0)
    for _ in range(60):  # any damage is one clear error, or no damage
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 12):
            data[at] = int(rng.integers(256))
        (tmp_path / "b.npz").write_bytes(data)
        try:
            open_streams(tmp_path / "b.npz").train[0].frames(0, 5)
        except SensoriumError as error:
            said = str(error)
        assert said


def test_test_sets_must_match(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **made())
    np.savez(tmp_path / "b.npz", **(made() | {"class_names": np.array(["x", "y", "z"])}))
    np.savez(tmp_path / "c.npz", **(made() | {"signal": np.zeros((125, 2))}))
    with pytest.raises(SensoriumError, match="other classes"):
        open_streams(tmp_path / "a.npz", test=tmp_path / "b.npz")
    with pytest.raises(SensoriumError, match="frames of 2 and 3 values"):
        open_streams(tmp_path / "a.npz", test=tmp_path / "c.npz")


def test_broken_frames_are_held_and_not_learnt(tmp_path: Path) -> None:
    values = np.arange(40, dtype=np.float64).reshape(20, 2)
    values[[0, 1, 5, 6, 7, 19], 1] = [np.nan, np.inf, np.nan, -np.inf, 1e300, np.nan]
    stream = Stream("a", values, np.ones(20, np.int8))
    instead = np.arange(20)
    instead[[0, 1, 5, 6, 7, 19]] = [2, 2, 4, 4, 4, 18]
    assert np.array_equal(stream.frames(0, 20), values[instead].astype(np.float32))
    for start, stop in ((5, 6), (6, 9), (0, 1), (18, 40), (8, 18)):
        assert np.array_equal(stream.frames(start, stop), values[instead][start:stop].astype(np.float32))
    assert np.flatnonzero(stream.labels == -1).tolist() == [0, 1, 5, 6, 7, 19]
    assert stream.broken == 6
    arrays = made()
    arrays["signal"][7] = np.nan
    np.savez(tmp_path / "a.npz", **arrays)
    found = open_streams(tmp_path / "a.npz")
    assert [(s.file, s.reason) for s in found.skipped] == [("a.npz[0]", "frames that are not finite: 1 of 40")]


def test_framing_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.normal(3.0, 2.0, (50, 3)), np.arange(50)
    framed = Framed(Stream("a", values, labels), 8)
    assert (len(framed), framed.width) == (6, 30)
    assert framed.labels.tolist() == [7, 15, 23, 31, 39, 47]
    x = framed.frames(0, 100)
    assert x.shape == (6, 30)
    shape, mean, std = x[:, :24].reshape(6, 8, 3), x[:, None, 24:27], np.exp(x[:, None, 27:])
    assert np.allclose(shape * std + mean, values[:48].reshape(6, 8, 3), atol=1e-4)
    assert np.allclose(shape.mean(1), 0, atol=1e-4)
    assert np.array_equal(framed.frames(2, 5), x[2:5])
    assert framed.labels_of(4, 9).tolist() == [39, 47, -1, -1, -1]
    assert framed.frames(6, 9).shape == (0, 30)
    with pytest.raises(ValueError, match="at least 1"):
        Framed(framed.stream, 0)


def two() -> list[Stream]:
    labels = np.array([0, 1, 2, -1, 1, 1, -1])
    a = Stream("a", np.arange(14.0).reshape(7, 2), labels)
    return [a, Stream("b", 100 + np.arange(6.0).reshape(3, 2), np.array([2, 2, 0]))]


def test_windows_end_at_labelled_frames_and_see_what_comes() -> None:
    windows = Windows(two(), 3, 2)
    assert len(windows) == 8
    assert [windows.place(i) for i in range(8)] == [(0, 0), (0, 1), (0, 2), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2)]
    assert windows.labels.tolist() == [0, 1, 2, 1, 1, 2, 2, 0]
    batch = windows.batch([0, 3, 4, 6, 7])
    assert batch["missing"].tolist() == [2, 0, 0, 1, 0]
    assert batch["actions"].tolist() == [0, 1, 1, 2, 0]
    assert batch["future"].tolist() == [[1, 2], [1, -1], [-1, -1], [0, -1], [-1, -1]]
    assert batch["frames"][:, :, 0].tolist() == [[0, 0, 0], [4, 6, 8], [6, 8, 10], [0, 100, 102], [100, 102, 104]]
    assert batch["frames"].dtype == torch.float32
    assert Windows(two(), 3).batch([1])["future"].shape == (1, 0)
    every = Windows(two(), 3, every=True)
    assert len(every) == 10
    assert every.everywhere() is every
    assert windows.everywhere().batch([3])["frames"].equal(every.batch([3])["frames"])
    assert list(windows.fields) == ["frames", "actions", "future", "missing"] == list(windows.take(np.array([0])))
    assert every.batch([3])["actions"].tolist() == [-1]
    with pytest.raises(IndexError):
        windows.place(8)
    with pytest.raises(SensoriumError, match="no frame"):
        Windows([Stream("a", np.ones((3, 1)), np.full(3, -1))], 2)
    bare = Windows([Stream("a", np.ones((3, 1)), np.full(3, -1))], 2, 1, every=True)
    assert not bare.labeled
    assert list(bare.fields) == ["frames", "missing"] == list(bare.take(np.array([0])))
    assert list(bare.take(np.array([0]), ("frames", "actions"))) == ["frames"]


def same(a: dict, b: dict) -> None:
    assert set(a) == set(b) == {"frames", "actions", "future", "missing"}
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_one_process_draws_what_several_do_and_a_step_is_its_seed() -> None:
    windows = Windows(two(), 3, 2)
    for step in (0, 7):
        whole = windows.draw(Draw.seeded(5, step, 12))
        parts = [windows.draw(Draw.seeded(5, step, 12, a, b)) for a, b in ((0, 5), (5, 6), (6, 12))]
        same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})
        same(whole, windows.draw(Draw.seeded(5, step, 12)))
    assert not torch.equal(windows.draw(Draw.seeded(5, 1, 12))["frames"], whole["frames"])
    rows = np.arange(len(windows))
    same(windows.take(rows), windows.batch(range(8)))


def test_every_window_is_drawn_alike() -> None:
    windows = Windows(two(), 2)
    actions = windows.draw(Draw.seeded(0, 0, 4000))["actions"]
    counts = torch.bincount(actions, minlength=3) / 4000
    assert torch.allclose(counts, torch.tensor([2 / 8, 3 / 8, 3 / 8]), atol=0.03)


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, compressed: bool) -> None:
    steps = 600_000
    values = np.lib.format.open_memmap(tmp_path / "v.npy", "w+", np.float32, (steps, 16))  # 38 MB, nothing written
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "a.npz", signal=values, label=np.zeros(steps, np.int8), offsets=[0, steps // 2, steps])
    del values
    tracemalloc.start()
    found = open_streams(tmp_path / "a.npz")
    windows = Windows(found.train, 64, 8)
    windows.batch([5, 200_000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6


@pytest.mark.skipif(not HAR.is_dir(), reason="the data 'har' is not here: set SENSORIUM_DATA")
def test_recordings_of_a_phone() -> None:
    found = open_streams(HAR)
    assert (len(found.train), len(found.test), found.rate, found.width) == (26, 5, 50.0, 3)
    assert sum(map(len, found.train)) == 475_248
    assert found.classes[0] == "background"
    assert not {s.group for s in found.train} & {s.group for s in found.test}
    framed = found.framed(16)
    windows = Windows(framed.train, 64, 8)
    batch = windows.batch(np.linspace(0, len(windows) - 1, 32).astype(int))
    assert batch["frames"].shape == (32, 64, 54)
    assert torch.isfinite(batch["frames"]).all()
    assert framed.rate == 50 / 16
