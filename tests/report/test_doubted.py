"""What a comparison says of doubtful boxes and captions: errors made on purpose are found, listed and shown."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.abilities import Detector, HasBackbone, ImageText
from sensorium.data.boxes import prepare as boxes
from sensorium.data.pairs import prepare as pairs
from sensorium.data.source import Source
from sensorium.metrics.box_doubts import doubts, usual
from sensorium.metrics.object_labels import compared
from sensorium.metrics.pair_doubts import Side, nearest, robust, standing
from sensorium.report.page import write_report
from sensorium.runs.compare import compare
from sensorium.runs.results import BoxSuspects, Data, Results, RunResult, read_results, write_results
from sensorium.runs.suspect_boxes import keep_box_suspects
from sensorium.runs.suspect_captions import keep_caption_suspects

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 30)}


# --- boxes: a detector that sees red and green rectangles as they are ---


def scene(rng: np.random.Generator) -> tuple[np.ndarray, list[list[int]]]:
    """A picture 64 x 64 of a red rectangle, upper left, and a green one, lower right, and their boxes."""
    pixels = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
    made = []
    for k in (0, 1):
        x, y = (int(v) + 32 * k for v in rng.integers(0, 12, 2))
        w, h = (int(v) for v in rng.integers(14, 20, 2))
        pixels[y : y + h, x : x + w] = (230, 20, 20) if k == 0 else (20, 230, 20)
        made.append([x, y, w, h])
    return pixels, made


def wrong_boxes(folder: Path) -> dict[str, str]:
    """40 pictures as COCO json, one each with a box removed, swapped, moved and of nothing; which these are."""
    rng = np.random.default_rng(0)
    kinds = [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    stored: dict[str, Any] = {"images": [], "annotations": [], "categories": kinds}
    (folder / "train").mkdir(parents=True)
    changes = {5: "missing", 11: "swapped", 17: "misplaced", 23: "unconfirmed"}
    for i in range(40):
        pixels, made = scene(rng)
        Image.fromarray(pixels).save(folder / "train" / f"{i}.png")
        stored["images"].append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        rows = [{"category_id": (3, 7)[k], "bbox": box, "iscrowd": 0} for k, box in enumerate(made)]
        if changes.get(i) == "missing":
            del rows[0]
        elif changes.get(i) == "swapped":
            rows[0]["category_id"] = 7
        elif changes.get(i) == "misplaced":
            rows[1]["bbox"] = [made[1][0] - 6, made[1][1] - 6, *made[1][2:]]
        elif changes.get(i) == "unconfirmed":
            rows.append({"category_id": 3, "bbox": [40, 2, 16, 16], "iscrowd": 0})
        for row in rows:
            area = row["bbox"][2] * row["bbox"][3]
            stored["annotations"].append(row | {"id": len(stored["annotations"]) + 1, "image_id": i, "area": area})
    (folder / "instances_train.json").write_text(json.dumps(stored))
    return {f"{i}.png": kind for i, kind in changes.items()}


class Seer(torch.nn.Module, HasBackbone, Detector):
    """Finds red and green where they are, in the pixels that it is shown; ``blind``: finds nothing."""

    backbone = None

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def detect(self, images: Any, threshold: float = 0.5, *, sizes: Any = None) -> list[dict[str, torch.Tensor]]:
        found = []
        for one, (h, w) in zip(images, sizes.tolist(), strict=True):
            rows = []
            for k in () if self.blind else (0, 1):
                more = one[k, :h, :w] - one[1 - k, :h, :w]
                y, x = torch.where(more > more.max() / 2)
                rows.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
            n = len(rows)
            edges = torch.tensor(rows, dtype=torch.float32).reshape(n, 4)
            found.append({"boxes": edges, "scores": torch.full((n,), 0.4), "labels": torch.arange(n)})
        return found


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[boxes.Prepared, dict[str, str]]:
    folder = tmp_path_factory.mktemp("boxes")
    changes = wrong_boxes(folder)
    source = Source(str(folder), str(folder), tmp_path_factory.mktemp("cache"), image_size=64)
    return boxes.prepare(source), changes


def a_run(method: Any, ready: Any, folder: Path) -> Any:
    situation = boxes.situate(ready) if isinstance(ready, boxes.Prepared) else pairs.situate(ready)
    return SimpleNamespace(method=method, situation=situation, folder=folder / "seer", name="seer")


def test_each_kind_of_wrong_box_is_found_and_named(boxed: Any, tmp_path: Path) -> None:
    ready, changes = boxed
    found = keep_box_suspects(a_run(Seer(), ready, tmp_path), ready, tmp_path, None, print)
    assert found is not None
    rows = list(csv.DictReader((tmp_path / found.file).open()))
    assert {Path(row["picture"]).name: row["kind"] for row in rows} == changes
    assert found.kinds == dict.fromkeys(("missing", "swapped", "misplaced", "unconfirmed"), 1)
    assert (found.count, found.n, found.pictures, found.of) == (4, 80, 40, 40)
    by = {row["kind"]: row for row in rows}
    assert (by["missing"]["given"], by["missing"]["likely"]) == ("", "red")
    assert (by["swapped"]["given"], by["swapped"]["likely"]) == ("green", "red")
    assert (by["unconfirmed"]["given"], by["unconfirmed"]["likely"], by["unconfirmed"]["found_left"]) == ("red", "", "")
    assert float(by["unconfirmed"]["left"]) == 40.0
    assert float(by["misplaced"]["found_left"]) == float(by["misplaced"]["left"]) + 6
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["doubt"]) for row in rows] == sorted((float(row["doubt"]) for row in rows), reverse=True)
    assert len(found.shown) == 4
    assert all(Image.open(tmp_path / one.file).size == (192, 192) for one in found.shown)


def test_a_detector_that_finds_nothing_doubts_nothing(boxed: Any, tmp_path: Path) -> None:
    ready, _ = boxed
    assert keep_box_suspects(a_run(Seer(blind=True), ready, tmp_path), ready, tmp_path, None, print) is None
    assert not (tmp_path / "suspects.csv").exists()


def test_there_is_not_time_for_all_pictures(boxed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, _ = boxed
    monkeypatch.setattr("sensorium.runs.suspect_boxes.CHUNK", 16)
    found = keep_box_suspects(a_run(Seer(), ready, tmp_path), ready, tmp_path, 0.0, print)
    assert found is not None
    assert (found.pictures, found.of) == (16, 40)


def results_of(tmp_path: Path, **more: Any) -> Results:
    data = Data("x", train=40, classes=("red", "green"))
    return Results(2, data, (RunResult("seer", "seer"),), **more)


def test_the_report_shows_boxes_and_the_record_keeps_them(boxed: Any, tmp_path: Path) -> None:
    ready, _ = boxed
    suspects = keep_box_suspects(a_run(Seer(), ready, tmp_path), ready, tmp_path, None, print)
    results = results_of(tmp_path, box_suspects=suspects)
    write_results(results, tmp_path)
    assert read_results(tmp_path) == results
    page = write_report(results, tmp_path).read_text()
    section = page[page.index('id="boxes"') :]
    assert section.count("<img ") == 4
    assert "doubts too few rather than too many" in section
    for word in ("1 missing", "Another class", "Misplaced", "Unconfirmed"):
        assert word in section
    none = BoxSuspects("suspects.csv", "seer", {"missing": 0}, 0, 80, 20, 40)
    page = write_report(results_of(tmp_path, box_suspects=none), tmp_path).read_text()
    assert "doubts none of the 80 boxes in 20 training pictures (of 40" in page


def arrays(*given: Any) -> list[np.ndarray]:
    return [
        np.array(one, float if k in (0, 2, 4) else int).reshape((-1, 4) if k in (0, 2) else -1)
        for k, one in enumerate(given)
    ]


def test_doubts_by_hand() -> None:
    """Twenty pictures whose one box is found; then a class that is seldom found is doubted less."""
    cell, far = [10, 10, 30, 30], [60, 60, 80, 80]
    right = [compared(*arrays([cell], [0], [cell], [0], [0.3 + 0.01 * i])) for i in range(20)]
    lost = [compared(*arrays([far], [1], [], [], [])) for _ in range(9)]
    seldom = compared(*arrays([far], [1], [far], [1], [0.4]))
    known = usual([*right, *lost, seldom], 2)
    assert known is not None
    assert known.median[0] == pytest.approx(0.395)
    assert known.recall.tolist() == pytest.approx([1.0, 0.1])
    assert known.median[1] == pytest.approx(0.4)  # one of class 1 says nothing: all 21 do
    odd = compared(*arrays([cell, far], [0, 1], [far], [0], [0.6]))
    found = doubts([odd], known)
    assert [(one.kind, one.box, one.detection) for one in found] == [("unconfirmed", 0, -1), ("swapped", 1, 0)]
    assert [one.doubt for one in found] == pytest.approx([1.0, 0.1])
    assert usual(right[:9], 2) is None


def test_a_place_has_one_missing_box_and_neighbors_do_not_hide_it() -> None:
    cell = [10, 10, 30, 30]
    right = [compared(*arrays([cell], [0], [cell], [0], [0.3])) for _ in range(20)]
    known = usual(right, 2)
    assert known is not None
    beside = [28, 10, 48, 30]
    twice = compared(*arrays([cell], [0], [cell, beside, [29, 10, 49, 30]], [0, 0, 1], [0.5, 0.5, 0.4]))
    found = [one for one in doubts([twice], known) if one.kind == "missing"]
    assert [(one.detection, one.doubt) for one in found] == [(1, 1.0)]


# --- captions ---


def field(rng: np.random.Generator, colour: str, shape: str) -> bytes:
    pixels = np.broadcast_to(np.array(COLOURS[colour], float), (16, 16, 3)) + rng.normal(0, 12, (16, 16, 3))
    if shape == "sea":
        pixels[:8] *= 0.25
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def wrong_captions(path: Path, count: int, share: float) -> set[str]:
    """``count`` fields of a color, each with its name, of which a ``share`` is another's; which these are."""
    rng = np.random.default_rng(0)
    names = [(colour, shape) for colour in COLOURS for shape in ("sky", "sea")]
    wrong = set(rng.permutation(count)[: round(share * count)].tolist())
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            k = i % len(names)
            told = (k + int(rng.integers(1, len(names)))) % len(names) if i in wrong else k
            caption = f"a {names[told][0]} {names[told][1]}"
            for name, content in ((f"{i:03}.png", field(rng, *names[k])), (f"{i:03}.txt", caption.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return {f"{i:03}.png" for i in wrong}


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    folder = tmp_path_factory.mktemp("captions")
    wrong = wrong_captions(folder / "train-0.tar", 320, 0.05)
    wrong_captions(folder / "test-0.tar", 64, 0.0)
    return folder, wrong


def test_a_short_training_finds_half_of_the_swapped_captions(pictured: Any, tmp_path: Path) -> None:
    data, wrong = pictured
    small = "backbone=resnet-micro,text_width=32,text_depth=1,embed_dim=16,batch_size=16,lr=0.003,weight_decay=0.01"
    found = compare(
        [f"clip,{small}"], str(data), budget="80steps", image_size=8, out=tmp_path, progress=False, threads=1
    )
    suspects = found.caption_suspects
    assert suspects is not None
    rows = list(csv.DictReader((tmp_path / suspects.file).open()))
    first = {Path(row["picture"]).name for row in rows[: len(wrong)]}
    assert len(first & wrong) >= len(wrong) / 2
    assert len(rows) == suspects.count
    assert suspects.n == suspects.of == 320
    assert all(row["nearest"] != row["caption"] for row in rows)
    outliers = [float(row["outlier"]) for row in rows]
    assert outliers == sorted(outliers)
    assert suspects.clear == sum(one <= -3 for one in outliers)
    assert read_results(tmp_path) == found
    section = (tmp_path / "report.html").read_text().partition('id="captions"')[2]
    assert section.count("<img ") >= min(24, suspects.count)
    assert found.box_suspects is None
    assert found.suspects is None


class Reader(torch.nn.Module, ImageText):
    """Embeds a picture by its mean color, and a caption by the color that it names."""

    def __init__(self, colours: dict[int, int]) -> None:
        super().__init__()
        self.context, self.colours = 8, colours
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def embed_image(self, images: torch.Tensor) -> torch.Tensor:
        colour = images.mean((2, 3))
        return torch.nn.functional.normalize(colour - colour.mean(1, keepdim=True) + self.weight, dim=1)

    def embed_text(self, tokens: torch.Tensor) -> torch.Tensor:
        axes = torch.nn.functional.normalize(torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [1, 1, -2]]), dim=1)
        which = [next(self.colours[t] for t in row if t in self.colours) for row in tokens.tolist()]
        return axes[which]

    def similarity_scale(self) -> float:
        return 10.0


