"""What `sensorium data` tells of data of any kind."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sensorium.data.look import look
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from made import fill, picture_at


def shown(findings, encoding: str = "utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=out, width=160).print(findings.render())
    out.flush()
    return out.buffer.getvalue().decode(encoding)


# --------------------------------------------------------------------------------- 45: whatever lies there, and how to use it


def yolo(root: Path) -> Path:
    for split in ("train", "valid"):
        for i in range(8):
            picture_at(root / split / "images" / f"{i}.png", i + 100 * (split == "valid"))
            (root / split / "labels").mkdir(exist_ok=True)
            (root / split / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n" + "0 9 9 0.1 0.1\n" * (i == 0))
    (root / "data.yaml").write_text("names: [cat]\n")
    return root


def coco(root: Path) -> Path:
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(6)]
        boxes = [{"id": i, "image_id": i, "category_id": 7, "bbox": [1, 1, 5, 5]} for i in range(5)]
        for i in range(6):
            picture_at(root / f"{split}2017" / f"{i}.png", i + 50 * (split == "val"))
        (root / "annotations").mkdir(exist_ok=True)
        listed = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "[red]cat"}]}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(listed))
    return root


def captions(root: Path) -> Path:
    fill(root, {"images": 12})
    rows = [f"images/{i}.png,a picture of {i}" for i in range(12)]
    (root / "captions.csv").write_text("\n".join(["file,caption", *rows, "images/gone.png,nothing"]))
    return root


def recordings(root: Path) -> Path:
    root.mkdir()
    values, labels = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), np.arange(60) // 10 % 2
    classes = np.array(["still", "[bold]walk"])
    np.savez(root / "a.npz", signal=values, label=labels, offsets=np.array([0, 20, 40, 60]), class_names=classes)
    return root / "a.npz"


def words(root: Path) -> Path:
    root.mkdir()
    (root / "book.txt").write_text("words " * 1000)
    return root / "book.txt"


@pytest.mark.parametrize(
    ("make", "kind", "lines"),
    [
        (yolo, "boxes", ("YOLO", "8 train, 8 test", "cat", "outside the image")),
        (coco, "boxes", ("COCO", "5 train, 5 test", "[red]cat")),
        (captions, "pairs", ("different captions", "no such file")),
        (recordings, "streams", ("recordings", "[bold]walk", "steps")),
        (words, "text", ("bytes", "documents", "held out")),
        (lambda root: fill(root, {"a": 4, "b": 4}), "images", ("2 classes",)),
    ],
)
def test_45_data_knows_only_pictures(tmp_path, make, kind, lines):
    from sensorium.catalogue import find

    path = make(tmp_path / "my set")
    found = look(path)
    assert found.kind == kind
    for encoding in ("utf-8", "cp1252", "ascii"):
        told = shown(found, encoding)
        for line in lines:
            assert line in told
    assert found.commands
    for command in found.commands:
        assert f"--data '{path}'" in command
        assert find(command.split()[2]).data == kind
    stored = json.loads(json.dumps(found.as_dict()))
    assert stored["kind"] == kind
    assert stored["counts"]["train"] > 0


def test_45_without_labels_nothing_that_needs_them_is_named(tmp_path):
    from sensorium.catalogue import systems

    told = " ".join(look(fill(tmp_path, {"": 4})).commands).replace(",", " ").split()
    assert told
    assert not {system.name for system in systems() if system.labels and system.data == "images"} & set(told)


def test_45_what_is_skipped_is_counted_by_reason(tmp_path):
    assert look(yolo(tmp_path / "yolo")).skipped["box outside the image"] == 2
    assert look(captions(tmp_path / "captions")).skipped == {"no such file": 1}


def test_45_the_pictures_of_other_data_are_diagnosed_too(tmp_path):
    root = yolo(tmp_path / "yolo")
    (root / "valid" / "images" / "3.png").write_bytes((root / "train" / "images" / "5.png").read_bytes())
    found = look(root)
    assert found.overlap["exact"] == 1
    assert any("also in the training set" in line for line in found.advice)
    assert not any("labels" in line for line in found.advice)


def test_45_damaged_annotations_are_told(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')
    (root / "annotations" / "instances_val2017.json").unlink()
    found = look(root)
    assert found.kind == "images"
    assert any("Not read as boxes" in note and "JSON" in note for note in found.notes)


def test_45_labels_in_a_table_with_captions_are_classes_first(tmp_path):
    fill(tmp_path, {"images": 12})
    rows = [f"images/{i}.png,{'ab'[i % 2]},a picture of {i}" for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,caption", *rows]))
    found = look(tmp_path)
    assert found.kind == "images"
    assert [one["name"] for one in found.classes] == ["a", "b"]
    assert list(found.also) == ["captions"]


def test_45_nothing_that_can_be_read_is_one_line(tmp_path):
    with pytest.raises(SensoriumError, match="no such file or folder"):
        look(tmp_path / "nowhere")
    (tmp_path / "x.HEIC").write_bytes(b"x" * 99)
    with pytest.raises(SensoriumError, match=r"1 \.heic file is not read"):
        look(tmp_path)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(SensoriumError, match="64 bytes"):
        look(tmp_path / "a.txt")


# -------------------------------------------------------------------------------------- 38, 39: names and terminals


def test_38_names_are_shown_as_they_are(tmp_path):
    found = look(fill(tmp_path, {"[bold]x": 10, "[red]dog": 10, "plain": 10}))
    told = shown(found)
    assert "[bold]x" in told
    assert "[red]dog" in told


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_39_bars_are_of_characters_that_the_terminal_has(tmp_path, encoding):
    told = shown(look(fill(tmp_path, {"cat": 12, "dog": 6})), encoding)
    assert "#" * 20 in told


def test_a_picture_with_boxes_that_cannot_be_read_counts_as_broken_and_is_named(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "train2017" / "3.png").write_bytes(b"junk")
    found = look(root)
    assert [one["file"] for one in found.broken] == ["3.png"]
    assert "3.png" in shown(found)


def test_annotations_of_boxes_are_no_damaged_captions(tmp_path):
    root = coco(tmp_path / "coco")
    for at in ("annotations/instances_train2017.json", "annotations.json"):
        (root / at).write_bytes((root / "annotations" / "instances_train2017.json").read_bytes())
    assert not [note for note in look(root).notes if "captions" in note]
