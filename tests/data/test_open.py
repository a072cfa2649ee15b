"""Layouts of folders, splits, class agreement, and what is said when nothing is found."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.data.images.open import hold_out, open_data, stratified_order
from sensorium.errors import SensoriumError

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not at {DATA}; set SENSORIUM_DATA")


def fill(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", (4, 3), (start + k, 10, 20)).save(folder / f"{k}.png")


def test_flat_folder_is_unlabelled(tmp_path):
    fill(tmp_path, 3)
    opened = open_data(tmp_path)
    assert (opened.layout, opened.train.classes, opened.train.labels, opened.test) == (
        "folder of images",
        (),
        None,
        None,
    )
    assert opened.train[0]["label"] == -1
    assert opened.train[0]["image"].shape == (3, 3, 4)
    assert list(opened.train.names) == ["0.png", "1.png", "2.png"]


def test_classes_sort_naturally_and_litter_is_ignored(tmp_path):
    for name in ("class10", "class2", "class1"):
        fill(tmp_path / name, 5)
    fill(tmp_path / "__MACOSX", 2)
    fill(tmp_path / ".hidden", 2)
    (tmp_path / "class1" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "class1" / "._0.png").write_bytes(b"x")
    (tmp_path / "class1" / "notes.txt").write_text("x")
    (tmp_path / "class1" / "empty.png").write_bytes(b"")
    (tmp_path / "class1" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    opened = open_data(tmp_path)
    assert opened.train.classes == ("class1", "class2", "class10")
    assert len(opened.train) == 12
    assert opened.test.labels.tolist() == [0, 1, 2]
    assert sorted(s.reason for s in opened.skipped) == ["broken link", "zero bytes"]
    assert any("1 file without" in note and ".txt" in note for note in opened.notes)


def test_split_folders_in_any_case(tmp_path):
    for split, count in (("Train", 4), ("VALID", 2), ("Test", 3)):
        for name in ("cat", "dog"):
            fill(tmp_path / "unpacked" / split / name, count)
    opened = open_data(tmp_path)
    assert (len(opened.train), len(opened.val), len(opened.test)) == (8, 4, 6)
    assert opened.test.classes == ("cat", "dog")
    assert any("Stepped into unpacked" in note for note in opened.notes)


def test_train_can_be_a_class(tmp_path):
    for name in ("bus", "train", "car"):
        fill(tmp_path / name, 2)
    assert open_data(tmp_path).train.classes == ("bus", "car", "train")


def test_validation_stands_in_for_test(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            fill(tmp_path / split / name, 2)
    opened = open_data(tmp_path)
    assert opened.val is None
    assert len(opened.test) == 4
    assert any("validation set is used" in note for note in opened.notes)


def test_unlabelled_test_set_is_left_aside(tmp_path):
    for name in ("a", "b"):
        fill(tmp_path / "train" / name, 10)
    fill(tmp_path / "test", 5)
    opened = open_data(tmp_path)
    assert opened.test.labels is not None
    assert (len(opened.train), len(opened.test)) == (16, 4)
    assert any("can't be used for evaluation" in note for note in opened.notes)


def test_second_path_maps_classes_by_name(tmp_path):
    for name in ("ant", "bee", "cow"):
        fill(tmp_path / "one" / name, 2)
    for name in ("bee", "cow"):
        fill(tmp_path / "two" / name, 2)
    opened = open_data(tmp_path / "one", test=tmp_path / "two")
    assert opened.test.classes == ("ant", "bee", "cow")
    assert opened.test.labels.tolist() == [1, 1, 2, 2]
    assert [opened.test[k]["label"] for k in range(4)] == [1, 1, 2, 2]
    assert len(opened.train) == 6
    fill(tmp_path / "two" / "cows", 1)
    with pytest.raises(SensoriumError, match=r"class 'cows' is unknown.*is it 'cow'"):
        open_data(tmp_path / "one", test=tmp_path / "two")


def test_numbers_and_names_of_classes_agree(tmp_path):
    x = np.zeros((4, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=x, labels=np.array([0, 1, 0, 1]), class_names=np.array(["zebra", "ant"]))
    np.savez(tmp_path / "b.npz", images=x, labels=np.array([1, 1, 0, 1]))
    assert open_data(tmp_path / "a.npz", test=tmp_path / "b.npz").test.labels.tolist() == [1, 1, 0, 1]
    assert open_data(tmp_path / "b.npz", test=tmp_path / "a.npz").test.labels.tolist() == [0, 1, 0, 1]


def test_hold_out_is_stratified_deterministic_and_disjoint(tmp_path):
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3] + [-1] * 5)
    np.savez(
        tmp_path / "a.npz", images=np.arange(68, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2), labels=labels
    )
    first, second = open_data(tmp_path / "a.npz"), open_data(tmp_path / "a.npz")
    assert np.bincount(first.test.labels).tolist() == [10, 2, 1]
    seen = [{int(s[k]["image"][0, 0, 0]) for k in range(len(s))} for s in (first.train, first.test)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(68))
    assert list(first.test.names) == list(second.test.names)
    kept, none = hold_out(first.train, 0.5)
    assert none is not None
    assert len(kept) + len(none) == len(first.train)


def test_limit_keeps_classes_in_proportion(tmp_path):
    labels = np.array([0] * 80 + [1] * 20)
    np.savez(tmp_path / "a.npz", images=np.zeros((100, 4, 4), np.uint8), labels=labels)
    opened = open_data(tmp_path / "a.npz", limit=10)
    assert np.bincount(opened.train.labels).tolist() == [8, 2]
    assert len(opened.test) == 10
    with pytest.raises(SensoriumError, match="limit"):
        open_data(tmp_path / "a.npz", limit=0)
    order = stratified_order(labels, 100)
    assert sorted(order) == list(range(100))
    assert np.bincount(labels[order[:50]]).tolist() == [40, 10]


def test_one_class_is_noted(tmp_path):
    fill(tmp_path / "only", 5)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("only",)
    assert any("one class only" in note for note in opened.notes)


def test_errors_are_one_line_with_the_way_out(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(SensoriumError, match=r"did you mean .*photos"):
        open_data(tmp_path / "fotos")
    with pytest.raises(SensoriumError, match=r"did you mean .*photos"):
        open_data(tmp_path / "Photo" / "cats")
    with pytest.raises(SensoriumError, match=r"no images.*Looked for"):
        open_data(tmp_path / "photos")
    (tmp_path / "model.bin").write_bytes(b"abc")
    with pytest.raises(SensoriumError, match="unknown type"):
        open_data(tmp_path / "model.bin")
    (tmp_path / "void.npz").write_bytes(b"")
    with pytest.raises(SensoriumError, match="zero bytes"):
        open_data(tmp_path / "void.npz")
    Image.new("L", (2, 2)).save(tmp_path / "one.png")
    with pytest.raises(SensoriumError, match="one image"):
        open_data(tmp_path / "one.png")
    with pytest.raises(SensoriumError, match="digits"):
        open_data("digit")
    with pytest.raises(SensoriumError, match="no such file"):
        open_data("a\0b")
    with pytest.raises(SensoriumError, match="scenes:20000"):
        open_data("scenes:many")


def test_a_folder_named_like_a_built_in_set_is_told_apart(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "shapes").mkdir()
    (tmp_path / "one.png").rename(tmp_path / "shapes" / "one.png")
    monkeypatch.chdir(tmp_path)
    named, own = open_data("shapes:30"), open_data("./shapes")
    assert (len(named.train), len(named.test or ()), len(own.train)) == (30, 6, 1)
    assert not named.notes
    assert open_data("shapes").notes == ("shapes is the built-in set; for the folder of that name write ./shapes.",)


def test_folder_loops_end(tmp_path):
    fill(tmp_path / "a", 2)
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    opened = open_data(tmp_path)
    assert len(opened.train) + len(opened.test or ()) == 2


def test_names_that_could_harm_a_terminal_are_escaped(tmp_path):
    fill(tmp_path / "cl\x1b[31mass", 2)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cl\\x1b[31mass",)
    assert all(name.isprintable() for name in opened.train.names)
    assert opened.train[0]["image"].shape == (3, 3, 4)


def test_digits():
    opened = open_data("digits")
    assert (opened.layout, len(opened.train) + len(opened.test)) == ("digits", 1797)
    assert opened.train[0]["image"].shape == (3, 8, 8)
    assert int(max(opened.train[k]["image"].max() for k in range(20))) == 255


def test_sets_travel_to_workers(tmp_path):
    fill(tmp_path / "a", 3)
    fill(tmp_path / "b", 3)
    opened = open_data(tmp_path)
    again = pickle.loads(pickle.dumps(opened.train))
    assert np.array_equal(again[1]["image"], opened.train[1]["image"])
    with pytest.raises(IndexError):
        opened.train[len(opened.train)]


def test_scenes_have_both_sets():
    opened = open_data("scenes:50")
    assert (opened.layout, len(opened.train), len(opened.test)) == ("scenes", 50, 10)
    assert opened.train[0]["image"].shape == (3, 32, 32)


@needs_data
def test_real_data():
    cifar = open_data(DATA / "cifar10" / "train.npz", test=DATA / "cifar10" / "test.npz")
    assert (len(cifar.train), len(cifar.test)) == (20_000, 4_000)
    assert np.bincount(cifar.test.labels).tolist() == [400] * 10
    fashion = open_data(DATA / "fashion-mnist")
    assert (fashion.layout, len(fashion.train), len(fashion.test)) == ("idx", 60_000, 10_000)
    emoji = open_data(DATA / "emoji")
    assert (emoji.layout, len(emoji.train), len(emoji.test)) == ("webdataset", 2_844, 368)
    assert emoji.train[0]["text"] == "package"
    photos = open_data(DATA / "photos")
    assert len(photos.train) == 9
    with pytest.raises(SensoriumError, match="signal"):
        open_data(DATA / "har")