def test_a_model_that_is_right_doubts_only_what_is_wrong(pictured: Any, tmp_path: Path) -> None:
    data, wrong = pictured
    ready = pairs.prepare(Source(str(data), None, tmp_path / "cache", image_size=8))
    first = {int(ready.tokens.encode([name], 8)[0, 1]): k for k, name in enumerate(COLOURS)}
    token = {int(ready.tokens.encode([f"a {name}"], 8)[0, 2]): k for k, name in enumerate(COLOURS)}
    found = keep_caption_suspects(a_run(Reader(first | token), ready, tmp_path), ready, tmp_path, None, print)
    assert found is not None
    rows = list(csv.DictReader((tmp_path / "suspects.csv").open()))
    names = {Path(row["picture"]).name for row in rows}
    other = {name for name in wrong if not same_color(ready, name)}
    assert names <= other  # yellow is near to red and to green: not every wrong name is far off
    assert len(names) >= len(other) / 2


def same_color(ready: Any, name: str) -> bool:
    """Whether the wrong caption of a picture names its color after all."""
    at = [Path(one).name for one in ready.train.pixels.names].index(name)
    text = ready.train.texts[int(np.flatnonzero(ready.train.rows == at)[0])]
    return text.split()[1] == list(COLOURS)[int(name[:3]) % 8 // 2]


def test_standing_by_hand() -> None:
    """Ten pictures along the axes, each with its caption, but the last two, whose captions are exchanged."""
    axes = torch.eye(10)
    texts = axes + 0.05
    texts = torch.nn.functional.normalize(texts[[0, 1, 2, 3, 4, 5, 6, 7, 9, 8]], dim=1)
    of, groups = np.arange(10), np.arange(10)
    pictures, captions = Side(axes, groups, of), Side(texts, groups, of)
    found = standing(pictures, captions)
    assert found.similarity[:8] == pytest.approx(np.full(8, found.similarity[0]))
    assert set(np.argsort(found.z)[:2]) == {8, 9}
    assert found.better[:8].tolist() == [0.0] * 8
    assert found.better[8:] == pytest.approx([1 / 9, 1 / 9])  # the other's; the rest are as far as its own
    assert nearest(pictures, captions, np.array([8, 9])).tolist() == [9, 8]
    again = standing(pictures, captions, chunk=3)
    for one, other in zip(found, again, strict=True):
        assert one == pytest.approx(other)


def test_captions_of_one_group_are_no_rivals() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    one = np.zeros(6, np.int64)
    found = standing(Side(vectors, one, np.arange(6)), Side(vectors, one, np.arange(6)))
    assert found.z.tolist() == [0.0] * 6
    assert found.better.tolist() == [0.0] * 6


def test_the_robust_score() -> None:
    assert robust(np.array([1.0, 1.0, 1.0])).tolist() == [0.0, 0.0, 0.0]
    assert robust(np.array([0.0, 1.0, 2.0, 3.0, -96.0]))[-1] == pytest.approx(-97 / 1.4826 / 1.0)
