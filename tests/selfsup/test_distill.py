"""Distillation: what the loss is zero and invariant for, whom it takes for a teacher, and that a student needs none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sensorium
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.judge.encode import normalised
from sensorium.method import Progress
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.resnet import ResNet
from sensorium.networks.siglip import SigLIPVision
from sensorium.networks.vit import ViT
from sensorium.published import export
from sensorium.recipe.trained import Trained, make_recipe
from sensorium.runs.compare import compare
from sensorium.runs.run import Run
from sensorium.selfsup.distill.method import Distill
from sensorium.selfsup.distill.teacher import FrozenTeacher
from sensorium.training.step import Step

THEIRS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ON = Situation(16, 100, (), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1))
FEW: dict[str, Any] = {
    "data": "digits",
    "limit": 64,
    "batch_size": 8,
    "budget": "2steps",
    "progress": False,
    "threads": 1,
}


class Fixed:
    """A teacher that gives the features of a network, or of pictures themselves."""

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(images)

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.features_and_map(images)


def network(width: int = 6) -> ResNet:
    return ResNet((1, 1), width, stem="small")


# --- the loss ---


@pytest.mark.parametrize("spatial", [0.0, 1.0])
def test_a_student_that_is_its_teacher_has_no_loss(spatial: float) -> None:
    """Heads that standardize, on the teacher's own network."""
    torch.manual_seed(0)
    same, x = network().eval(), torch.randn(32, 3, 8, 8)
    method = Distill(same, nn.BatchNorm1d(12, affine=False), Fixed(same), 12, spatial=spatial).train()
    same.eval()
    if spatial:
        found = same.maps(x)[-1]
        deviation = (found.var((0, 2, 3), correction=0) + 1e-5).sqrt()
        method.map_head.weight.data.copy_(torch.diag(1 / deviation)[:, :, None, None])
        method.map_head.bias.data.copy_(-found.mean((0, 2, 3)) / deviation)
    out = method({"image": x})
    assert abs(out["loss"].item()) <= 1e-5
    assert out["cosine"].item() == pytest.approx(1, abs=1e-5)
    assert out["found"] == 1


def test_scale_and_shift_of_the_teachers_channels_change_nothing() -> None:
    torch.manual_seed(0)
    student, teacher, x = network(), network(), torch.randn(32, 3, 8, 8)
    scale, shift = torch.rand(12) * 30 + 1, 5 * torch.randn(12)

    class Scaled(Fixed):
        def features(self, images: Tensor) -> Tensor:
            return super().features(images) * scale + shift

    head = nn.Linear(12, 12)
    losses = [Distill(student, head, t, 12).train()({"image": x})["loss"] for t in (Fixed(teacher), Scaled(teacher))]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=2e-4)  # but for epsilon in the variance


def test_the_length_of_a_prediction_changes_nothing_and_its_order_does() -> None:
    torch.manual_seed(0)
    student, teacher, x = network(), Fixed(network()), torch.randn(16, 3, 8, 8)
    method = Distill(student, nn.Linear(12, 12, bias=False), teacher, 12).eval()
    first = method({"image": x})["loss"]
    method.head.weight.data *= 7
    assert torch.allclose(method({"image": x})["loss"], first, atol=1e-6)
    method.head.weight.data *= -1
    assert torch.allclose(method({"image": x})["loss"], 2 - first, atol=1e-6)


def test_the_teacher_is_no_part_of_the_method() -> None:
    teacher = Fixed(network(9))
    method = Distill(network(), nn.Linear(12, 18), teacher, 18, spatial=1.0)
    assert not any(name.startswith("teacher") for name in method.state_dict())
    assert sum(p.numel() for p in method.parameters()) < sum(p.numel() for p in teacher.network.parameters())
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    step = Step(method.train(), lambda m: torch.optim.SGD(m.parameters(), 0.1), lambda f: 1.0)
    step([{"image": torch.randn(8, 3, 8, 8)}], Progress(0, 0, 0.0))
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert all(p.grad is None for p in teacher.network.parameters())


def test_a_student_learns_its_teachers_features() -> None:
    torch.manual_seed(0)
    teacher, images = Fixed(network(9)), torch.randn(64, 3, 8, 8)
    method = Distill(network(), nn.Linear(12, 18), teacher, 18, spatial=0.5).train()
    step = Step(method, lambda m: torch.optim.AdamW(m.parameters(), 5e-3), lambda f: 1.0)
    logs = [step([{"image": images}], Progress(k, 0, k / 60)) for k in range(60)]
    assert logs[-1]["cosine"] > logs[0]["cosine"] + 0.4
    assert logs[-1]["map_cosine"] > logs[0]["map_cosine"] + 0.2
    assert logs[-1]["found"] > 0.8


def test_what_is_not_built() -> None:
    with pytest.raises(TypeError, match="Distill needs a backbone with Encoder; Linear is none"):
        Distill(nn.Linear(3, 3), nn.Identity(), Fixed(network()), 12)
    with pytest.raises(ValueError, match="spatial -1"):
        Distill(network(), nn.Identity(), Fixed(network()), 12, spatial=-1)


