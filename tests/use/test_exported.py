"""An exported classifier has its head: other libraries give the run's own logits, know its classes, and score it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sensorium.abilities import Classifier, Encoder, HasBackbone
from sensorium.base.reading import read_object
from sensorium.catalogue import FORMATS
from sensorium.data.images.decode import square
from sensorium.errors import SensoriumError
from sensorium.judge.encode import normalised
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import export as export_network
from sensorium.published import exportable, load
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.selfsup.supervised.method import Supervised
from sensorium.use import export, exported
from sensorium.use.predict import predict

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
PACKAGES = {to: package or "safetensors" for to, package in exported.NEEDS.items()}
SETTINGS = {
    "vit": {"backbone": "vit-micro"},
    "resnet": {"backbone": "resnet-18", "image_size": 66, "batch_size": 8},
    "small": {"backbone": "resnet-micro"},
    "half": {"backbone": "resnet-micro", "image_size": 33},  # the default of small pictures on a CPU
    "airbench": {"backbone": "airbench-micro", "image_size": 19},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two steps each: a ViT, a ResNet with the usual stem, and those with stems for small pictures. One has been judged."""
    home = tmp_path_factory.mktemp("runs")
    how: dict[str, Any] = {"data": "digits", "limit": 64, "budget": "2steps", "progress": False, "threads": 1}
    made = {name: train("supervised", out=home / name, **how, **given) for name, given in SETTINGS.items()}
    made["vit"].judge(labels="100%", label_seeds=1, finetune=False, progress=False)
    return made


@pytest.fixture(scope="module")
def written(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Each export once, by its run and format."""
    made, home = {}, tmp_path_factory.mktemp("exports")

    def path(name: str, to: str) -> Path:
        for package in (PACKAGES[to], *(("onnx", "onnxscript") if to == "onnx" else ())):
            pytest.importorskip(package)
        if (name, to) not in made:
            made[name, to] = export(runs[name], to, home / f"{name}-{to}")
        return made[name, to]

    return path


def logits(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Of the run itself; images in 0..255."""
    method: Any = run.method
    return method.logits(normalised(images, run.situation.mean, run.situation.std))


CANNOT = {"vit": {"torchvision"}, "airbench": {"torchvision", "timm"}}
CAN = [(name, to) for name in SETTINGS for to in FORMATS if to not in CANNOT.get(name, ())]


@pytest.mark.parametrize("name, to", CAN)
def test_the_other_library_gives_the_runs_logits(name: str, to: str, runs: dict[str, Run], written) -> None:
    run, side = runs[name], runs[name].situation.image_size
    theirs = exported.opened(to, written(name, to))
    for count in (1, 3, 6):
        images = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(count))
        images = images.to(torch.uint8)
        with torch.inference_mode():
            own = logits(run, images)
            found = theirs(images)
        assert found.shape == (count, 10)
        assert (found - own).abs().max() <= 1e-5


def test_what_is_exported_is_what_is_offered(runs: dict[str, Run]) -> None:
    able = {name: set(exportable(run.method, "supervised")) for name, run in runs.items()}
    assert able == {name: set(FORMATS) - CANNOT.get(name, set()) for name in SETTINGS}


@pytest.mark.parametrize("build, to, why", [
    (lambda: ViT(8, 4, 16, 1, 2), "torchvision", "no format 'torchvision'"),
    (lambda: ResNet((1, 1), 64, stem="patch"), "hf", "pads no pictures, as this network's 'patch' stem does"),
    (lambda: ResNet((1, 1), 64, stem="patch"), "timm", "timm's ResNet has no 'patch' stem"),
    (lambda: ResNet((1, 1), 8), "torchvision", "torchvision's ResNet has 64 channels in its stem, this network 8"),
])  # fmt: skip
def test_what_a_library_cannot_hold_is_refused(build: Callable[[], Any], to: str, why: str, tmp_path) -> None:
    with pytest.raises(SensoriumError) as refused:
        export_network(Supervised(build(), 3), to, tmp_path / "x")
    assert why in str(refused.value)
    assert "Use --to safetensors or onnx" in str(refused.value)
    assert not (tmp_path / "x").exists()


