"""`sensorium detect`: boxes in the pixels of pictures as they are, broken ones named, and networks that others can
run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import sensorium
from sensorium.abilities import Detector, HasBackbone
from sensorium.data.boxes.seen import Sight
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use.detect import Finder, open_finder
from sensorium.use.found import pictures_of

transformers = pytest.importorskip("transformers")

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
CLASSES = ("red", "green[1]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures with a rectangle each, as COCO json."""
    folder = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    stored: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(CLASSES)],
    }
    (folder / "images").mkdir()
    for i in range(12):
        h, w = ((70, 100), (96, 64))[i % 2]
        pixels = rng.integers(0, 60, (h, w, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(0, 30, 2))
        pixels[y : y + 30, x : x + 24, i % 2] = 230
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        stored["images"].append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        stored["annotations"].append(
            {"id": i + 1, "image_id": i, "category_id": i % 2 + 1, "bbox": [x, y, 24, 30], "iscrowd": 0}
        )
    (folder / "instances.json").write_text(json.dumps(stored))
    return folder


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    common: dict[str, Any] = {"budget": "2steps", "progress": False, "image_size": 96, "batch_size": 4}
    train("fcos", str(data), out=folder / "fcos", width=32, convs=1, **common)
    train("detr", str(data), out=folder / "detr", width=16, heads=2, queries=6, **common)
    return folder


class Seer(torch.nn.Module, HasBackbone, Detector):
    """Finds what is red, in the pixels that it is shown."""

    backbone = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def detect(self, images, threshold, *, sizes):
        found = []
        for one, (h, w) in zip(images, sizes.tolist(), strict=True):
            more = one[0, :h, :w] - one[1, :h, :w]
            y, x = torch.where(more > more.max() / 2)
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            found.append({"boxes": box[None], "scores": torch.tensor([0.9]), "labels": torch.tensor([0])})
        return found


@pytest.mark.parametrize("sides", [(96, 96), (48, 80), (300, 1000), (640, 640)])
def test_boxes_come_back_in_the_pixels_of_the_picture(sides: tuple[int, int]) -> None:
    image = torch.zeros(3, 70, 200, dtype=torch.uint8)
    image[0, 20:50, 90:160] = 250
    finder = Finder(Seer(), CLASSES, Sight((0.0,) * 3, (1.0,) * 3, sides, 32), 1)
    found = finder.find(image)
    torch.testing.assert_close(found["boxes"], torch.tensor([[90.0, 20, 160, 50]]), atol=200 / min(sides), rtol=0)


def test_pictures_are_drawn_and_written_and_broken_ones_named(
    runs: Path, data: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.open(data / "images" / "0.png").save(folder / "a.png")
    Image.open(data / "images" / "1.png").convert("L").save(folder / "more" / "a.jpg")
    (folder / "b.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "notes.txt").write_text("no picture either")
    out = folder / ".found"  # inside, where no reader looks: what is drawn must not be looked at the next time
    for _ in range(2):
        code, said, err = command("detect", str(runs / "fcos"), str(folder), "--threshold", "0.05", "--out", str(out))
        assert code == 0, err
        assert "skipped" in said
        assert "b.jpg: not an image" in " ".join(said.split())
    assert sorted(p.name for p in out.iterdir()) == ["a-2.png", "a.png", "detections.json"]
    assert Image.open(out / "a.png").size == (100, 70)
    rows = json.loads((out / "detections.json").read_text())
    assert rows
    assert {row["file_name"] for row in rows} <= {"a.png", "more/a.jpg"}
    for row in rows:
        x, y, w, h = row["bbox"]
        wide, high = (100, 70) if row["image_id"] == 1 else (64, 96)
        assert x >= 0
        assert y >= 0
        assert x + w <= wide + 0.02
        assert y + h <= high + 0.02
        assert row["category"] == CLASSES[row["category_id"] - 1]
        assert row["score"] >= 0.05
    # COCO's own reader takes it.
    known = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(CLASSES)],
        "annotations": [],
    }
    assert len(COCO(known).loadRes(rows).getAnnIds()) == len(rows)
    assert json.loads((data / "instances.json").read_text())["categories"][1]["name"] == CLASSES[1]


def test_what_cannot_be_done_is_said(runs: Path, data: Path, tmp_path: Path, command: Command) -> None:
    run, picture = str(runs / "fcos"), str(data / "images" / "0.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for words, said in (
        ((run,), "give pictures"),
        ((run, "nowhere.png"), "no picture or folder 'nowhere.png'"),
        ((run, str(tmp_path / "empty")), "there is no picture in"),
        ((run, str(tmp_path / "bad.png"), "--out", str(tmp_path / "out")), "the picture cannot be read"),
        ((run, picture, "--threshold", "30"), "from 0 to 1"),
        ((run, picture, "--out", picture), "this isn't a folder"),
    ):
        code, _, err = command("detect", *words)
        assert code == 1
        assert said in err
    assert len(pictures_of([data / "images", Path(picture)])) == 12


def test_what_finds_nothing_is_refused(runs: Path, data: Path, command: Command) -> None:
    code, _, err = command("detect", str(runs / "fcos" / "backbone"), str(data / "images"))
    assert code == 1
    assert "can't be used by `sensorium detect`, which needs a run of" in err


def test_detr_goes_to_hugging_face_and_comes_back(runs: Path, data: Path, tmp_path: Path, command: Command) -> None:
    code, _, err = command("export", str(runs / "detr"), "--to", "hf", "--out", str(tmp_path / "hf"))
    assert code == 0, err
    ours = Run(runs / "detr").method
    theirs = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "hf").eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        want, (logits, boxes) = theirs(images), ours.predict(images)
    torch.testing.assert_close(logits[-1], want.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes[-1], want.pred_boxes, atol=1e-5, rtol=0)
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    # A directory needs no run beside it: names, sides and normalization are in it.
    one, other = open_finder(runs / "detr"), open_finder(tmp_path / "hf")
    assert (one.classes, one.sight.sides) == (other.classes, other.sight.sides) == (CLASSES, (96, 96))
    image = torch.from_numpy(np.asarray(Image.open(data / "images" / "1.png")).transpose(2, 0, 1).copy())
    a, b = (finder.find(image, 0.0) for finder in (one, other))
    assert len(a["boxes"]) == 6
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=0)
    # transformers prepares a picture alike: longer side 96.
    processor = transformers.models.detr.DetrImageProcessorPil.from_pretrained(tmp_path / "hf")
    seen = processor(Image.open(data / "images" / "0.png"), return_tensors="pt")["pixel_values"]
    assert max(seen.shape[-2:]) == 96


