"""Pictures with boxes, from the command line: faults are named, squares keep boxes on their objects, detectors are
trained and judged, and what cannot be learned is said before hours are spent."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.abilities import Detector, HasBackbone
from sensorium.base.draw import Draw
from sensorium.data.boxes import prepare as boxes
from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.prepare import BoxSituation
from sensorium.data.scenes import boxes as scenes_boxes
from sensorium.data.scenes.boxes import box_set
from sensorium.data.scenes.scenes import Scenes
from sensorium.data.source import Source
from sensorium.detection.detr.recipe import detr
from sensorium.detection.fcos.method import FCOS
from sensorium.detection.fcos.recipe import fcos
from sensorium.errors import SensoriumError
from sensorium.judge import boxes as judged
from sensorium.judge.box_baseline import constant_boxes, placed
from sensorium.judge.coco_ap import coco_ap
from sensorium.judge.evaluator import VERSION, read_judgement
from sensorium.judge.score import lines
from sensorium.method import Progress
from sensorium.recipe.boxes import sight_of
from sensorium.runs import check as box_check
from sensorium.runs.run import Run
from sensorium.runs.train import train

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
SMALL: dict[str, Any] = {"width": 16, "convs": 1, "batch_size": 4, "image_size": 64}
SHAPES = [(60, 90), (100, 50), (64, 64), (48, 80)]  # (height, width)


def coco(folder: Path, split: str, count: int) -> dict[str, Any]:
    """Pictures of a red rectangle, left, and a green one, right, on dark noise, and their boxes as COCO json."""
    rng = np.random.default_rng(len(split))
    stored: dict[str, Any] = {
        "images": [], "annotations": [], "categories": [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}],
    }  # fmt: skip
    (folder / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        h, w = SHAPES[i % len(SHAPES)]
        pixels = rng.integers(0, 60, (h, w, 3), dtype=np.uint8)
        stored["images"].append({"id": 50 + i, "file_name": f"{split}_{i}.png", "height": h, "width": w})
        for k in (0, 1):
            bw, bh = (int(v) for v in rng.integers(14, 22, 2))
            x, y = k * (w // 2) + int(rng.integers(0, w // 2 - bw)), int(rng.integers(0, h - bh))
            pixels[y : y + bh, x : x + bw] = (230, 20, 20) if k == 0 else (20, 230, 20)
            row = {"id": len(stored["annotations"]) + 1, "image_id": 50 + i, "category_id": (3, 7)[k]}
            stored["annotations"].append(row | {"bbox": [x, y, bw, bh], "iscrowd": 0, "area": bw * bh})
        Image.fromarray(pixels).save(folder / split / f"{split}_{i}.png")
    (folder / f"instances_{split}.json").write_text(json.dumps(stored))
    return stored


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    coco(folder, "train", 12)
    coco(folder, "val", 11)
    return folder


@pytest.fixture(scope="module")
def ready(data: Path, tmp_path_factory: pytest.TempPathFactory) -> boxes.Prepared:
    return boxes.prepare(Source(str(data), None, tmp_path_factory.mktemp("cache"), image_size=64))


# -- data --


def test_squares_keep_boxes_on_their_objects(ready: boxes.Prepared) -> None:
    part = ready.train
    assert part.pixels.images.shape == (12, 3, 64, 64)
    assert set(part.fields) == {"image", "boxes", "labels"}
    for i in range(len(part)):
        sample = {name: value[0] for name, value in part.take(np.array([i])).items()}
        h, w = part.truth.sizes[i]
        assert max(sample["image"].shape[1:]) == 64
        assert abs(sample["image"].shape[1] / sample["image"].shape[2] - h / w) < 0.02 * h / w
        for (x1, y1, x2, y2), label in zip(sample["boxes"].tolist(), sample["labels"].tolist(), strict=True):
            inside = sample["image"][:, round(y1) + 1 : round(y2) - 1, round(x1) + 1 : round(x2) - 1].float()
            assert inside[label].min() > 150
        torch.testing.assert_close(sample["boxes"], box_check.in_view(part, i)["boxes"], atol=1e-3, rtol=0)
        # The truth through a judging view's batch comes back where it was.
        batch = sight_of(_Anything(), part).batch([box_check.in_view(part, i)])
        factor = (batch["original"] / batch["sizes"]).flip(1).repeat(1, 2)
        torch.testing.assert_close(batch["boxes"][0] * factor, part.truth.truth(i)["boxes"], atol=1e-3, rtol=0)


class _Anything:
    backbone = None


class Seer(torch.nn.Module, HasBackbone, Detector):
    """Finds red and green where they are, in the pixels that it is shown."""

    backbone = None

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def detect(self, images, threshold, *, sizes):
        found = []
        for one, (h, w) in zip(images, sizes.tolist(), strict=True):
            rows = []
            for k in (0, 1):
                more = one[k, :h, :w] - one[1 - k, :h, :w]
                y, x = torch.where(more > more.max() / 2)
                rows.append([float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1])
            found.append({"boxes": torch.tensor(rows), "scores": torch.tensor([0.9, 0.8]), "labels": torch.arange(2)})
        return found


def test_who_sees_everything_is_judged_so(ready: boxes.Prepared) -> None:
    found, truth, indices = judged.detections(Seer(), ready.train, sight_of(Seer(), ready.train), device="cpu")
    assert indices == list(range(12))
    assert coco_ap(found, truth, ready.train.classes)["ap50"] == 1.0
    assert judged.online(Seer(), ready)["ap50"] == 1.0


def test_faults_are_named_and_counted(data: Path, tmp_path: Path) -> None:
    stored = coco(tmp_path, "train", 10)
    stored["images"].append({"id": 999, "file_name": "gone.png", "height": 10, "width": 10})
    wrong = [
        {"image_id": 50, "category_id": 3, "bbox": [float("nan"), 1, 5, 5]},
        {"image_id": 50, "category_id": 4, "bbox": [1, 1, 5, 5]},
        {"image_id": 51, "category_id": 3, "bbox": [500, 500, 5, 5]},
        {"image_id": 999, "category_id": 3, "bbox": [1, 1, 5, 5]},
    ]
    stored["annotations"] += [row | {"id": 900 + i, "iscrowd": 0} for i, row in enumerate(wrong)]
    (tmp_path / "instances_train.json").write_text(json.dumps(stored))
    broken = tmp_path / "train" / "train_3.png"
    Image.open(broken).save(tmp_path / "whole.jpg", quality=95)
    broken.write_bytes((tmp_path / "whole.jpg").read_bytes()[:-900])  # its header is good
    ready = boxes.prepare(Source(str(tmp_path), str(data), tmp_path / "cache", image_size=64))
    told = boxes.describe(ready)
    every = " ".join(told["skipped"] + told["notes"])
    for words in (
        "train_0.png: box not finite", "train_0.png: box of an unknown class", "train_1.png: box outside the image",
        "gone.png: image is missing", "train_3.png: ", "image is missing: 1.", "image cannot be decoded: 1.",
    ):  # fmt: skip
        assert words in every, words
    assert (told["train"], told["boxes"]["train"]) == (9, 18)
    assert ready.train.truth.names == [f"train_{i}.png" for i in range(10) if i != 3]
    # The cache is found again, and gives the same.
    again = boxes.prepare(Source(str(tmp_path), str(data), tmp_path / "cache", image_size=64))
    assert again.train.digest == ready.train.digest
    with pytest.raises(SensoriumError, match="32 to 2048"):
        boxes.prepare(Source(str(data), None, tmp_path / "cache", image_size=7))


def test_scenes_have_the_boxes_of_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes_boxes, "VISIBLE", 0.9)  # few are hidden by more
    scenes = Scenes(70, 0, 48)
    found = box_set(scenes, tmp_path)
    assert found.crowd.any()
    for i in range(70):
        want, got = scenes[i], found.truth(i)
        assert torch.equal(got["boxes"], want["boxes"])
        assert torch.equal(got["labels"], want["box_labels"])
        assert torch.equal(got["crowd"], want["visible"] < 0.9)
        assert torch.equal(got["area"], want["masks"].sum((1, 2)).float())
    (kept,) = tmp_path.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(box_set(scenes, tmp_path).boxes, found.boxes)
    part = cache_boxes(found, 48, tmp_path)
    assert torch.equal(part[5]["image"], scenes[5]["image"])
    learnt = found.boxes[found.starts[5] : found.starts[6]][~found.crowd[found.starts[5] : found.starts[6]]]
    assert np.array_equal(part.take(np.array([5]))["boxes"][0], learnt)


def test_rows_leave_out_crowd(ready: boxes.Prepared) -> None:
    truth = ready.train.truth
    truth.crowd[0] = True
    try:
        without = ready.train.take(np.arange(12))
    finally:
        truth.crowd[0] = False
    whole = ready.train.take(np.arange(12))
    assert len(without["boxes"][0]) == len(without["labels"][0]) == 1
    assert torch.equal(without["boxes"][0], whole["boxes"][0][1:])
    assert all(torch.equal(a, b) for a, b in zip(without["boxes"][1:], whole["boxes"][1:], strict=True))


def test_the_same_boxes_everywhere_are_right_where_they_are(data: Path, tmp_path: Path) -> None:
    stored = coco(tmp_path, "train", 8)
    for row in stored["annotations"]:
        h, w = SHAPES[(row["image_id"] - 50) % 4]
        row["bbox"] = [w * (5 - 1) / 16, h * (7 - 1) / 16, w / 8, h / 8]  # about a place of the grid
    (tmp_path / "instances_train.json").write_text(json.dumps(stored))
    fixed, other = open_boxes(tmp_path).train, open_boxes(data).train
    for images, least, most in ((fixed, 0.99, 1.0), (other, 0.0, 0.5)):
        constant = constant_boxes(images)
        seen = [placed(constant, (int(h), int(w))) for h, w in images.sizes]
        ap50 = coco_ap(seen, [images.truth(i) for i in range(len(images))], images.classes)["ap50"]
        assert least <= ap50 <= most


def test_the_size_follows_from_the_objects(data: Path) -> None:
    images = open_boxes(data).train
    assert boxes.natural_size(images) == 96  # the least: the pictures have no more pixels
    images.boxes[:, 2:] = images.boxes[:, :2] + 0.03 * images.sizes.max()
    images.sizes[:] *= 10
    images.boxes[:] *= 10
    assert boxes.natural_size(images) in (256, 640)


# -- recipes --


def situation(**other: Any) -> BoxSituation:
    return BoxSituation(96, 100, ("a", "b"), (0.5,) * 3, (0.2,) * 3, **other)


def test_defaults_follow_from_the_objects() -> None:
    assert fcos(situation(small=20.0)).settings["stride"].value == 8
    assert fcos(situation(small=7.0)).settings["stride"].value == 4
    assert detr(situation(most=40)).settings["queries"].value == 80
    assert fcos(situation(), width=24).settings["groups"].value == 8
    with pytest.raises(SensoriumError, match="--stride 5"):
        fcos(situation(), stride=5)
    with pytest.raises(SensoriumError, match="divide the width"):
        fcos(situation(), groups=7)
    with pytest.raises(SensoriumError, match="divide the width"):
        detr(situation(), heads=3)


@pytest.mark.parametrize("recipe", [fcos, detr])
def test_a_published_backbone_is_kept_still_and_learns_slowly(recipe: Any, tmp_path: Path) -> None:
    from sensorium.networks.resnet import resnet
    from sensorium.published import export

    export(resnet("micro", 96), "safetensors", tmp_path, image_size=96)
    made = recipe(situation(), backbone=str(tmp_path), backbone_lr=None if recipe is fcos else 0.1)
    norms = [m for m in made.method.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    scales = {group["lr_scale"]: group for group in made.optimizers(made.method).param_groups}
    assert set(scales) == {0.1, 1.0}
    body = getattr(made.method.backbone, "body", made.method.backbone)
    assert any(p is next(body.parameters()) for p in scales[0.1]["params"])
    assert not any(p is body.conv1.weight for p in scales[1.0]["params"])
    still = recipe(situation(), backbone=str(tmp_path), backbone_lr=None if recipe is detr else 0.0)
    body = getattr(still.method.backbone, "body", still.method.backbone)
    assert not any(p.requires_grad for p in body.parameters())
    learnt = [p for group in still.optimizers(still.method).param_groups for p in group["params"]]
    assert learnt
    assert not {id(p) for p in learnt} & {id(p) for p in body.parameters()}
    with pytest.raises(SensoriumError, match="at least 0"):
        recipe(situation(), backbone_lr=-1.0)
    fresh = recipe(situation())
    assert {group["lr_scale"] for group in fresh.optimizers(fresh.method).param_groups} == {1.0}


def test_a_vit_sees_squares(ready: boxes.Prepared) -> None:
    on = BoxSituation(64, 12, ready.train.classes, ready.train.mean, ready.train.std)
    made = fcos(on, backbone="vit-micro", width=16, convs=1)
    rows = np.array([1, 5, 9])  # portraits
    batch = made.views(ready.train.take(rows), Draw.seeded(0, 0, 3))
    assert batch["image"].shape == (3, 3, 64, 64)
    assert torch.isfinite(made.method(batch)["loss"])
    assert len(judged.detections(made.method, ready.train, sight_of(made.method, ready.train), device="cpu")[0]) == 12


def test_what_cannot_be_learnt_is_counted() -> None:
    torch.manual_seed(0)
    finder: FCOS = fcos(situation(), stride=8, width=16, convs=1, points="paper").method.eval()
    # A large box, one inside a stride but beside its middle, and one that a smaller one of the same center hides.
    lost = torch.tensor([[10.0, 10, 60, 60], [80.5, 80.5, 83, 83], [10.0, 60, 30, 90]])
    batch = {"image": torch.zeros(1, 3, 96, 96), "boxes": [lost], "labels": [torch.zeros(3, dtype=torch.long)]}
    assert finder.unlearnable(batch) == 1
    few = detr(situation(), queries=2, width=16, heads=2).method
    assert few.unlearnable(batch) == 1


def test_gradients_are_clipped() -> None:
    torch.manual_seed(0)
    for clip, most in ((0.1, 0.1), (0.0, float("inf"))):
        method = detr(situation(), width=16, heads=2, clip=clip).method
        batch = {
            "image": torch.randn(2, 3, 96, 96),
            "boxes": [torch.tensor([[5.0, 5, 50, 60]])] * 2,
            "labels": [torch.tensor([1])] * 2,
        }
        method(batch)["loss"].backward()
        method.before_update(Progress(0, 0, 0.0))
        norm = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm()
        assert norm <= most * 1.001
        assert clip or norm > 0.2


# -- runs --


def test_from_the_command_to_scores(data: Path, tmp_path: Path, command: Command) -> None:
    words = ["--data", str(data), "--budget", "3steps", "--image-size", "64", "--batch-size", "4", "--width", "16"]
    code, out, err = command("train", "fcos", *words, "--convs", "1", "--out", str(tmp_path / "fcos"), "--judge")
    assert code == 0, err
    assert "12 training pictures with 24 boxes of 2 classes, 11 test pictures" in err
    assert "same boxes everywhere" in out
    stored = json.loads((tmp_path / "fcos" / "evaluation.json").read_text())
    assert stored["version"] == VERSION
    found = stored["details"]["detection"]
    assert found["detection"]["boxes"] == 22
    assert [one["class"] for one in found["detection"]["classes"]] == ["red", "green"]
    assert all((tmp_path / picture["file"]).is_file() for picture in found["pictures"])
    assert "ap50" in (tmp_path / "fcos" / "online.csv").read_text().splitlines()[0]
    scores = read_judgement(tmp_path / "fcos").scores  # type: ignore[union-attr]
    assert scores[0].outcomes is not None
    assert scores[0].outcomes.shape == (11,)  # AP of each picture alone
    assert [score.name for score in scores[:2]] == ["AP", "AP50"]
    assert "22 boxes in 11 test pictures" in lines(scores)
    before = (tmp_path / "fcos" / "evaluation.json").read_text()
    assert command("evaluate", str(tmp_path / "fcos"))[0] == 0
    assert (tmp_path / "fcos" / "evaluation.json").read_text() == before
    # A run is its folder: the network comes back, and its backbone can be started from.
    assert isinstance(Run(tmp_path / "fcos").method, FCOS)
    assert (tmp_path / "fcos" / "backbone" / "config.json").is_file()


def test_scenes_and_detr(tmp_path: Path) -> None:
    run = train(
        "detr", "scenes:64", budget="2steps", out=tmp_path / "detr", limit=12, image_size=48, progress=False,
        batch_size=4, width=16, heads=2, queries=5,
    )  # fmt: skip
    found = run.judge(progress=False)
    assert found.details["detection"]["detection"]["images"] == 12
    assert found.pictures
    assert boxes.describe(run.data())["layout"] == "scenes"


def test_other_classes_are_refused(data: Path, tmp_path: Path, ready: boxes.Prepared) -> None:
    run = train("fcos", str(data), budget="1steps", out=tmp_path / "run", progress=False, **SMALL)
    stored = json.loads((data / "instances_train.json").read_text())
    stored["categories"][0]["name"] = "blue"
    other = tmp_path / "other"
    coco(other, "train", 10)
    (other / "instances_train.json").write_text(json.dumps(stored))
    ready = boxes.prepare(Source(str(other), None, tmp_path / "cache", image_size=64))
    with pytest.raises(SensoriumError, match="blue, green"):
        run.judge(ready, progress=False)


# -- the check before a long training --


def test_eight_pictures_are_learnt_by_heart_and_nothing_else_changes(ready: boxes.Prepared) -> None:
    torch.manual_seed(3)
    made = fcos(boxes.situate(ready), width=16, convs=1, lr=3e-3)
    before = {name: x.clone() for name, x in made.method.state_dict().items()}
    state = torch.random.get_rng_state()
    part = box_check.eight(ready.train)
    assert len(part) == 8
    found = box_check.by_heart(made, part, seconds=60, steps=25)
    assert found["learnt"]
    assert found["steps"] == 25
    assert found["loss"][1] < 0.8 * found["loss"][0]
    assert (found["boxes"], found["unlearnable"], box_check.verdict(found, 64)) == (16, 0, "")
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], x) for name, x in made.method.state_dict().items())


def test_it_says_what_is_wrong(ready: boxes.Prepared) -> None:
    part = box_check.eight(ready.train)
    made = fcos(boxes.situate(ready), width=16, convs=1, lr=1e-12)
    found = box_check.by_heart(made, part, seconds=60, steps=4)
    assert "could not overfit eight pictures" in box_check.verdict(found, 64)
    assert "64 px: too small" in box_check.verdict(found | {"unlearnable": 9}, 64)
    assert "--lr" in box_check.verdict(found | {"loss": [1.0, float("nan")]}, 64)


def test_only_long_trainings_are_checked(
    ready: boxes.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(box_check, "SECONDS", 0.5)
    made = fcos(boxes.situate(ready), width=16, convs=1)
    for budget in ("200s", "50steps"):
        box_check.check(made, ready, budget, tmp_path)
    box_check.check(fcos(boxes.situate(ready), width=16, convs=1, check=False), ready, "10m", tmp_path)
    assert list(tmp_path.iterdir()) == []
    box_check.check(made, ready, "10m", tmp_path, progress=True)
    assert json.loads((tmp_path / "check.json").read_text())["pictures"] == 8
    assert Image.open(tmp_path / "pictures" / "check.png").width > 400
    assert "check: overfit 8 pictures" in capsys.readouterr().err
