"""Names of files and folders: litter, splits, and files found by names that other tools wrote."""

from pathlib import Path

import pytest

from sensorium.data.log import Log
from sensorium.data.names import Index, divide, files_below, is_split, litter, split_folders, split_names


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return [root / name for name in names]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Train", "train"), ("TRAINING_SET", "train"), ("train2017", "train"), ("trainval", "train"),
        ("train_images", "train"), ("train-00000-of-00001", "train"), ("val2017", "val"), ("Validation", "val"),
        ("dev", "val"), ("test_set", "test"), ("testset", "test"), ("t10k-images", "test"), ("test", "test"),
        ("test tube", None), ("training shoes", None), ("wiki.test", None), ("latest", None), ("trains", None),
        ("contest", None), ("images", None), ("train_test", None), ("2017", None),
    ],
)  # fmt: skip
def test_a_name_is_of_a_split_if_it_says_nothing_else(name, split):
    assert is_split(name) == split


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("wiki.train", "wiki.valid", "wiki.test"), ("train", "val", "test")),
        (("imagenet_train", "imagenet_val"), ("train", "val")),
        (("test tube", "flask"), ()),
        (("training shoes", "test tube"), ()),
        (("train", "bus", "car"), ("train",)),
        (("test", "book"), ()),
    ],
)
def test_further_words_count_only_beside_a_training_name_with_the_same(names, splits):
    assert tuple(split_names(names).values()) == splits


def test_folders_are_splits_or_classes(tmp_path):
    touch(tmp_path / "sets", "training_set/cats/1.jpg", "test_set/cats/2.jpg", "sample/3.jpg")
    splits, others = split_folders(tmp_path / "sets")
    assert {k: [p.name for p in v] for k, v in splits.items()} == {"train": ["training_set"], "test": ["test_set"]}
    assert others == ["sample"]
    touch(tmp_path / "classes", "train/1.jpg", "bus/1.jpg", "car/1.jpg")
    assert split_folders(tmp_path / "classes") == ({}, [])
    touch(tmp_path / "coco", "train2014/1.jpg", "train2017/2.jpg", "val2017/3.jpg")
    assert {k: len(v) for k, v in split_folders(tmp_path / "coco")[0].items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("wiki.train.txt", "wiki.test.txt", "wiki.valid.txt"), {"train": 1, "test": 1, "val": 1}),
        (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), {"train": 1, "test": 1}),
        (("Train/a.txt", "Test/a.txt"), {"train": 1, "test": 1}),
        (("en/train/a.txt", "en/test_set/a.txt", "fr/train/a.txt"), {"train": 2, "test": 1}),
        (("book.txt", "test.txt"), {"train": 1, "test": 1}),
        (("the test of time.txt", "book.txt"), {"train": 2}),
        (("test/a.txt", "test/b.txt"), {"train": 2}),
        (("train.csv.gz", "test.csv.gz"), {"train": 1, "test": 1}),
        (("shard-000.tar", "shard-001.tar"), {"train": 2}),
    ],
)
def test_files_are_divided_by_one_rule(tmp_path, names, expected):
    found = divide(touch(tmp_path, *names), tmp_path)
    assert {split: len(files) for split, files in found.items()} == expected


def test_litter_is_never_data(tmp_path):
    names = ("._a.txt", ".DS_Store", "__MACOSX/._a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "Thumbs.db", "a.txt~")
    touch(tmp_path, "a.txt", "sub/b.txt", *names)
    assert [f.name for f in files_below(tmp_path, Log())] == ["a.txt", "b.txt"]
    assert not litter("a.txt")
    assert litter("~$report.docx")


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "a/x.txt")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(list(files_below(tmp_path, Log()))) == 1


def test_files_are_found_by_foreign_names(tmp_path):
    touch(tmp_path, "images/1.jpg", "images/a/2.jpg", "images/b/2.jpg")
    index = Index(tmp_path)
    for name in (
        "images/1.jpg",
        "images\\1.jpg",
        "..\\image\\1.jpg",
        "/home/someone/set/images/1.jpg",
        "project/1.jpg",
    ):
        assert index.find(name) == tmp_path / "images/1.jpg", name
    assert index.find("elsewhere/a/2.jpg") == tmp_path / "images/a/2.jpg"
    assert index.find("2.jpg") is None  # two files have that name
    for name in ("3.jpg", "", "x" * 5000):
        assert index.find(name) is None


def test_the_log_counts_by_reason():
    log = Log()
    for name in "ab":
        log.skip(name, "no such file", f"{name}.jpg")
    assert log.sentences() == ["2 skipped: no such file (the first: a)."]


def test_files_are_found_in_another_case_and_normal_form(tmp_path):
    touch(tmp_path, "images/IMG.JPG", "images/caf\u00e9.jpg", "b/x.png", "b/X.png")
    index = Index(tmp_path)
    assert index.find("img.jpg") == tmp_path / "images/IMG.JPG"
    assert index.find("C:\\set\\cafe\u0301.jpg") == tmp_path / "images/caf\u00e9.jpg"
    assert index.find("a/X.png") == tmp_path / "b/X.png"
    assert index.find("a/X.PNG") is None