NETWORKS = {
    "registers": (lambda: ViT(8, 4, 16, 1, 2, registers=2), {"timm"}),
    "mean pooling": (lambda: ViT(8, 4, 16, 1, 2, pool="mean"), {"timm"}),
    "other parts": (lambda: ViT(8, 4, 16, 1, 2, parts=("gau",)), set()),
    "DINOv2's parts": (lambda: ViT(8, 4, 16, 1, 2, parts=("swiglu", "layerscale")), {"timm"}),
    "narrow": (lambda: ResNet((1, 1, 1, 1), 8, stem_width=64), {"hf", "timm"}),
    "three stages": (lambda: ResNet((1, 1, 1), 64), {"hf", "timm", "torchvision"}),
    "one stage": (lambda: ResNet((1,), 64, stem="half"), {"hf", "timm", "torchvision"}),
    "narrow, small stem": (lambda: ResNet((1, 2), (8, 24), stem="small", stem_width=64), {"hf", "timm"}),
    "deep, half stem": (lambda: ResNet((1, 1, 1, 1), 64, bottleneck=True, stem="half"), {"hf", "timm", "torchvision"}),
    "bottlenecks": (lambda: ResNet((1, 1, 1, 1), 64, bottleneck=True), {"hf", "timm", "torchvision"}),
    "early strides": (lambda: ResNet((1, 1, 1, 1), 64, bottleneck=True, early_stride=True), {"hf"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_shapes_are_equal_or_refused(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, able = NETWORKS[name]
    method = Supervised(build(), 3).eval()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    side = 8 if isinstance(method.backbone, ViT) else 41
    images = torch.randint(0, 256, (2, 3, side, side)).to(torch.uint8)
    for to in ("safetensors", "hf", "timm", "torchvision"):
        pytest.importorskip(PACKAGES[to])
        how: dict[str, Any] = {"mean": mean, "std": std, "image_size": side, "classes": ("a", "b", "ü")}
        if to not in able | {"safetensors"}:
            with pytest.raises(SensoriumError, match="Use --to safetensors"):
                export_network(method, to, tmp_path / to, **how)
            assert to not in exportable(method)
            continue
        path = export_network(method, to, tmp_path / to, **how)
        with torch.inference_mode():
            own = method.logits(normalised(images, mean, std))
            assert (exported.opened(to, path)(images) - own).abs().max() <= 1e-5, to


def test_class_names_and_preparation_of_hugging_face(runs: dict[str, Run], written) -> None:
    from transformers import pipeline

    classes, path = runs["vit"].situation.classes, written("vit", "hf")
    look: Any = pipeline("image-classification", model=str(path), device="cpu")
    assert look.model.config.id2label == dict(enumerate(classes))
    assert look.model.config.label2id == {name: k for k, name in enumerate(classes)}
    (first, *_) = look(Image.new("RGB", (13, 9), (200, 10, 30)))
    assert first["label"] in classes
    side, mean, std = 8, runs["vit"].situation.mean, runs["vit"].situation.std
    rng = np.random.default_rng(0)
    for width, height in ((8, 8), (24, 16), (16, 40), (31, 33)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).resize((width * 3, height * 3))
        theirs = torch.as_tensor(np.asarray(look.image_processor(picture)["pixel_values"][0]))
        levels = (theirs * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
        ours = torch.from_numpy(square(picture, side)).float()
        assert levels.shape == ours.shape
        # theirs resizes to whole pixels and cuts at whole pixels: up to half a pixel beside ours
        beyond = side * max(width, height) / min(width, height) - side
        assert (levels - ours).abs().max() <= (1.01 if beyond % 2 == 0 else 25), (width, height)


def test_class_names_and_preparation_of_timm(runs: dict[str, Run], written) -> None:
    timm = pytest.importorskip("timm")
    run = runs["resnet"]
    model = timm.create_model(f"local-dir:{written('resnet', 'timm')}", pretrained=True)
    about = timm.data.resolve_model_data_config(model)
    assert (model.num_classes, model.pretrained_cfg["label_names"]) == (10, list(run.situation.classes))
    assert (about["mean"], about["std"]) == (list(run.situation.mean), list(run.situation.std))
    assert (tuple(about["input_size"]), about["crop_pct"], about["interpolation"]) == ((3, 66, 66), 1.0, "bilinear")


def test_classes_and_probabilities_of_onnx(runs: dict[str, Run], written) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, temperature = runs["vit"], exported_temperature(runs["vit"])
    session = onnxruntime.InferenceSession(str(written("vit", "onnx")))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(run.situation.classes)
    assert (about["image_size"], float(about["temperature"])) == ("8", temperature)
    images = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    logits, probabilities = session.run(None, {"images": images})
    expected = (torch.from_numpy(logits) / temperature).softmax(dim=1)
    assert temperature != 1
    assert np.abs(probabilities - expected.numpy()).max() <= 1e-6


def exported_temperature(run: Run) -> float:
    from sensorium.judge.classes import temperature_of

    found = temperature_of(run.folder)
    assert found is not None
    return found


@pytest.mark.parametrize("name, to", [("resnet", "torchvision"), ("half", "torchvision"), ("half", "timm")])
def test_the_script_beside_the_weights_predicts_as_the_run(
    name: str, to: str, runs: dict[str, Run], written, tmp_path
) -> None:
    """As a stranger runs it: alone, on pictures of many kinds."""
    path, run = written(name, to), runs[name]
    script = (path / "model.py") if path.is_dir() else path.with_suffix(".py")
    about = read_object(script.with_suffix(".json"))
    assert (about["classes"], about["mean"]) == (list(run.situation.classes), list(run.situation.mean))
    rng, files = np.random.default_rng(0), []
    for k, (width, height, mode) in enumerate([(33, 33, "RGB"), (90, 41, "RGBA"), (20, 77, "L"), (500, 333, "RGB")]):
        files.append(tmp_path / f"{k}.png")
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
        noise.convert(mode).save(files[-1])
    turned = Image.fromarray(rng.integers(0, 256, (50, 80, 3), np.uint8))
    turned.getexif()[274] = 6
    files.append(tmp_path / "turned.jpg")
    turned.save(files[-1], exif=turned.getexif())
    done = subprocess.run(
        [sys.executable, str(script), *map(str, files)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    ours = predict(run, [str(file) for file in files])
    assert [one["class"] for one in theirs] == [one.classes[0] for one in ours]
    for their, our in zip(theirs, ours, strict=True):
        assert abs(their["probability"] - our.probabilities[0]) <= 1e-3, their


@pytest.mark.parametrize("name", ["half", "airbench"])
def test_a_network_for_small_pictures_opens_in_hugging_faces_pipeline(name: str, runs: dict[str, Run], written) -> None:
    from transformers import AutoModel, pipeline

    path, run = str(written(name, "hf")), runs[name]
    side = run.situation.image_size
    look: Any = pipeline("image-classification", model=path, device="cpu", trust_remote_code=True)
    assert look.model.config.id2label == dict(enumerate(run.situation.classes))
    assert look(Image.new("RGB", (side, side), (200, 10, 30)))[0]["label"] in run.situation.classes
    with pytest.raises(ValueError, match="trust_remote_code"):  # and no other network instead
        AutoModel.from_pretrained(path, trust_remote_code=False)
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        pooled = AutoModel.from_pretrained(path, trust_remote_code=True).eval()(images).pooler_output.flatten(1)
        assert torch.allclose(pooled, run.method.backbone.features(images), atol=1e-5, rtol=1e-5)
        assert torch.equal(load(path).features(images), run.method.backbone.features(images))


def test_what_was_exported_is_the_same_network_again(runs: dict[str, Run], written, tmp_path: Path) -> None:
    run = runs["half"]
    images = torch.randn(2, 3, 33, 33)
    for to in ("timm", "torchvision"):
        again = load(written("half", to))
        assert again.normalization == (tuple(run.situation.mean), tuple(run.situation.std))
        with torch.inference_mode():
            assert torch.equal(again.features(images), run.method.backbone.features(images)), to
    weights = shutil.copy(written("half", "torchvision"), tmp_path / "w.pth")
    (tmp_path / "w.json").write_text("[]")  # what tells its stem is gone
    with pytest.raises(SensoriumError, match=r"w\.json"):
        load(weights)
    weights = shutil.copy(written("resnet", "torchvision"), tmp_path / "w.pth")
    assert load(weights).stem == "imagenet"  # a file of something else


def test_our_own_file_is_a_classifier_again(runs: dict[str, Run], written, tmp_path: Path) -> None:
    folder, run = written("vit", "safetensors"), runs["vit"]
    again: Any = load(folder)
    assert isinstance(again, Supervised)
    assert again.class_names == run.situation.classes
    assert again.normalization == (tuple(run.situation.mean), tuple(run.situation.std))
    started = train(
        "supervised", data="digits", limit=64, budget="1steps", backbone=str(folder), out=tmp_path / "next",
        progress=False, threads=1,
    )  # fmt: skip
    assert isinstance(started.backbone, ViT)
    config = json.loads((folder / "config.json").read_text())
    for names, why in ((["a"], "class_names says 1, the weights have 10"), ("abc", "should be a list of texts")):
        broken = tmp_path / "broken"
        export_network(again, "safetensors", broken)
        (broken / "config.json").write_text(json.dumps(config | {"class_names": names}))
        with pytest.raises(SensoriumError, match=why):
            load(broken)


class Doubled(nn.Module, HasBackbone, Encoder, Classifier):
    """A classifier of somebody's own, whose head no format knows."""

    classes, dim = 2, 16

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ViT(8, 4, 16, 1, 2)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone.features(images)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * self.features(images)[:, :2]


def test_a_head_that_no_format_knows_is_not_dropped(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    assert exportable(Doubled()) == ("onnx",)
    with pytest.raises(SensoriumError, match=r"Doubled on ViT has no format 'hf'. Use --to onnx"):
        export_network(Doubled(), "hf", tmp_path / "x")


# --- scored again ---


@pytest.mark.parametrize("to", ["hf", "timm", "onnx", "safetensors"])
def test_the_command_scores_what_it_wrote(to: str, runs: dict[str, Run], tmp_path: Path, command: Command) -> None:
    pytest.importorskip(PACKAGES[to])
    run = runs["vit"]
    code, out, err = command("export", str(run.folder), "--to", to, "--out", str(tmp_path / to))
    assert code == 0, err
    test = run.data().test
    with torch.inference_mode():  # normalized by the training set's statistics, as predict does
        right = logits(run, torch.tensor(np.array(test.images))).argmax(dim=1).numpy() == test.labels
    said, line = f"{right.mean() * 100:.1f} %", " ".join(out.split())
    assert f"accuracy {said} (run {said}), {len(right)} test images" in line
    assert "not the run's" not in line
    how = next(text for text in out.splitlines() if text.startswith("use it by: ")).removeprefix("use it by: ")
    assert str(tmp_path / to) in how
    if to in ("hf", "timm"):  # as a reader would paste it
        exec(f"import {how.partition('.')[0]}; {how}", {})


@pytest.mark.parametrize(
    "to, how", [("hf", "trust_remote_code=True)"), ("timm", "model.py PICTURE"), ("torchvision", "resnet.py PICTURE")]
)
def test_the_default_network_is_exported_and_scored_elsewhere(
    to: str, how: str, runs: dict[str, Run], tmp_path, command
) -> None:
    pytest.importorskip(PACKAGES[to])
    code, out, err = command("export", str(runs["half"].folder), "--to", to, "--out", str(tmp_path / to))
    assert code == 0, err
    assert how in out
    assert "accuracy" in out
    assert "not the run's" not in out


def test_scoring_can_be_left_out_and_tells_why_it_was(runs: dict[str, Run], tmp_path, command, monkeypatch) -> None:
    code, out, _ = command("export", str(runs["vit"].folder), "--no-score", "--out", str(tmp_path / "x"))
    assert code == 0
    assert "accuracy" not in out
    with monkeypatch.context() as patched:
        patched.setattr(exported, "find_spec", lambda name: None)
        assert exported.score(runs["vit"], "timm", tmp_path) == "not scored: pip install timm"
    assert exported.score(SimpleNamespace(), "timm", tmp_path) == ""
    monkeypatch.setattr(Run, "where", lambda self: (_ for _ in ()).throw(SensoriumError("the run's data are gone.")))
    assert exported.score(runs["vit"], "safetensors", tmp_path) == "not scored: the run's data are gone."


def test_other_predictions_are_counted() -> None:
    labels, mine = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])
    assert exported.told(mine, mine, labels) == "accuracy 75.0 % (run 75.0 %), 4 test images"
    assert exported.told(torch.tensor([0, 1, 0, 1]), mine, labels) == (
        "accuracy 50.0 % (run 75.0 %), 4 test images; 2 predictions are not the run's"
    )
