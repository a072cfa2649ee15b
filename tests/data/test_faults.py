"""What `sensorium data` says of text, captions, boxes and recordings: each fault on data made with it, and nothing on data
without one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.data.look import look
from sensorium.data.text.copies import copies, jaccard, shingles
from sensorium.data.text.scripts import letters_by_script

WORDS = [
    f"{a}{b}{c}"
    for a in ("bal", "ter", "min", "sol", "kar", "ven")
    for b in ("a", "o", "i", "u")
    for c in ("n", "st", "rd", "l", "m")
]


def prose(seed: int, words: int = 60) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, words).tolist()).capitalize() + "."


def told(path: Path, name: str) -> dict[str, Any]:
    """A fault by name; its sentence has the count or the share, and a way out."""
    found = look(path)
    assert name in found.faults, (list(found.faults), found.advice)
    return found.faults[name]


# --- text ---


def documents(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def clean_text(count: int = 50) -> list[str]:
    return [prose(i, 4000) for i in range(count)]


def test_text_without_a_fault(tmp_path: Path) -> None:
    found = look(documents(tmp_path / "a.jsonl", clean_text()))
    assert found.faults == {}
    assert found.advice == []
    assert "4epochs" in found.facts["enough for"]
    assert "Chinese" not in str(found.facts)


@pytest.mark.parametrize(
    ("name", "change", "count"),
    [
        ("repeated documents", lambda texts: [*texts[:3], texts[0], texts[0] + "\n", *texts[3:]], 2),
        ("nearly repeated documents", lambda texts: [*texts[:3], texts[1].replace(" balan ", " x ", 20), *texts[3:]], 1),
        ("test documents nearly in training", lambda texts: [*texts, texts[1].replace(" balan ", " x ", 20)], 1),
        ("short documents", lambda texts: ["ok", "see above", *texts], 2),
        ("repeated lines", lambda texts: [f"{t[:1500]}\nCopyright Example House, all rights reserved.\n{t[1500:2000]}" for t in texts], 1),
        ("lost characters", lambda texts: [texts[0].replace("a", "\ufffd", 50), *texts[1:]], 50),
        ("misread characters", lambda texts: [texts[0].replace("a", "\u00c3\u00a9", 50), *texts[1:]], 50),
        ("mixed scripts", lambda texts: [*[f"{i} дело {prose(i, 4)} слово за словом " * 900 for i in range(9)], *texts], 2),
        ("little text", lambda texts: [t[:5000] for t in texts], None),
    ],
)  # fmt: skip
def test_faults_of_text(name: str, change: Callable[[list[str]], list[str]], count: int | None, tmp_path: Path) -> None:
    fault = told(documents(tmp_path / "a.jsonl", change(clean_text())), name)
    assert fault["count"] > 0
    if count is not None:
        assert fault["count"] == count


def test_the_advice_of_text_names_a_number_and_a_way_out(tmp_path: Path) -> None:
    texts = clean_text()
    found = look(documents(tmp_path / "a.jsonl", ["hm", texts[0], *texts]))
    said = " ".join(found.advice)
    assert "1 training document (2.1 %) is a copy of another" in said
    assert "keep one of each" in said
    assert "fewer than 32 bytes, as 'hm': leave them out" in said


def test_near_copies_by_the_measure_itself() -> None:
    """Every pair at or above 0.8 is found, and none below, among copies with more and more words changed."""
    rng = np.random.default_rng(0)
    base = prose(0, 300).split()
    made = []
    for changes in (0, 1, 3, 5, 8, 12, 20, 60):
        words = list(base)
        for at in rng.permutation(300)[:changes]:
            words[int(at)] = f"new{at}"
        made.append(" ".join(words).encode())
    numbers: dict[bytes, int] = {}
    sets = [shingles(one, numbers) for one in made]
    alike = {(i, k) for k in range(len(made)) for i in range(k) if jaccard(sets[i], sets[k]) >= 0.8}
    assert 3 <= len(alike) < 28
    assert set(copies(made).near) == alike
    exact = {tuple(made[0].lower().split()[i : i + 5]) for i in range(296)}
    other = {tuple(made[2].lower().split()[i : i + 5]) for i in range(296)}
    assert jaccard(sets[0], sets[2]) == pytest.approx(len(exact & other) / len(exact | other))


def test_copies_but_for_white_space_are_equal() -> None:
    first = prose(1, 40)
    found = copies([first.encode(), first.replace(" ", "\n").encode(), prose(2, 40).encode()])
    assert found.equal == [(0, 1)]
    assert found.near == []


def test_letters_by_script() -> None:
    assert letters_by_script("abc, дом 12 日本ひらカナ 한글 ωμ!") == {
        "Chinese and Japanese": 6, "Latin": 3, "Cyrillic": 3, "Greek": 2, "Hangul": 2,
    }  # fmt: skip
    assert letters_by_script("12 + 3 = \U0001f600") == {}
    assert letters_by_script("\ud800x") == {"Latin": 1}


# --- captions ---


def captioned(folder: Path, rows: list[tuple[str, str]]) -> Path:
    folder.mkdir()
    for number, name in enumerate(dict.fromkeys(name for name, _ in rows)):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])
    return folder


def plain_captions(count: int = 60) -> list[tuple[str, str]]:
    return [(f"{i}.png", f"the {WORDS[i % 120]} beside the {WORDS[(7 * i + 3) % 120]} no {i}") for i in range(count)]


def test_captions_without_a_fault(tmp_path: Path) -> None:
    found = look(captioned(tmp_path / "a", plain_captions()))
    assert found.kind == "pairs"
    assert found.faults == {}
    assert "pictures with several captions" not in found.facts


def test_captions_that_name_classes_are_no_fault(tmp_path: Path) -> None:
    found = look(captioned(tmp_path / "a", [(f"{i}.png", "cat" if i % 2 else "dog") for i in range(60)]))
    assert found.faults == {}


@pytest.mark.parametrize(
    ("name", "change", "count"),
    [
        ("captions that are file names", lambda rows: [*rows, ("x_1.png", "x_1.png"), ("y_2.png", "IMG_20240101"), ("z_3.png", "z_3")], 3),
        ("captions without words", lambda rows: [*rows, ("x.png", "..."), ("y.png", "7 !")], 2),
        ("pairs given twice", lambda rows: [*rows, rows[0], rows[0]], 2),
        ("captions of many pictures", lambda rows: [*rows, *[(f"n{i}.png", "Image from our shop") for i in range(15)]], 15),
        ("captions that are cut", lambda rows: [*rows, ("x.png", prose(1, 80))], 1),
        ("mixed scripts", lambda rows: [*rows, *[(f"n{i}.png", f"кот номер {i} на зеленой траве у дома") for i in range(15)]], 2),
    ],
)  # fmt: skip
def test_faults_of_captions(
    name: str, change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]], count: int, tmp_path: Path
) -> None:
    found = look(captioned(tmp_path / "a", change(plain_captions(140))))
    train = found.counts["train"]
    assert train < 160  # a tenth is held out, so that counts are at most those made
    assert name in found.faults, (found.faults, found.advice)
    assert 0 < found.faults[name]["count"] <= count


def test_a_picture_of_several_captions_is_told(tmp_path: Path) -> None:
    rows = plain_captions()
    found = look(captioned(tmp_path / "a", [*rows, *[(name, f"{text}, again") for name, text in rows]]))
    assert found.faults == {}
    assert "up to 2 each" in found.facts["pictures with several captions"]


# --- boxes ---

Box = tuple[int, list[float]]


def coco(
    folder: Path, boxes: Callable[[int], list[Box]], *, side: int = 100, classes: int = 2, test_boxes: Any = None
) -> Path:
    """Twenty training and five test pictures with ``boxes`` of each: (class, x, y, w, h)."""
    for split, count in (("train", 20), ("val", 5)):
        (folder / split).mkdir(parents=True)
        stored: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": k, "name": f"c{k}"} for k in range(classes)],
        }
        for i in range(count):
            pixels = np.random.default_rng(i + 100 * count).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{split}{i}.png")
            stored["images"].append({"id": i, "file_name": f"{split}{i}.png", "height": side, "width": side})
            for k, box in (test_boxes or boxes)(i) if split == "val" else boxes(i):
                row = {"id": len(stored["annotations"]) + 1, "image_id": i, "category_id": k, "bbox": box, "iscrowd": 0}
                stored["annotations"].append(row | {"area": box[2] * box[3]})
        (folder / f"instances_{split}.json").write_text(json.dumps(stored))
    return folder


def usual(i: int) -> list[Box]:
    return [(0, [5 + i, 5, 20, 22]), (1, [50, 60 - i, 24, 20])]


def test_boxes_without_a_fault(tmp_path: Path) -> None:
    found = look(coco(tmp_path / "a", usual))
    assert found.kind == "boxes"
    assert found.faults == {}


@pytest.mark.parametrize(
    ("name", "boxes", "count"),
    [
        ("tiny boxes", lambda i: [*usual(i), (0, [80, 80, 1.5, 1.5])], 20),
        ("box outside the image", lambda i: [*usual(i), (0, [200, 200, 10, 10])], 25),
        ("box cut to the image", lambda i: [*usual(i), (0, [90, 90, 30, 30])], 25),
        ("box without width or height", lambda i: [*usual(i), (0, [50, 50, 0, 10])], 25),
        ("box that is given twice", lambda i: [*usual(i), usual(i)[0]], 25),
        ("objects with two boxes", lambda i: [*usual(i), (0, [5.5 + i, 5.5, 20, 22])], 20),
        ("objects of two classes", lambda i: [*usual(i), (1, [5 + i, 5, 20, 22.1])], 20),
        ("rare classes", lambda i: usual(i)[: 1 + (i < 3)], 1),
        ("imbalanced classes", lambda i: usual(i) + [(0, [3 + 9 * k, 85, 8, 8]) for k in range(10)], 11),
        ("crowded pictures", lambda i: usual(i) + [(k % 2, [9 * (k % 11), 9 * (k // 11), 7, 7]) for k in range(101 * (i == 3))], 1),
        ("long boxes", lambda i: [*usual(i), (1, [2, 40, 90, 8])], 20),
        ("boxes of whole pictures", lambda i: [(i % 2, [0, 0, 100, 99])], 20),
        ("pictures without boxes", lambda i: usual(i) if i % 4 else [], 5),
    ],
)  # fmt: skip
def test_faults_of_boxes(name: str, boxes: Callable[[int], list[Box]], count: int, tmp_path: Path) -> None:
    fault = told(coco(tmp_path / "a", boxes), name)
    assert fault["count"] == count


def test_a_class_without_a_test_box(tmp_path: Path) -> None:
    fault = told(coco(tmp_path / "a", usual, test_boxes=lambda i: usual(i)[:1]), "classes without test boxes")
    assert fault == {"count": 1, "examples": ["c1"]}


def test_the_way_out_of_tiny_boxes_is_a_size(tmp_path: Path) -> None:
    found = look(coco(tmp_path / "a", lambda i: [*usual(i), (0, [80, 80, 1.5, 1.5])]))
    assert "--image-size 320 shows nearly all of them" in " ".join(found.advice)


# --- recordings ---


def streams(
    folder: Path,
    change: Callable[[np.ndarray, np.ndarray, str], tuple[np.ndarray, np.ndarray]] | None = None,
    *,
    rate: float | None = 25.0,
    shared: bool = False,
    subjects: bool = False,
) -> Path:
    """Four training and two test recordings of 400 steps with three values, of two actions and background."""
    folder.mkdir()
    for split, count in (("train", 4), ("test", 2)):
        rng = np.random.default_rng(count)
        values = rng.normal(size=(400 * count, 3)).astype(np.float32)
        if shared and split == "test":
            other = np.load(folder / "train.npz")["signal"]
            values[100:300] = other[450:650]
        labels = (np.arange(400 * count) // 40 % 4 + 0) % 3
        if change is not None:
            values, labels = change(values, labels, split)
        more: dict[str, Any] = {} if rate is None else {"sample_rate_hz": np.array(rate)}
        if subjects:
            more["subject"] = np.array([f"s{i + (split == 'test') * 3}" for i in range(count)])
        names = np.array(["background", "walk", "jump"])
        np.savez(
            folder / f"{split}.npz",
            signal=values,
            label=labels,
            offsets=np.arange(count + 1) * 400,
            class_names=names,
            **more,
        )
    return folder


def test_recordings_without_a_fault(tmp_path: Path) -> None:
    found = look(streams(tmp_path / "a"))
    assert found.kind == "streams"
    assert found.faults == {}
    assert found.facts["background"] == "50 % of the training steps"
    assert "median 1.6 s" in found.facts["an action lasts"]


def put(values: np.ndarray, where: Any, what: Any) -> np.ndarray:
    values = values.copy()
    values[where] = what
    return values


@pytest.mark.parametrize(
    ("name", "change", "count"),
    [
        ("steps that are not finite", lambda v, y, s: (put(v, (slice(10, 17), 1), np.nan), y), 14),
        ("constant channels", lambda v, y, s: (put(v, (slice(None), 2), 0.5), y), 1),
        ("recordings with a dead channel", lambda v, y, s: (put(v, (slice(400, 800), 2), 0.5), y), 1),
        ("hanging values", lambda v, y, s: (put(v, slice(100, 130), v[100]), y), 29),
        ("classes without test steps", lambda v, y, s: (v, np.where((y == 2) & (s == "test"), 0, y)), 1),
        ("classes without training steps", lambda v, y, s: (v, np.where((y == 2) & (s == "train"), 0, y)), 1),
        ("imbalanced classes", lambda v, y, s: (v, put(np.where(y == 2, 1, y), slice(0, 40), 2)), 20),
        ("mostly background", lambda v, y, s: (v, np.where((np.arange(len(y)) % 400 < 36), 1 + np.arange(len(y)) // 20 % 2, 0)), 1456),
        ("very short actions", lambda v, y, s: (v, put(y, slice(0, None, 40), 2)), None),
        ("steps without a label", lambda v, y, s: (v, np.where(y == 0, -1, y)), None),
    ],
)  # fmt: skip
def test_faults_of_recordings(name: str, change: Any, count: int | None, tmp_path: Path) -> None:
    fault = told(streams(tmp_path / "a", change), name)
    assert fault["count"] > 0
    if count is not None:
        assert fault["count"] == count


def test_a_test_recording_that_is_trained_on(tmp_path: Path) -> None:
    fault = told(streams(tmp_path / "a", shared=True), "test recordings in training")
    assert fault == {"count": 1, "examples": ["test.npz[0]"]}


def test_a_subject_in_both_sets(tmp_path: Path) -> None:
    assert told(streams(tmp_path / "a", subjects=True), "subjects in both sets") == {"count": 1, "examples": ["s3"]}


def test_recordings_without_a_rate(tmp_path: Path) -> None:
    found = look(streams(tmp_path / "a", rate=None))
    assert list(found.faults) == ["no sampling rate"]
    assert "'sample_rate_hz'" in found.advice[0]


def test_recordings_without_labels_are_for_what_needs_none(tmp_path: Path) -> None:
    found = look(streams(tmp_path / "a", lambda v, y, s: (v, np.full_like(y, -1))))
    assert "steps without a label" in found.faults
    commands = " ".join(found.commands)
    assert "sensorium train cpc_streams" in commands
    assert "oadtr" not in commands
    assert "oadtr" in " ".join(look(streams(tmp_path / "b", lambda v, y, s: (v, y))).commands)
