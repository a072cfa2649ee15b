"""Self-training: what the loss is least for, whom it takes for a teacher, and that a student needs none."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sensorium
from sensorium.abilities import abilities_of
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.selfsup.self_training.method import SelfTraining, distillation_loss
from sensorium.selfsup.self_training.teacher import FrozenClassifier
from sensorium.selfsup.supervised.method import Supervised
from sensorium.training.step import Step

FEW: dict[str, Any] = {
    "data": "digits",
    "limit": 64,
    "batch_size": 8,
    "budget": "2steps",
    "progress": False,
    "threads": 1,
}


class Fixed:
    """A teacher that is a network in evaluation mode."""

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.logits(images)


def classifier(width: int = 6) -> Supervised:
    return Supervised(ResNet((1, 1), width, stem="small"), 5)


def student(teacher: Any, **numbers: Any) -> SelfTraining:
    return SelfTraining(ResNet((1, 1), 6, stem="small"), 5, teacher, **numbers)


def batch(n: int = 16, labeled: int = 4) -> dict[str, torch.Tensor]:
    labels = torch.where(torch.arange(n) < labeled, torch.arange(n) % 5, -1)
    return {"image": torch.randn(n, 3, 8, 8), "label": labels}


# --- the loss ---


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_no_student_is_better_than_one_that_equals_its_teacher(tau: float) -> None:
    torch.manual_seed(0)
    t = torch.randn(9, 5)
    loss, entropy = distillation_loss(t, t, tau)
    assert loss.item() == pytest.approx(entropy.item(), abs=1e-6)
    assert distillation_loss(t + 0.3 * torch.randn(9, 5), t, tau)[0] > loss
    assert distillation_loss(t + torch.randn(9, 1), t, tau)[0].item() == pytest.approx(loss.item(), abs=1e-6)


def test_of_equal_weights_the_divergence_is_zero() -> None:
    torch.manual_seed(0)
    teacher = classifier()
    teacher(batch())  # running statistics that are not those at the start
    model = student(Fixed(teacher))
    model.load_state_dict(teacher.state_dict())
    out = model.eval()(batch())
    assert out["kl"].item() == pytest.approx(0, abs=1e-6)
    assert out["agreement"] == 1


def test_labels_weigh_what_alpha_leaves_them() -> None:
    torch.manual_seed(0)
    teacher, seen = Fixed(classifier()), batch()
    losses = []
    for alpha in (1.0, 0.25):
        torch.manual_seed(1)
        losses.append(student(teacher, alpha=alpha)(seen)["loss"])
    torch.manual_seed(1)
    model = student(teacher)
    supervised = nn.functional.cross_entropy(model.logits(seen["image"])[:4], seen["label"][:4])
    assert losses[1].item() == pytest.approx((0.25 * losses[0] + 0.75 * supervised).item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_pictures_without_any_label_teach(alpha: float) -> None:
    model = student(Fixed(classifier()), alpha=alpha)
    out = model(batch(labeled=0))
    assert out["top1"] == 0
    out["loss"].backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in model.head.parameters())


def test_a_teachers_weights_and_state_stay_as_they_are() -> None:
    teacher = Fixed(classifier(9))
    model = student(teacher)
    assert not any(name.startswith("teacher") for name in model.state_dict())
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    step = Step(model.train(), lambda m: torch.optim.SGD(m.parameters(), 0.1), lambda f: 1.0)
    step([batch()], Progress(0, 0, 0.0))
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())


def test_a_student_learns_its_teachers_classes() -> None:
    torch.manual_seed(0)
    teacher = classifier(9)
    teacher.head.weight.data *= 20
    images = torch.randn(64, 3, 8, 8)
    model = student(Fixed(teacher)).train()
    step = Step(model, lambda m: torch.optim.AdamW(m.parameters(), 5e-3), lambda f: 1.0)
    seen = {"image": images, "label": torch.full((64,), -1)}
    logs = [step([seen], Progress(k, 0, k / 60)) for k in range(60)]
    assert logs[-1]["agreement"] > 0.9
    assert logs[-1]["kl"] < logs[0]["kl"] / 4


def test_autocast_keeps_the_loss_in_float32() -> None:
    torch.manual_seed(0)
    model, seen = student(Fixed(classifier()), alpha=0.5).eval(), batch()
    want = model(seen)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(seen)
    assert {value.dtype for value in out.values()} == {torch.float32}
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.05)


def test_what_is_not_built() -> None:
    with pytest.raises(TypeError, match="Self-training needs a backbone with Encoder; Linear is none"):
        SelfTraining(nn.Linear(3, 3), 5, Fixed(classifier()))
    for numbers, said in (
        ({"alpha": 0.0}, "alpha 0"),
        ({"alpha": 1.5}, "alpha 1.5"),
        ({"temperature": 0.0}, "temperature 0"),
    ):
        with pytest.raises(ValueError, match=said):
            student(Fixed(classifier()), **numbers)
    assert abilities_of(student(Fixed(classifier()))) == ("Encoder", "Classifier")


# --- teachers ---


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sensorium.train("supervised", **FEW, out=tmp_path_factory.mktemp("master") / "run").folder


@pytest.mark.parametrize("backbone", ["resnet-micro", "vit-micro"])
def test_a_run_teaches_what_it_predicts(backbone: str, tmp_path: Path) -> None:
    """Crops of another size, too, which a ViT gets at its own."""
    run = sensorium.train("supervised", **FEW, backbone=backbone, out=tmp_path / "teacher")
    on = run.situation
    teacher = FrozenClassifier(str(run.folder), on)
    x = torch.randn(3, 3, on.image_size, on.image_size)
    torch.testing.assert_close(teacher.logits(x), run.method.logits(x))
    assert not any(p.requires_grad for p in teacher.seen.parameters())
    assert teacher.logits(torch.randn(2, 3, 6, 6)).shape == (2, len(on.classes))
    assert teacher.logits(x.double()).dtype == torch.float64


def test_a_student_is_used_and_exported_without_its_teacher(master: Path, tmp_path: Path) -> None:
    shutil.copytree(master, tmp_path / "teacher")
    run = sensorium.train(
        "self_training", **FEW, teacher=str(tmp_path / "teacher"), backbone="resnet-10", out=tmp_path / "run"
    )
    assert run.info.inputs["teacher"].recipe == "supervised"
    shutil.rmtree(tmp_path / "teacher")
    again = sensorium.Run(tmp_path / "run")
    x = torch.randn(2, 3, 8, 8)
    want = again.method.logits(x)
    assert want.shape == (2, 10)
    written = sensorium.export(again, "safetensors", tmp_path / "exported")
    assert torch.equal(sensorium.load(written).logits(x), want)
    assert sensorium.predict(again, np.zeros((2, 3, 8, 8), np.uint8))[0].classes


def test_a_student_teaches_the_next(master: Path, tmp_path: Path) -> None:
    first = sensorium.train("self_training", **FEW, teacher=str(master), out=tmp_path / "first")
    second = sensorium.train("self_training", **FEW, teacher=str(first.folder), alpha=0.5, out=tmp_path / "second")
    assert second.info.inputs["teacher"].digest == first.digest


def test_interrupted_and_continued_with_another_teacher_is_refused(master: Path, tmp_path: Path) -> None:
    other = sensorium.train("supervised", **FEW, seed=5, out=tmp_path / "other")
    given = FEW | {"out": tmp_path / "run"}
    sensorium.train("self_training", **given, teacher=str(master))
    with pytest.raises(SensoriumError, match="teacher"):
        sensorium.train("self_training", **given, teacher=str(other.folder))


def test_who_is_no_teacher_is_said(master: Path, tmp_path: Path) -> None:
    encoder = sensorium.train("simclr", **FEW, out=tmp_path / "simclr")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "three.npz", images=rng.integers(0, 255, (40, 8, 8, 3), np.uint8), labels=np.arange(40) % 3)
    np.savez(tmp_path / "bare.npz", images=rng.integers(0, 255, (40, 8, 8, 3), np.uint8))
    for teacher, change, said in (
        (encoder.folder, {}, r"--teacher .*simclr: 'simclr' classifies no pictures; give a run of a classifier"),
        (tmp_path / "nothing", {}, "is not a run"),
        (
            master,
            {"data": str(tmp_path / "three.npz")},
            r"--teacher .*: its classes are 0, 1, 2, 3, 4 and 5 more, those of the data 0, 1, 2",
        ),
        (
            master,
            {"data": str(tmp_path / "bare.npz")},
            r"those of the data none\. Pictures without labels stand in a folder 'unlabeled'",
        ),
        (master, {"image_size": 16}, r"trained at 8 px; give --image-size 8"),
    ):
        with pytest.raises(SensoriumError, match=said) as caught:
            sensorium.train("self_training", **FEW | change, teacher=str(teacher), out=tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(SensoriumError, match="self_training: alpha 2 must be above 0 and at most 1"):
        sensorium.train("self_training", **FEW, teacher=str(master), alpha=2.0, out=tmp_path / "out")
    with pytest.raises(SensoriumError, match="self_training needs --teacher"):
        sensorium.train("self_training", **FEW, out=tmp_path / "out")
