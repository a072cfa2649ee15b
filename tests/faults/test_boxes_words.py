"""Counts in messages about boxes agree with their nouns and verbs."""

import re
from pathlib import Path

import pytest
from box_cases import coco, pic, yolo
from PIL import Image

from sensorium.base.words import counted, plural
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.prepare import prepare
from sensorium.data.source import Source


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "box", "1 box"),
        (0, "box", "0 boxes"),
        (1200, "training picture", "1,200 training pictures"),
        (2, "class", "2 classes"),
        (2, "entry", "2 entries"),
        (2, "key", "2 keys"),
        (1, "its path", "1 its path"),
    ],
)
def test_nouns_agree_with_their_number(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


def test_verbs_and_pronouns_agree_with_their_number() -> None:
    words = ("is", "has", "it is", "its path", "says")
    assert [plural(1, word) for word in words] == list(words)
    assert [plural(2, word) for word in words] == ["are", "have", "they are", "their paths", "say"]


ODD = re.compile(r"\b1 (\w+ )?(boxes|classes|pictures|images|lines|files|names|objects|annotations|are|have)\b")


def test_what_is_told_of_one_picture_with_one_box(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    root = tmp_path / "set"
    for split in ("train", "test"):
        Image.new("RGB", (400, 400)).save(path(root / split / "images" / f"{split}.png"))
        Image.new("RGB", (400, 400)).save(path(root / split / "images" / "none.png"))
        path(root / split / "labels" / f"{split}.txt").write_text("0 0.5 0.5 0.005 0.005 0.9\n")
    pic(root / "test" / "masks" / "a.png")
    (root / "data.yaml").write_text("names: [cat]\nnc: 2\n")
    ready = prepare(Source(str(root), None, tmp_path / "cache", 64), progress=True)
    told = capsys.readouterr().err
    assert "2 training pictures with 1 box of 1 class, 2 test pictures with 1" in told
    assert "names 1 class; the names are used" in told
    assert "1 line has a confidence" in told
    assert "1 of 2 train pictures has no label file: it is taken to have no objects." in told
    assert "1 of 2 training pictures has no box: a negative example." in told
    assert "1 box is smaller than 4 px" in told
    assert not [line for line in told.splitlines() if ODD.search(line)]
    assert len(ready.train) == 2


def test_one_image_that_is_held_out_and_one_that_is_turned(tmp_path: Path) -> None:
    root = coco(tmp_path / "a", size=(48, 64), turn=6)
    for i in range(2, 6):
        pic(root / "images" / f"{i:03}.jpg", (64, 48), i)
    notes = open_boxes(root).notes
    assert "1 picture is turned upright by its EXIF orientation, as are its boxes." in notes
    assert "There is no test set; 1 image, a fifth, is held out as one." in notes
    one = yolo(tmp_path / "b", "0 0.5 0.5 0.2 0.2\n")
    (one / "images" / "val").mkdir()
    (one / "images" / "val" / "000.jpg").symlink_to(one / "images" / "000.jpg")
    (one / "data.yaml").write_text("names: [cat]\ntrain: images\nval: images/val\n")
    assert "1 training picture is also a val picture; it is not trained on." in open_boxes(one).notes


def path(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