def test_fcos_goes_to_torchvision_and_comes_back(runs: Path, data: Path, tmp_path: Path, command: Command) -> None:
    code, _, err = command("export", str(runs / "fcos"), "--to", "torchvision", "--out", str(tmp_path))
    assert code == 0, err
    told = json.loads((tmp_path / "fcos.json").read_text())
    numbers = told["backbone"]
    body = resnet.ResNet(resnet.BasicBlock, [*numbers["layers"], 1])
    last = len(numbers["layers"])
    kept = {f"layer{i + 1}": str(i) for i in range(last - numbers["returned_maps"], last)}
    width = numbers["out_channels"]
    channels = [64 * 2 ** int(i) for i in kept.values()]
    pyramid = BackboneWithFPN(body, kept, channels, width, LastLevelP6P7(width, width))
    assert isinstance(pyramid.body, IntermediateLayerGetter)
    strides = [4 * 2 ** int(i) for i in kept.values()]
    strides += [strides[-1] * 2, strides[-1] * 4]
    anchors = torchvision_places(strides)
    head = FCOSHead(width, anchors.num_anchors_per_location()[0], told["num_classes"], told["head"]["num_convs"])
    sides = {"min_size": told["min_size"], "max_size": told["max_size"]}
    statistics = {"image_mean": told["image_mean"], "image_std": told["image_std"]}
    theirs = TorchvisionFCOS(
        pyramid, told["num_classes"], **sides, **statistics, anchor_generator=anchors, head=head, score_thresh=0.05
    ).eval()
    theirs.load_state_dict(torch.load(tmp_path / "fcos.pth", weights_only=True))
    picture = Image.open(data / "images" / "0.png").resize((96, 96))
    image = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
    found = open_finder(runs / "fcos").find(image, 0.05)
    back = open_finder(tmp_path / "fcos.pth")
    assert (back.classes, back.sight.sides) == (CLASSES, (96, 96))
    with torch.no_grad():
        (want,) = theirs([image.float() / 255])
    assert len(found["boxes"]) == len(want["boxes"]) > 0
    again = back.find(image, 0.05)
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[name], want[name], atol=1e-3, rtol=0)
        torch.testing.assert_close(again[name], found[name], atol=1e-5, rtol=0)
    (tmp_path / "fcos.json").write_text('{"image_mean": [1, 2]}')
    with pytest.raises(sensorium.SensoriumError, match=r"fcos\.json: "):
        open_finder(tmp_path / "fcos.pth")


def torchvision_places(strides: list[int]):
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(sizes=tuple((s,) for s in strides), aspect_ratios=((1.0,),) * len(strides))


def test_what_torchvision_has_not_is_said(data: Path, tmp_path: Path, command: Command) -> None:
    small: dict[str, Any] = {"image_size": 96, "batch_size": 4, "width": 16, "convs": 1}
    train("fcos", str(data), budget="1steps", out=tmp_path / "run", progress=False, **small)
    code, _, err = command("export", str(tmp_path / "run"), "--to", "torchvision")
    assert code == 1
    assert "groups=32" in err
    assert "does not export to hf" in command("export", str(tmp_path / "run"), "--to", "hf")[2]
