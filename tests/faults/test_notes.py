"""Notes: each once, in good English, and of training too."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from made import fill
from rich.console import Console
from text_cases import write

from sensorium.base.words import be, counted
from sensorium.data import log
from sensorium.data.images.open import open_data
from sensorium.data.images.prepare import prepare
from sensorium.data.look import look
from sensorium.data.source import Source
from sensorium.data.text.open import open_text


def csv(root, images: str, *rows: tuple[str, str], header: str = "path,label"):
    fill(root, {images: 12})
    for split in ("train", "test"):
        text = "\n".join(f"{images}/{i}.png,{name}" for i, name in rows)
        (root / f"{split}.csv").write_text(f"{header}\n{text}\n")
    return root


def test_a_note_of_both_splits_is_told_once(tmp_path):
    rows = [(str(i), "ab"[i % 2]) for i in range(8)]
    notes = open_data(csv(tmp_path, "images", *rows, header="path,breed name")).notes
    assert len(notes) == len(set(notes))
    notes = open_data(csv(tmp_path / "fine", "images", *rows, header="path,fine_label")).notes
    assert notes.count("There is no column 'label': column 'fine_label' is used.") == 1


def test_a_column_of_labels_that_is_there_twice_is_told_once(tmp_path):
    rows = [(str(i), f"{'ab'[i % 2]},{'ab'[i % 2]}") for i in range(8)]
    notes = open_data(csv(tmp_path, "images", *rows, header="path,label,label")).notes
    assert [note for note in notes if "'label'" in note] == ["There are 2 columns 'label'; the first is used."]


def test_training_on_images_tells_the_notes_and_what_was_lost(tmp_path, capsys):
    fill(tmp_path / "set", {"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2})
    (tmp_path / "set/train/a/0.png").write_bytes(b"no image")
    (tmp_path / "set/train/a/1.png").write_bytes(b"")
    (tmp_path / "set/train/a/2.heic").write_bytes(b"1")
    source = Source(str(tmp_path / "set"), None, tmp_path / "cache")
    prepare(source, progress=True)
    told = " ".join(capsys.readouterr().err.split())
    for part in ("16 training images and 4 test images", "1 skipped: zero bytes", "1 .heic file is not read",
                 "1 image cannot be decoded and is skipped."):  # fmt: skip
        assert told.count(part) == 1
    prepare(replace(source, cache=tmp_path / "other"))
    assert capsys.readouterr().err == ""


def test_lines_that_are_told_are_told_once(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sensorium.base.terminal.terminal", lambda: Console(file=out))
    log.tell(["one", "two", "one"])
    assert out.getvalue().split() == ["one", "two"]


def test_rows_of_text_are_not_told_again_as_captions(tmp_path):
    text = "\n".join(json.dumps({"text": f"{i} words " * 20}) for i in range(20))
    write(tmp_path / "train.jsonl", text)
    assert not any("Not read as" in note for note in look(tmp_path).notes)


@pytest.mark.parametrize(
    ("number", "what", "said"),
    [
        (1, "image", "1 image is"),
        (0, "image", "0 images are"),
        (2000, "class", "2,000 classes are"),
        (1, "class", "1 class is"),
        (2, "copy", "2 copies are"),
        (3, "test box", "3 test boxes are"),
        (2, "display", "2 displays are"),
    ],
)
def test_counted_nouns(number, what, said):
    assert f"{counted(number, what)} {be(number)}" == said


def test_one_of_a_kind_is_told_in_the_singular(tmp_path):
    write(tmp_path / "t/train.txt", "words " * 50)
    write(tmp_path / "t/val.txt", "other " * 50)
    assert "The validation set (1 document) is used as the test set." in open_text(tmp_path / "t").notes
    fill(tmp_path / "one", {"a": 2})
    (tmp_path / "one/t.csv").write_text("path,label\na/0.png,x\na/1.png,\n")
    assert "1 image is unlabeled: label is empty, NaN or null." in open_data(tmp_path / "one/t.csv").notes
