"""Few labels and many pictures without: folders, tars, arrays and tables whose names say that labels are missing."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.data.images.open import open_data
from sensorium.data.names import is_unlabeled

SPELLINGS = (
    "unlabeled", "Unlabelled", "UNLABELED_images", "no_label", "no-labels", "nolabel", "NoLabels", "unsupervised",
    "unsup", "un-labelled", "not labeled", "without_labels", "unannotated", "unlabelled2", "unlabeled2017",
    "train_unlabeled", "unlabeled-train",
)  # fmt: skip


def fill(folder: Path, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", (9, 8), (start + k, 10, 20)).save(folder / f"{k}.png")


def said(opened) -> str:
    return " ".join(opened.notes)


@pytest.mark.parametrize("name", SPELLINGS)
def test_names_that_say_so(name):
    assert is_unlabeled(name)


@pytest.mark.parametrize(
    "name", ["unknown", "other", "unclassified", "labeled", "label", "none", "unlabeled_cats", "test_unlabeled", "cat"]
)
def test_names_of_classes_and_of_other_splits_do_not(name):
    assert not is_unlabeled(name)


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled_images", "no_label"])
def test_beside_class_folders(tmp_path, name):
    for k, one in enumerate(("cat", "dog")):
        fill(tmp_path / one, 5, 20 * k)
    fill(tmp_path / name / "deeper", 3, 100)
    opened = open_data(tmp_path)
    assert opened.train.classes == opened.test.classes == ("cat", "dog")
    assert sorted(opened.train.labels.tolist()) == [-1] * 3 + [0] * 4 + [1] * 4
    assert (opened.test.labels >= 0).all()
    assert f"3 pictures in '{name}' have no label: methods without labels learn from them, too." in opened.notes
    assert "beside the class folders" not in said(opened)


@pytest.mark.parametrize("where", ["unlabeled", "train/unlabeled", "unlabeled/nested", "train_unlabeled"])
def test_beside_folders_of_splits(tmp_path, where):
    for k, one in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        fill(tmp_path / one, 3, 20 * k)
    fill(tmp_path / where, 4, 100)
    opened = open_data(tmp_path)
    assert opened.train.classes == opened.test.classes == ("cat", "dog")
    assert sorted(opened.train.labels.tolist()) == [-1] * 4 + [0] * 3 + [1] * 3
    assert opened.test.labels.tolist() == [0] * 3 + [1] * 3
    assert "4 pictures in '" in said(opened)
    assert "not read" not in said(opened)


def test_a_training_folder_alone(tmp_path):
    for k, one in enumerate(("train/cat", "train/dog", "unlabeled")):
        fill(tmp_path / one, 5, 20 * k)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert np.bincount(opened.train.labels + 1).tolist() == [5, 4, 4]
    assert opened.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("labeled", ["labeled", "images", "Labelled_data"])
def test_a_folder_of_labels_beside_one_without(tmp_path, labeled):
    for k, one in enumerate((f"{labeled}/cat", f"{labeled}/dog", "unlabeled")):
        fill(tmp_path / one, 5, 20 * k)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert (opened.train.labels < 0).sum() == 5
    assert "5 pictures in 'unlabeled' have no label" in said(opened)


def test_a_folder_of_splits_beside_one_without(tmp_path):
    for k, one in enumerate(("birds/train/cat", "birds/train/dog", "birds/test/cat", "birds/test/dog", "unlabeled")):
        fill(tmp_path / one, 3, 20 * k)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert np.bincount(opened.train.labels + 1).tolist() == [3, 3, 3]
    assert len(opened.test) == 6


def test_training_images_in_two_folders_named_by_labels(tmp_path):
    for k, one in enumerate(("train_labeled/cat", "train_labeled/dog", "train_unlabeled", "test/cat", "test/dog")):
        fill(tmp_path / one, 3, 20 * k)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert np.bincount(opened.train.labels + 1).tolist() == [3, 3, 3]
    assert len(opened.test) == 6


def test_never_test_images(tmp_path):
    for split in ("train", "test"):
        for k, one in enumerate(("cat", "dog", "unlabelled")):
            fill(tmp_path / split / one, 3, 20 * k)
    opened = open_data(tmp_path)
    assert opened.test.labels.tolist() == [0] * 3 + [1] * 3
    assert "3 test images have no label and are left aside" in said(opened)
    assert "3 pictures in 'train/unlabelled' have no label: methods" in said(opened)
    given = open_data(tmp_path / "train", test=tmp_path / "test")
    assert given.test.labels.tolist() == [0] * 3 + [1] * 3
    assert said(given).count("methods without labels learn") == 1


def test_one_class_and_none(tmp_path):
    fill(tmp_path / "cat", 5)
    fill(tmp_path / "unlabelled", 3, 100)
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat",)
    assert "There is one class only" in said(opened)
    assert len(opened.test) == 1
    fill(tmp_path / "alone" / "unlabelled", 3)
    alone = open_data(tmp_path / "alone")
    assert (alone.train.labels, alone.train.classes) == (None, ())
    assert "3 pictures in 'unlabelled' have no label." in alone.notes


def test_a_folder_as_people_have_it(tmp_path):
    for k, one in enumerate(("cat", "dog")):
        fill(tmp_path / one, 5, 20 * k)
    fill(tmp_path / "unlabelled", 3, 100)
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "unlabelled" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "unlabelled" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "dog" / "empty.jpg").write_bytes(b"")
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert "1 .heic file is not read: convert to JPEG or PNG." in opened.notes
    assert "zero bytes" in said(opened)
    assert "DS_Store" not in said(opened)
    assert (opened.train.labels < 0).sum() == 4


# ---------------------------------------------------------------------------------------------- tars, arrays, tables


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 8), (value, 10, 20)).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def labeled(split: str, start: int = 0) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for k in range(4):
        found[f"{split}/{k}.png"] = png(start + k)
        found[f"{split}/{k}.cls"] = str(k % 2).encode()
    return found


def test_a_folder_in_a_tar(tmp_path):
    bare = {f"unlabeled/{k}.png": png(100 + k) for k in range(3)}
    tar(tmp_path / "all.tar", labeled("train") | labeled("test", 20) | bare)
    opened = open_data(tmp_path / "all.tar")
    assert sorted(opened.train.labels.tolist()) == [-1, -1, -1, 0, 0, 1, 1]
    assert len(opened.test) == 4
    assert "3 pictures in 'unlabeled' have no label: methods without labels learn from them, too." in opened.notes


def test_a_tar_of_its_own(tmp_path):
    tar(tmp_path / "train.tar", labeled("a"))
    tar(tmp_path / "test.tar", labeled("b", 20))
    tar(tmp_path / "unlabeled-0000.tar", {f"{k}.png": png(100 + k) for k in range(3)})
    opened = open_data(tmp_path)
    assert sorted(opened.train.labels.tolist()) == [-1, -1, -1, 0, 0, 1, 1]
    assert opened.test.labels.tolist() == [0, 1, 0, 1]
    assert "3 pictures in 'unlabeled-0000.tar' have no label" in said(opened)


def pixels(count: int, start: int = 0, side: int = 8) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.uint8)[:, None, None].repeat(side, 1).repeat(side, 2)


@pytest.mark.parametrize("key", ["x_unlabeled", "unlabeled_images", "unlabeled", "images_unlabelled", "unsupervised_x"])
def test_arrays_in_one_file(tmp_path, key):
    y = np.array([0, 1, 0, 1])
    arrays = {"x_train": pixels(4), "y_train": y, "x_test": pixels(4, 20), "y_test": y, key: pixels(3, 100)}
    np.savez(tmp_path / "a.npz", **arrays)
    opened = open_data(tmp_path / "a.npz")
    assert opened.train.labels.tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert opened.train[6]["image"].max() == 102
    assert opened.test.labels.tolist() == [0, 1, 0, 1]
    assert f"3 pictures in '{key}' have no label: methods without labels learn from them, too." in opened.notes


def test_arrays_of_another_size_are_told(tmp_path):
    y = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=pixels(4), y_train=y, x_unlabeled=pixels(3, 100, side=9))
    opened = open_data(tmp_path / "a.npz")
    assert (opened.train.labels >= 0).all()
    assert "'x_unlabeled' is not read: its images are [9, 9], those with labels [8, 8]." in said(opened)


def test_an_array_of_that_name_that_is_no_images(tmp_path):
    y = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "a.npz", x_train=pixels(4), y_train=y, unlabeled=np.arange(5), y_unlabeled=np.full(5, -1))
    opened = open_data(tmp_path / "a.npz")
    assert len(opened.train) + len(opened.test) == 4
    assert "'unlabeled' is not read: it is int64 [5]" in said(opened)


@pytest.mark.parametrize("numbers", [True, False])
def test_names_of_classes_in_an_array(tmp_path, numbers):
    names = np.array(["cat", "unlabelled", "dog"])
    y = np.array([0, 1, 2, 0, 1, 2, -1])
    stored = y if numbers else np.where(y < 0, "", names[y])
    np.savez(tmp_path / "a.npz", images=pixels(7), labels=stored, class_names=names)
    opened = open_data(tmp_path / "a.npz")
    assert opened.train.classes == ("cat", "dog")
    assert sorted([*opened.train.labels, *opened.test.labels]) == [-1, -1, -1, 0, 0, 1, 1]


def test_arrays_in_a_file_of_their_own(tmp_path):
    y = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "train.npz", images=pixels(4), labels=y)
    np.savez(tmp_path / "test.npz", images=pixels(4, 20), labels=y)
    np.savez(tmp_path / "unlabeled.npz", images=pixels(3, 100))
    opened = open_data(tmp_path)
    assert opened.train.labels.tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert len(opened.test) == 4
    assert "3 pictures in 'unlabeled.npz' have no label" in said(opened)
    assert "not read" not in said(opened)


def test_tables(tmp_path):
    fill(tmp_path / "pics", 9)
    label = ["cat", "dog", "cat", "dog", "", "Unlabelled", "no label", "cat", "dog"]
    rows = [f"pics/{k}.png,{one}" for k, one in enumerate(label)]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(rows) + "\n", "utf-8")
    opened = open_data(tmp_path / "all.csv")
    assert opened.train.classes == ("cat", "dog")
    assert (opened.train.labels < 0).sum() == 3
    assert "1 image is unlabeled: label is empty, NaN or null." in opened.notes
    assert "2 images are unlabeled: label says so." in said(opened)


def test_a_table_of_its_own(tmp_path):
    for k, name in enumerate(("train", "test", "unlabeled")):
        fill(tmp_path / f"pics{name}", 4, 20 * k)
        rows = [f"pics{name}/{i}.png" + (f",{'cat' if i % 2 else 'dog'}" if k < 2 else "") for i in range(4)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label" if k < 2 else "path", *rows]) + "\n", "utf-8")
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert np.bincount(opened.train.labels + 1).tolist() == [4, 2, 2]
    assert len(opened.test) == 4
    assert "4 pictures in 'unlabeled.csv' have no label" in said(opened)


def test_a_column_of_splits(tmp_path):
    fill(tmp_path / "pics", 8)
    split = ["train"] * 4 + ["test"] * 2 + ["unlabeled"] * 2
    rows = [f"pics/{k}.png,{'' if one == 'unlabeled' else 'ab'[k % 2]},{one}" for k, one in enumerate(split)]
    (tmp_path / "all.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n", "utf-8")
    opened = open_data(tmp_path / "all.csv")
    assert opened.train.labels.tolist() == [0, 1, 0, 1, -1, -1]
    assert opened.test.labels.tolist() == [0, 1]


def test_parquet_of_the_hub(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    feature = {"names": ["cat", "dog", "unlabeled"], "_type": "ClassLabel"}
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
    for name, labels in (("train", [0, 1, 0, 1, 2]), ("test", [0, 1]), ("unsupervised", [-1, -1, 0])):
        cells = [{"bytes": png(20 * len(labels) + k), "path": None} for k in range(len(labels))]
        table = pa.table({"image": cells, "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps(told)})
        pq.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
    opened = open_data(tmp_path)
    assert opened.train.classes == opened.test.classes == ("cat", "dog")
    assert sorted(opened.train.labels.tolist()) == [-1, -1, -1, -1, 0, 0, 1, 1]
    assert opened.test.labels.tolist() == [0, 1]
    assert "3 pictures in 'unsupervised-00000-of-00001.parquet' have no label" in said(opened)
    assert "1 image is unlabeled: label says so." in said(opened)
