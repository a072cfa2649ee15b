"""`sensorium data DIR --fix OUT`: what stays, what is left out and why, and that every command reads what was written."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.data.images.fix import fix
from sensorium.data.images.open import open_data
from sensorium.data.look import look
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from quality_cases import FAULTS, drawn, folder_of


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def faulty(root: Path) -> Path:
    """40 training pictures of two classes and 6 for testing: 2 copies, 1 in both sets, 1 broken, 1 blurred, 1 blank."""
    images = [drawn(k) for k in range(40)]
    images[20], images[21] = images[2], images[2]  # of class a, and of class b
    images[30] = FAULTS["blurred"](images[30])
    images[31] = Image.new("RGB", (120, 90), (9, 9, 9))
    folder_of(root / "train", images)
    folder_of(root / "test", [drawn(100), drawn(8), drawn(102), drawn(103), drawn(104), drawn(105)])
    shutil.copy(root / "train" / "a" / "008.png", root / "test" / "b" / "001.png")
    (root / "train" / "b" / "005.png").write_bytes((root / "train" / "b" / "005.png").read_bytes()[:300])
    return root


def test_copies_shared_and_broken_pictures_are_left_out_with_reasons(tmp_path):
    root = faulty(tmp_path / "data")
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    fixed = fix(root, tmp_path / "out")
    left = {str(Path(row["path"]).relative_to(root)): row["reason"] for row in rows(tmp_path / "out" / "removed.csv")}
    assert set(left) == {"train/a/020.png", "train/b/021.png", "train/a/008.png", "train/b/005.png"}
    assert left["train/a/020.png"].startswith("copy of ")
    assert left["train/a/020.png"].endswith("a/002.png")
    assert left["train/b/021.png"].endswith("a/002.png, which has another label")
    assert left["train/a/008.png"].startswith("also in the test set: ")
    assert "truncated" in left["train/b/005.png"]
    assert fixed.removed == {"copies": 2, "unreadable": 1, "also in test or validation": 1}
    assert fixed.kept == len(rows(fixed.keep)) == 46 - 4
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


def test_the_list_is_read_as_the_data_that_are_left(tmp_path):
    root = faulty(tmp_path / "data")
    fix(root, tmp_path / "out")
    again = look(tmp_path / "out" / "keep.csv")
    assert again.kind == "images"
    assert again.counts == {"train": 36, "test": 6}
    assert [one["name"] for one in again.classes] == ["a", "b"]
    assert again.duplicates["count"] == again.overlap["exact"] == len(again.broken) == 0
    once_more = fix(tmp_path / "out" / "keep.csv", tmp_path / "second")
    assert once_more.removed == {}
    assert rows(once_more.keep) == rows(tmp_path / "out" / "keep.csv")


def test_doubtful_pictures_only_if_asked(tmp_path):
    root = faulty(tmp_path / "data")
    fixed = fix(root, tmp_path / "out", quality=True)
    left = {Path(row["path"]).name: row["reason"] for row in rows(tmp_path / "out" / "removed.csv")}
    assert left["030.png"] == "blurred"
    assert left["031.png"] == "one color only"
    assert fixed.removed["doubtful"] == 2


def test_pictures_held_out_here_are_no_test_set(tmp_path):
    root = folder_of(tmp_path / "data", [drawn(k % 25) for k in range(50)])
    fixed = fix(root, tmp_path / "out")
    assert fixed.kept == 25
    assert set(rows(fixed.keep)[0]) == {"path", "label"}
    assert open_data(fixed.keep).layout == "csv"


def test_without_labels_the_list_has_none(tmp_path):
    (tmp_path / "data").mkdir()
    for k in range(5):
        drawn(k).save(tmp_path / "data" / f"{k}.png")
    fixed = fix(tmp_path / "data", tmp_path / "out", links=True)
    assert set(rows(fixed.keep)[0]) == {"path"}
    assert look(fixed.keep).counts == {"train": 5}
    assert look(tmp_path / "out" / "pictures").counts == {"train": 5}


def test_a_given_test_set_is_a_split(tmp_path):
    train = folder_of(tmp_path / "one", [drawn(k) for k in range(10)])
    test = folder_of(tmp_path / "two", [drawn(k) for k in (3, 50, 51, 52)])
    fixed = fix(train, tmp_path / "out", test=test)
    assert {row["split"] for row in rows(fixed.keep)} == {"train", "test"}
    opened = open_data(fixed.keep)
    assert opened.test is not None
    assert (len(opened.train), len(opened.test)) == (9, 4)


def test_links_are_folders_of_classes(tmp_path):
    root = faulty(tmp_path / "data")
    fixed = fix(root, tmp_path / "out", links=True)
    assert fixed.links == tmp_path / "out" / "pictures"
    opened, listed = open_data(fixed.links), open_data(fixed.keep)
    for split in ("train", "test"):
        linked, named = getattr(opened, split), getattr(listed, split)
        assert linked.classes == named.classes
        assert np.bincount(linked.labels).tolist() == np.bincount(named.labels).tolist()
    with pytest.raises(SensoriumError, match="there already"):
        fix(root, tmp_path / "out", links=True)


def test_equal_names_of_one_class_are_numbered(tmp_path):
    for k, home in enumerate(("x", "y", "z")):
        (tmp_path / "data" / "cat" / home).mkdir(parents=True)
        drawn(k).save(tmp_path / "data" / "cat" / home / "1.png")
    (tmp_path / "data" / "dog").mkdir()
    drawn(9).save(tmp_path / "data" / "dog" / "1.png")
    fixed = fix(tmp_path / "data", tmp_path / "out", links=True)
    assert fixed.links is not None
    found = sorted(str(path.relative_to(fixed.links)) for path in fixed.links.rglob("*.png"))
    assert found == ["cat/1-2.png", "cat/1-3.png", "cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("name", ["a,b.png", 'say "hi".png', "ünï.png", "two  spaces.png", "#1;2.png"])
def test_any_name_is_written_so_that_it_is_read(tmp_path, name):
    (tmp_path / "data" / "a, or b").mkdir(parents=True)
    (tmp_path / "data" / "c").mkdir()
    drawn(0).save(tmp_path / "data" / "a, or b" / name)
    drawn(1).save(tmp_path / "data" / "c" / "1.png")
    fixed = fix(tmp_path / "data", tmp_path / "out")
    assert fixed.kept == 2
    again = open_data(fixed.keep)
    assert len(again.train) == 2
    assert again.train.classes == ("a, or b", "c")


def test_a_name_that_no_table_can_hold_is_told(tmp_path):
    root = folder_of(tmp_path / "data", [drawn(k) for k in range(4)])
    (root / "a" / "000.png").rename(root / "a" / "00\n0.png")
    fixed = fix(root, tmp_path / "out")
    assert fixed.kept == 3
    assert "rename it" in rows(tmp_path / "out" / "removed.csv")[0]["reason"]


def test_what_has_no_files_is_refused_in_one_line(tmp_path):
    with pytest.raises(SensoriumError, match="not files of their own"):
        fix("digits", tmp_path / "out")
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(SensoriumError, match="not files of their own"):
        fix(tmp_path / "x.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_lists_are_not_written_into_the_data(tmp_path):
    root = folder_of(tmp_path / "data", [drawn(k) for k in range(4)])
    with pytest.raises(SensoriumError, match="--fix"):
        fix(root, root / "out")


def test_the_command_writes_and_tells(tmp_path, capsys):
    from sensorium.cli.facts import data

    root = faulty(tmp_path / "data")
    data(str(root), fix=tmp_path / "out", fix_quality=True, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["fixed"]["kept"] == 40
    assert told["quality"]["blurred"]["count"] == 1
    data(str(root), fix=tmp_path / "out")
    assert "42 images kept" in capsys.readouterr().out
    with pytest.raises(SensoriumError, match="--fix OUT"):
        data(str(root), links=True)
