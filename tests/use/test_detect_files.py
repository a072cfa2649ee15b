"""What `sensorium detect` writes for other tools, and what `sensorium misses` says of a detector's errors."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.abilities import Detector, HasBackbone
from sensorium.base import terminal
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.seen import Sight
from sensorium.judge.coco_ap import compared
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use import found, misses
from sensorium.use.detect import Finder
from sensorium.use.found import FORMS, find_in, folder_name
from sensorium.use.misses import faults_of

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
CLASSES = ("red", "a/b: green?")
PLACES = {"one.png": (8, 12, 40, 30), "more/one.jpg": (20, 5, 61, 44), "more/none.png": None}


class Seer(torch.nn.Module, HasBackbone, Detector):
    """Finds what is red, in the pixels that it is shown, as the second class; nothing if nothing is."""

    backbone = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def detect(self, images, threshold, *, sizes):
        results = []
        for one in images:
            y, x = torch.where(one[0] - one[1] > 0.4)
            box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else []).reshape(-1, 4).float()
            n = len(box)
            results.append({"boxes": box, "scores": torch.full((n,), 0.75), "labels": torch.ones(n, dtype=torch.int64)})
        return results


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, box in PLACES.items():
        pixels = np.full((70, 100, 3), 30, np.uint8)
        if box is not None:
            pixels[box[1] : box[3], box[0] : box[2], 0] = 250
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=100, subsampling=0) if path.suffix == ".jpg" else Image.fromarray(
            pixels
        ).save(path)
    return tmp_path / "photos"


@pytest.fixture
def seer(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = Finder(Seer(), CLASSES, Sight((0.0,) * 3, (1.0,) * 3, (100, 100), 128), 1)
    monkeypatch.setattr(found, "open_finder", lambda run: finder)


def test_a_picture_of_a_kind_that_is_not_read_is_told(seer: None, photos: Path, tmp_path: Path) -> None:
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    told = find_in(tmp_path, [photos], threshold=0.3, out=tmp_path / "out", form="csv", crops=None)
    assert "objects in 3 pictures" in told
    assert "a .heic file is not read; convert it to JPEG or PNG" in told


@pytest.mark.parametrize("form", FORMS)
def test_every_format_has_the_boxes_in_pixels_of_the_picture(
    form: Any, seer: None, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told = find_in(tmp_path, [photos], threshold=0.3, out=out, form=form, crops=tmp_path / "crops").splitlines()
    assert told[0] == "2 objects in 3 pictures: 2 a/b: green?"
    got: dict[str, Any] = {}
    if form == "coco":
        rows = json.loads((out / "detections.json").read_text())
        got = {row["file_name"]: [*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:])] for row in rows}
        assert {row["category_id"] for row in rows} == {2}
    elif form == "json":
        rows = json.loads((out / "detections.json").read_text())
        assert next((row["file_name"], row["width"], row["height"]) for row in rows) == ("one.png", 100, 70)
        got = {row["file_name"]: row["objects"][0]["box"] for row in rows if row["objects"]}
    elif form == "csv":
        with (out / "detections.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        got = {row["file_name"]: [float(row[side]) for side in ("left", "top", "right", "bottom")] for row in rows}
        assert {(row["class"], row["score"]) for row in rows} == {(CLASSES[1], "0.75000")}
    else:
        assert (out / "labels" / "more" / "none.txt").read_text() == ""
        for name in PLACES:  # our own reader, and so the others', take it
            (tmp_path / "set" / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / "images" / name).write_bytes((photos / name).read_bytes())
        (out / "labels").rename(tmp_path / "set" / "labels")
        (out / "data.yaml").rename(tmp_path / "set" / "data.yaml")
        opened = open_boxes(tmp_path / "set")
        assert opened.train.classes == CLASSES
        for part in (opened.train, opened.test):
            for i in range(len(part) if part else 0):
                name = part.names[i].partition("images/")[2] or part.names[i]
                if len(boxes := part.truth(i)["boxes"].tolist()):
                    (got[name],) = boxes
    want = {name: box for name, box in PLACES.items() if box is not None}
    assert set(got) == set(want)
    for name, box in want.items():
        assert np.abs(np.subtract(got[name], box)).max() <= 1, name
    cut = sorted((tmp_path / "crops").rglob("*.png"))
    assert [path.relative_to(tmp_path / "crops").as_posix() for path in cut] == [
        "a_b_ green_/one-1.png",
        "a_b_ green_/one-2-1.png",
    ]
    for path in cut:
        pixels = np.asarray(Image.open(path))
        assert pixels[2:-2, 2:-2, 0].min() > 200
    assert len(list(out.glob("*.png"))) == 3


def test_a_class_may_have_any_name() -> None:
    assert folder_name("../..") == "_"
    assert folder_name("..") == "_"
    assert folder_name("con\n<x>") == "con__x_"
    assert folder_name("Tisch") == "Tisch"


def test_one_is_singular(seer: None, photos: Path, tmp_path: Path) -> None:
    told = find_in(tmp_path, [photos / "one.png"], threshold=0.3, out=tmp_path / "o", form="csv", crops=None)
    assert told.splitlines()[0].startswith("1 object in 1 picture:")


def test_progress_is_told_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    clock = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: next(clock))
    with terminal.bar("detecting", True) as advance:
        assert advance is not None
        for done in (1, 2, 3):
            advance(done, 6)
    assert capsys.readouterr().err == "detecting: 2 of 6, 1m20s left\n"
    with terminal.bar("detecting", False) as advance:
        assert advance is None


def rows(boxes: list[list[float]], labels: list[int], scores: list[float] | None = None) -> dict[str, torch.Tensor]:
    made = {"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "labels": torch.tensor(labels, dtype=torch.int64)}
    if scores is None:
        return made | {"crowd": torch.zeros(len(labels), dtype=torch.bool)}
    return made | {"scores": torch.tensor(scores)}


def test_each_fault_has_its_reason() -> None:
    truth = rows([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]], [0, 0, 0, 0, 1])
    seen = rows(
        [
            [0, 0, 10, 10],  # right
            [1, 0, 11, 10],  # the same again
            [20, 0, 30, 10],  # of another class
            [45, 0, 57, 10],  # beside it
            [60, 0, 70, 10],  # too low a score
            [0, 50, 10, 60],  # nothing is there
        ],
        [0, 0, 1, 0, 0, 1],
        [0.9, 0.8, 0.7, 0.6, 0.1, 0.5],
    )
    how: dict[str, float] = {"overlap": 0.5, "threshold": 0.3}
    wrong = compared(seen, truth, **how)
    assert wrong == ([1, 2, 3, 4], [1, 2, 3, 5])
    told = faults_of(seen, truth, wrong, ("a", "b"), **how)
    assert [(one.kind, one.name, one.reason, one.other) for one in told] == [
        ("missed", "a", "class", "b"),
        ("missed", "a", "place", "a"),
        ("missed", "a", "score", "a"),
        ("missed", "b", "nothing", ""),
        ("false", "a", "double", "a"),
        ("false", "b", "class", "a"),
        ("false", "a", "place", "a"),
        ("false", "b", "background", ""),
    ]
    assert told[2].score == pytest.approx(0.1)
    assert faults_of(rows([], [], []), truth, ([4], []), ("a", "b"), **how)[0].reason == "nothing"
    assert faults_of(seen, rows([], []), ([], [0]), ("a", "b"), **how)[0].reason == "background"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("misses")
    common: dict[str, Any] = {"progress": False, "image_size": 64, "batch_size": 4, "budget": "2steps"}
    train("fcos", "scenes:30", out=folder / "fcos", width=16, convs=1, **common)
    train("simclr", "digits", out=folder / "simclr", limit=40, budget="1steps", batch_size=8, progress=False)
    return folder / "fcos"


def test_misses_are_drawn_worst_first(run: Path, command: Command, tmp_path: Path) -> None:
    code, said, err = command("misses", str(run), "--n", "2", "--threshold", "0.05", "--out", str(tmp_path / "m"))
    assert code == 0, err
    with (tmp_path / "m" / "misses.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    held = Run(run).data().held
    objects = sum(int((~held.truth.truth(i)["crowd"]).sum()) for i in range(len(held)))
    assert f"{len(held)} test pictures with {objects:,} objects" in said
    drawn = sorted((tmp_path / "m").glob("*.png"))
    assert [path.name[:4] for path in drawn] == ["001-", "002-"]
    each = [sum(row["rank"] == str(place) for row in table) for place in range(1, int(table[-1]["rank"]) + 1)]
    assert each == sorted(each, reverse=True)
    assert each[0] > 0
    assert {row["fault"] for row in table} <= {"missed", "false"}
    assert {row["class"] for row in table} <= set(held.classes)
    again = command("misses", str(run), "--n", "1", "--out", str(tmp_path / "m"))
    assert again[0] == 0
    assert len(list((tmp_path / "m").glob("*.png"))) == 1  # none of another call


def test_misses_of_what_cannot_be_judged(run: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, said in (
        ((str(run.parent / "simclr"),), "(simclr) can't be used by `sensorium misses`, which needs a run of"),
        ((str(run), "--threshold", "0"), "above 0 and at most 1"),
        ((str(run), "--overlap", "2"), "above 0 and at most 1"),
        ((str(run), "--out", str(tmp_path / "file")), "this isn't a folder"),
    ):
        code, _, err = command("misses", *words)
        assert code == 1
        assert said in err
    assert misses.COLUMNS[0] == "rank"
