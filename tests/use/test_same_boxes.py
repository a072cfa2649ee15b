"""A picture has the same boxes however it comes to a detector: judged, by command, from Python, on the page, and in the
libraries that an export is for; wide, tall, tiny and huge ones, and real photos."""

import base64
import csv
import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sensorium.base.draw import Draw
from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.seen import inner_size
from sensorium.data.images.given import given
from sensorium.errors import SensoriumError
from sensorium.judge.boxes import LEAST_SCORE, detections
from sensorium.playground.common import READERS, Played
from sensorium.playground.detect import seen
from sensorium.recipe.boxes import sight_of
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use import export
from sensorium.use.detect import Box, detect, open_finder
from sensorium.use.found import find_in

REAL = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHAPES = [
    (70, 100),
    (96, 64),
    (640, 90),
    (40, 700),
    (5, 9),
    (1, 1),
    (96, 96),
    (49, 98),
    (1500, 2100),
    (33, 107),
    (2, 300),
]
LEAST = 0.05
Found = dict[str, Tensor]


def painted(folder: Path, shapes: list[tuple[int, int]], kind: str = "jpg") -> None:
    """Pictures of rectangles on noise, and their boxes as COCO json."""
    rng = np.random.default_rng(len(shapes))
    stored: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for i, (h, w) in enumerate(shapes):
        pixels = rng.integers(0, 120, (h, w, 3), dtype=np.uint8)
        x, y = (int(rng.integers(0, n // 2 + 1)) for n in (w - 1, h - 1))
        across, down = max(1, w // 3), max(1, h // 3)
        pixels[y : y + down, x : x + across, i % 2] = 230
        Image.fromarray(pixels).save(folder / f"{i:02}.{kind}", quality=92)
        stored["images"].append({"id": i, "file_name": f"{i:02}.{kind}", "height": h, "width": w})
        box = [x, y, min(across, w - x), min(down, h - y)]
        stored["annotations"].append({"id": i + 1, "image_id": i, "category_id": i % 2 + 1, "bbox": box, "iscrowd": 0})
    (folder / "instances.json").write_text(json.dumps(stored))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    painted(folder / "data", [(70, 100), (96, 64), (90, 90), (60, 110)] * 4)
    common: dict[str, Any] = {"progress": False, "image_size": 100, "batch_size": 8, "lr": 1e-3}
    train("fcos", str(folder / "data"), budget="40steps", out=folder / "fcos", width=32, convs=1, **common)
    train("detr", str(folder / "data"), budget="40steps", out=folder / "detr", width=32, heads=2, queries=9, **common)
    return {name: Run(folder / name) for name in ("fcos", "detr")}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    painted(folder, SHAPES)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty real photos of different shapes, with a box each, so that they can be judged."""
    files = sorted([*REAL.glob("photos/*"), *REAL.glob("mtcnn/images/*")])
    tables = sorted(REAL.glob("mmbench/*.tsv"))
    if len(files) < 9 or not tables:
        pytest.skip(f"needs the photos of {REAL}, which aren't on this machine")
    contents = [file.read_bytes() for file in files]
    csv.field_size_limit(1 << 26)
    for table in tables:
        with table.open(encoding="utf-8", newline="") as file:
            contents += [
                base64.b64decode(row["image"]) for row in csv.DictReader(file, delimiter="\t") if row.get("image")
            ]
    folder = tmp_path_factory.mktemp("photos")
    stored: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
    }
    known: set[tuple[int, int]] = set()
    for content in contents:
        image = Image.open(io.BytesIO(content))
        if image.size in known or len(known) == 30:
            continue
        known.add(image.size)
        name = f"{len(known):02}.{'png' if image.format == 'PNG' else 'jpg'}"
        (folder / name).write_bytes(content)
        i = len(known)
        stored["images"].append({"id": i, "file_name": name, "width": image.width, "height": image.height})
        box = [1, 1, image.width - 2, image.height - 2]
        stored["annotations"].append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": box, "iscrowd": 0})
    assert len(known) == 30
    (folder / "instances.json").write_text(json.dumps(stored))
    return folder


def pictures(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.suffix in (".jpg", ".png"))


def clipped(boxes: Tensor, path: Path) -> Tensor:
    width, height = Image.open(path).size
    return torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]).to(boxes))


def alike(one: Found, other: Found, name: str, pixels: float = 1e-3, score: float = 1e-4) -> None:
    """Equal boxes, scores and labels, but for those that a rounding error moves across the threshold or the last place."""
    for a, b in ((one, other), (other, one)):
        low = max(LEAST, float(b["scores"].min()) if len(b["scores"]) >= 100 else 0.0) + 2 * score
        sure = a["scores"] > low
        far = (a["boxes"][sure, None] - b["boxes"][None]).abs().amax(-1)
        apart = (a["scores"][sure, None] - b["scores"][None]).abs()
        match = (far <= pixels) & (apart <= score) & (a["labels"][sure, None] == b["labels"][None])
        assert match.any(1).all(), f"{name}: {far.amin(1).max() if far.numel() else 'none'}"


def of_boxes(boxes: list[Box]) -> Found:
    edges = torch.tensor([list(box[:4]) for box in boxes], dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": edges,
        "scores": torch.tensor([box.score for box in boxes]),
        "labels": torch.tensor([box.label for box in boxes], dtype=torch.int64),
    }


def judged(run: Run, folder: Path, cache: Path) -> list[Found]:
    """What judging finds in each picture, in the order of their names."""
    opened, by_name = open_boxes(folder), {}
    for part in (opened.train, opened.test):
        if part is not None:
            boxed = cache_boxes(part, run.situation.image_size, cache)
            assert not boxed.pixels.skipped
            found, _, _ = detections(run.method, boxed, sight_of(run.method, run.situation), device="cpu")
            by_name |= dict(zip((Path(name).name for name in boxed.truth.names), found, strict=True))
    assert LEAST_SCORE < LEAST
    kept = [{k: v[by_name[name]["scores"] > LEAST] for k, v in by_name[name].items()} for name in sorted(by_name)]
    assert sum(len(one["boxes"]) for one in kept) > 2 * len(kept)
    return kept


def everywhere(run: Run, folder: Path, tmp_path: Path) -> list[Found]:
    """The boxes that judging finds, checked against those of Python, the command and the page."""
    want, paths = judged(run, folder, tmp_path / "cache"), pictures(folder)
    assert len(want) == len(paths)
    find_in(run.folder, [folder], threshold=LEAST, out=tmp_path / "out", form="json", crops=None)
    told = json.loads((tmp_path / "out" / "detections.json").read_text())
    by_path = detect(run, paths, LEAST)
    played = Played(run)
    for number, (path, found, boxes, row) in enumerate(zip(paths, want, by_path, told, strict=True)):
        alike(found, of_boxes(boxes), f"{path.name}: Python")
        pixels = np.asarray(Image.open(path).convert("RGB"))
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        for kind in (Image.open(path), Image.fromarray(pixels), tensor, pixels)[number % 3 :: 3]:
            assert detect(run, kind, LEAST) == boxes
        page, classes = seen(played, Image.fromarray(READERS.picture(path, path.name)), LEAST)
        alike(found, page, f"{path.name}: page")
        assert classes == run.situation.classes
        names = [run.situation.classes[label] for label in page["labels"].tolist()]
        assert [one["name"] for one in row["objects"]] == names
        assert row["file_name"] == path.name
        written = torch.tensor([one["box"] for one in row["objects"]]).reshape(-1, 4)
        torch.testing.assert_close(written, page["boxes"], atol=6e-3, rtol=0)
    return want


def imported(script: Path) -> Any:
    """A Python file that an export writes, which imports nothing of ours."""
    assert "sensorium" not in script.read_text(encoding="utf-8").lower().replace("without sensorium", "")
    spec = importlib.util.spec_from_file_location("exported", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("which", ["shapes", "photos"])
def test_fcos_finds_the_same_boxes_everywhere(
    which: str, runs: dict[str, Run], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    run = runs["fcos"]
    want = everywhere(run, folder, tmp_path)
    export(run, "torchvision", tmp_path / "torchvision")
    module = imported(tmp_path / "torchvision" / "fcos.py")
    model = module.detector(LEAST)
    assert module.classes() == list(run.situation.classes)
    back = open_finder(tmp_path / "torchvision" / "fcos.pth")
    with torch.no_grad():
        together = model([module.read(path) for path in pictures(folder)])  # of all sizes at once
        for path, found, one in zip(pictures(folder), want, together, strict=True):
            (alone,) = model([module.read(path).float() / 255])
            alike(found, alone, f"{path.name}: torchvision")
            alike(found, one, f"{path.name}: torchvision, together")
            alike(found, back.find(path, LEAST), f"{path.name}: read back")


@pytest.mark.parametrize("which", ["shapes", "photos"])
def test_detr_finds_the_same_boxes_everywhere(
    which: str, runs: dict[str, Run], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    transformers = pytest.importorskip("transformers")
    folder: Path = request.getfixturevalue(which)
    want = everywhere(runs["detr"], folder, tmp_path)
    export(runs["detr"], "hf", tmp_path / "hf")
    model = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "hf").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    back = open_finder(tmp_path / "hf")
    for path, found in zip(pictures(folder), want, strict=True):
        image = Image.open(path).convert("RGB")
        alike(found, back.find(path, LEAST), f"{path.name}: read back")
        if min(inner_size(image.height, image.width, 100)) * 100 < max(image.size) or min(image.size) < 3:
            continue  # transformers guesses the axis of the colors, and resizes to no pixel at all
        with torch.no_grad():
            seen = model(**processor(image, return_tensors="pt"))
        (one,) = processor.post_process_object_detection(seen, LEAST, [(image.height, image.width)])
        alike(found, one | {"boxes": clipped(one["boxes"], path)}, f"{path.name}: transformers")


@pytest.mark.parametrize("system", ["fcos", "detr"])
def test_onnx_finds_the_same_boxes(system: str, runs: dict[str, Run], shapes: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, paths = runs[system], pictures(shapes)
    path = export(run, "onnx", tmp_path / "mine.onnx")
    module = imported(path.with_suffix(".py"))
    mine = module.Detector()
    assert mine.classes == list(run.situation.classes)
    for one in paths:
        found = mine.find(one, LEAST)
        labels = torch.tensor([mine.classes.index(row["name"]) for row in found], dtype=torch.int64)
        boxes = torch.tensor([row["box"] for row in found]).reshape(-1, 4)
        other = {"boxes": boxes, "scores": torch.tensor([row["score"] for row in found]), "labels": labels}
        alike(of_boxes(detect(run, one, LEAST)), other, f"{one.name}: onnx", 2e-3 * max(1, max(given(one).size) / 100))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sight = sight_of(run.method, run.situation)
    for some in (paths[:1], paths[:5]):  # of any number
        batch = sight.batch([sight.look(given(one).image) for one in some])
        boxes, scores, labels = session.run(None, {"images": batch["image"].numpy(), "sizes": batch["sizes"].numpy()})
        assert boxes.shape == (len(some), scores.shape[1], 4)
        want = run.method.detect(batch["image"], LEAST, sizes=batch["sizes"])
        for i, one in enumerate(want):
            kept = scores[i] > LEAST
            values = (boxes[i][kept], scores[i][kept], labels[i][kept])
            got = dict(zip(("boxes", "scores", "labels"), map(torch.from_numpy, values), strict=True))
            alike(one, got, f"picture {i} of {len(some)}")


def test_a_batch_changes_nothing(runs: dict[str, Run], shapes: Path) -> None:
    """Pictures of other shapes beside it, which decided the padding before."""
    run = runs["fcos"]
    sight = sight_of(run.method, run.situation)
    looked = [sight.look(given(path).image) for path in pictures(shapes)]
    assert sight.batch(looked)["image"].shape[-2:] == sight.batch(looked[3:4])["image"].shape[-2:] == (128, 128)
    together = sight.find(run.method, looked, LEAST, "cpu")
    for i, one in enumerate(looked):
        alike(together[i], sight.find(run.method, [one], LEAST, "cpu")[0], str(i))


def test_prepared_images_are_what_the_detector_sees(runs: dict[str, Run]) -> None:
    run = runs["fcos"]
    images = torch.randint(256, (2, 3, 60, 140), dtype=torch.uint8)
    ready = run.prepare_images(images)
    assert ready.shape == (2, 3, 128, 128)
    sight = sight_of(run.method, run.situation)
    for image, square in zip(images, ready, strict=True):
        assert torch.equal(sight.batch([sight.look(given(image).image)])["image"][0], square)
    assert ready[:, :, 42:].eq(0).all()
    assert ready[:, :, :, 100:].eq(0).all()
    assert (ready[:, :, :42, :100] != 0).any()


def test_training_sees_the_same_square(runs: dict[str, Run]) -> None:
    run = runs["fcos"]
    data = run.data()
    batch = run.recipe.views(data.train.take(np.arange(4)), Draw.seeded(0, 0, 4))
    assert batch["image"].shape == (4, 3, 128, 128)


@pytest.mark.parametrize("height, width", [*SHAPES, (4000, 3), (480, 640), (427, 640), (197, 49)])
def test_sizes_are_those_of_other_libraries(height: int, width: int) -> None:
    for size in (64, 96, 100, 256, 640):
        inner = inner_size(height, width, size)
        assert size - 1 <= max(inner) <= size
        assert min(inner) >= 1
        if min(height, width) * size // max(height, width) == 0:
            continue
        torchvision = torch.nn.functional.interpolate(
            torch.empty(1, 1, height, width, device="meta"), scale_factor=size / max(height, width), mode="bilinear",
            recompute_scale_factor=True,
        )  # fmt: skip
        assert inner == tuple(torchvision.shape[-2:])


def test_what_is_no_picture_is_said(runs: dict[str, Run], tmp_path: Path) -> None:
    finder = open_finder(runs["fcos"])
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    for wrong, said in (
        (torch.zeros(3, 8, 8), "uint8 .or uint16. tensor"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"uint8 \[8, 8, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (7, "this is a int"),
        (tmp_path / "bad.jpg", r"bad\.jpg: not an image"),
        (tmp_path / "none.jpg", r"none\.jpg: no such file"),
    ):
        with pytest.raises(SensoriumError, match=said):
            finder.find(wrong)  # type: ignore[arg-type]
    with pytest.raises(SensoriumError, match="from 0 to 1"):
        detect(runs["fcos"], [], 3)
    with pytest.raises(SensoriumError, match=r"can't be used by `sensorium detect`, which needs a run of .*fcos[.]$"):
        detect(torch.nn.Linear(1, 1), [])


def test_turned_gray_and_deep_pictures_are_equal_by_every_way(runs: dict[str, Run], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (60, 90), dtype=np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(rng.integers(0, 4000, (60, 90), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.integers(0, 255, (60, 90, 4), dtype=np.uint8), "RGBA").save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    for path in sorted(tmp_path.iterdir()):
        want = given(path)
        loaded = Image.open(path)
        loaded.load()
        for picture in (Image.open(path), loaded):
            assert np.array_equal(np.asarray(given(picture).image), np.asarray(want.image)), path.name
    assert given(tmp_path / "turned.jpg").size == (90, 60)