@pytest.mark.parametrize(
    "build",
    [
        network,
        lambda: ViT(12, 4, 24, 2, 2),
        lambda: ViT(12, 4, 24, 2, 2, registers=2, positions="rope"),
        lambda: ViT(12, 4, 24, 2, 2, pool="mean", registers=2),
        lambda: ViT(12, 4, 24, 2, 2, pool="fc_norm"),
        lambda: CLIPVision(12, 4, 24, 2, 2),
        lambda: SigLIPVision(12, 4, 24, 2, 2),
    ],
)
def test_features_and_map_in_one_pass_are_those_of_two(build: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    one, x = build().eval(), torch.randn(3, 3, 12, 12)
    features, found = one.features_and_map(x)
    assert (features - one.features(x)).abs().max() <= 1e-5
    assert torch.equal(found, one.maps(x)[-1])


# --- the teacher ---


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = ViT(16, 4, 24, 2, 2)
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return export(made, "hf", tmp_path_factory.mktemp("hf") / "vit", mean=THEIRS[0], std=THEIRS[1], image_size=16)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier."""
    return sensorium.train("supervised", **FEW, out=tmp_path_factory.mktemp("runs") / "master").folder


def test_a_published_teacher_sees_pictures_as_it_knows_them(published: Path) -> None:
    pixels = torch.randint(0, 256, (4, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    teacher = FrozenTeacher(str(published), ON)
    direct = F.interpolate(normalised(pixels, *THEIRS), (16, 16), mode="bilinear", antialias=True)
    found, found_map = teacher.features_and_map(normalised(pixels, ON.mean, ON.std))
    own: Any = sensorium.load(published)
    assert (found - own.features(direct)).abs().max() <= 1e-5
    assert (found_map - own.maps(direct)[-1]).abs().max() <= 1e-5
    assert (teacher.features(normalised(pixels, ON.mean, ON.std)) - found).abs().max() <= 1e-5
    assert FrozenTeacher(str(published), ON, side=8).seen.side == 8


def test_a_runs_teacher_sees_pictures_with_the_statistics_of_its_run(master: Path) -> None:
    run = Trained(master)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    on = Situation(8, 100, (), ON.mean, ON.std)
    teacher = FrozenTeacher(str(master), on)
    want = run.method.features(normalised(pixels, run.situation.mean, run.situation.std))  # type: ignore[operator]
    assert (teacher.features(normalised(pixels, ON.mean, ON.std)) - want).abs().max() <= 1e-4
    assert not teacher.features(normalised(pixels, ON.mean, ON.std)).requires_grad


def test_it_follows_the_pictures_in_device_and_precision(master: Path) -> None:
    teacher = FrozenTeacher(str(master), Situation(8, 100, (), ON.mean, ON.std))
    assert teacher.features(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert teacher.features(torch.randn(2, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("role", ["run", "checkpoint"])
def test_a_student_is_used_without_its_teacher(role: str, master: Path, published: Path, tmp_path: Path) -> None:
    source = tmp_path / "teacher"
    shutil.copytree(master if role == "run" else published, source)
    asked = FEW | {"teacher": str(source), "out": tmp_path / "student"}
    run = sensorium.train("distill", **asked)
    info = json.loads((run.folder / "run.json").read_text())
    recorded = info["inputs"]["teacher"]
    assert recorded["folder"] == str(source)
    assert recorded["recipe"] == ("supervised" if role == "run" else "")
    assert len(recorded["digest"]) == 16
    assert info["settings"]["teacher_width"]["value"] == (256 if role == "run" else 24)
    weights = load_file(run.folder / "model.safetensors")
    assert not any("teacher" in name for name in weights)
    pictures = torch.randn(2, 3, 8, 8)
    want = run.method.features(pictures)
    shutil.rmtree(source)
    again = Run(run.folder)
    assert torch.equal(again.method.features(pictures), want)
    assert again.method.dim == 256
    assert torch.equal(again.backbone.features(pictures), want)
    assert sensorium.load(sensorium.export(run.folder, "safetensors", tmp_path / "net")) is not None
    started = sensorium.train("supervised", **FEW, start=str(run.folder), out=tmp_path / "tuned")
    assert started.finished
    missing = r"teacher/model\.safetensors is missing" if role == "run" else r"neither a run nor a checkpoint"
    with pytest.raises(SensoriumError, match=missing):  # only to learn on
        again.method({"image": pictures})


def test_a_checkpoint_that_changed_is_another_input(published: Path, tmp_path: Path) -> None:
    source = tmp_path / "net"
    shutil.copytree(published, source)
    asked = FEW | {"teacher": str(source), "out": tmp_path / "student"}
    sensorium.train("distill", **asked)
    assert sensorium.train("distill", **asked).finished  # the same: nothing is done
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if name.endswith("layernorm.weight"))
    save_file({**weights, name: weights[name] + 1}, source / "model.safetensors")
    with pytest.raises(SensoriumError, match=r"other settings: input\.teacher was"):
        sensorium.train("distill", **asked)


def test_a_comparison_has_a_student_as_a_row(published: Path, tmp_path: Path) -> None:
    found = compare(
        [f"distill,teacher={published}", "simclr"], "digits", limit=100, budget="2steps", out=tmp_path / "out",
        labels="100%", label_seeds=1, finetune=False, progress=False, threads=1,
    )  # fmt: skip
    assert [(run.name, run.status, run.by_labels) for run in found.runs] == [
        ("distill,teacher=vit", "finished", False),
        ("simclr", "finished", False),
    ]
    assert {score.name for score in found.runs[0].scores} == {score.name for score in found.runs[1].scores}
    assert "teacher" in (found.runs[0].caveat or "")


def test_maps_are_compared_where_both_networks_have_them(master: Path, published: Path) -> None:
    on = Situation(8, 100, (), ON.mean, ON.std)
    spatial = {}
    for how, given in (("auto", {}), ("off", {"spatial": 0.0}), ("half", {"spatial": 0.5})):
        recipe = make_recipe("distill", on, {"teacher": str(master)} | given)
        spatial[how] = (recipe.settings["spatial"].value, recipe.method.spatial)
    assert spatial == {"auto": (1.0, 1.0), "off": (0.0, 0.0), "half": (0.5, 0.5)}


@pytest.fixture(scope="module")
def others(master: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is no teacher."""
    folder = tmp_path_factory.mktemp("others")
    sensorium.train("made", **FEW, hidden=20, out=folder / "made")
    sensorium.train("simclr", **FEW, image_size=16, out=folder / "larger")
    shutil.copytree(master, folder / "unfinished")
    (folder / "unfinished" / "model.safetensors").unlink()
    (folder / "empty").mkdir()
    (folder / "text.safetensors").write_text("no weights")
    torch.manual_seed(0)
    gray = {name: value.contiguous() for name, value in network().state_dict().items()}
    save_file({**gray, "conv1.weight": gray["conv1.weight"][:, :1].contiguous()}, folder / "gray.safetensors")
    return folder


@pytest.mark.parametrize(
    "teacher, said",
    [
        ("nowhere", r"--teacher .*nowhere: there is neither a run nor a checkpoint\. Give the folder"),
        ("made", r"--teacher .*made: it gives no features of pictures"),
        ("larger", r"--teacher .*larger: trained at 16 px; give --image-size 16\."),
        ("unfinished", r"unfinished.*model\.safetensors is missing: the run has not finished"),
        ("empty", r"empty' has no model\.safetensors"),
        ("text.safetensors", r"text\.safetensors: not a readable safetensors file"),
        ("gray.safetensors", r"gray\.safetensors: .*conv1\.weight"),
    ],
)
def test_what_is_no_teacher_is_said(teacher: str, said: str, others: Path, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=said) as caught:
        sensorium.train("distill", **FEW, teacher=str(others / teacher), out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "run.json").exists()


def test_no_teacher_at_all(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"distill needs --teacher; in a comparison: distill,teacher=\.\.\."):
        sensorium.train("distill", **FEW, out=tmp_path / "out")
    with pytest.raises(SensoriumError, match="distill needs --teacher"):
        compare(["distill"], "digits", limit=64, budget="1steps", out=tmp_path / "two", progress=False)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_is_not_its_own_teacher(fresh: bool, master: Path, tmp_path: Path) -> None:
    """Nor is a network inside its folder; --fresh deletes nothing then."""
    out = tmp_path / "out"
    shutil.copytree(master, out)
    for teacher in (out, out / "backbone"):
        with pytest.raises(SensoriumError, match=r"--teacher .*: it is in '.*out', the folder of the run to train"):
            sensorium.train("distill", **FEW, teacher=str(teacher), out=out, fresh=fresh)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"spatial": -1.0}, "--spatial -1: must not be negative"),
        ({"teacher_side": 4}, "--teacher-side 4: must be at least 8"),
        ({"teacher_width": 5}, "it has 256 features, not 5"),
        ({"backbone": "resnet-81"}, "Did you mean resnet-18"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], said: str, master: Path, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=said):
        sensorium.train("distill", **FEW, **given, teacher=str(master), out=tmp_path / "out")


def test_a_side_that_its_patches_do_not_divide(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"--teacher .*: .* Give another --teacher-side\."):
        sensorium.train("distill", **FEW, teacher=str(published), teacher_side=10, out=tmp_path / "out")


def test_what_trained_nothing_is_given_as_its_checkpoint(published: Path, tmp_path: Path) -> None:
    sensorium.train(
        "frozen", data="digits", limit=64, backbone=str(published), out=tmp_path / "as-it-is", progress=False
    )
    with pytest.raises(SensoriumError, match="a run that trained nothing; give the checkpoint"):
        sensorium.train("distill", **FEW, teacher=str(tmp_path / "as-it-is"), out=tmp_path / "out")
