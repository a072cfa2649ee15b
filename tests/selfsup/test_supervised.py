"""The supervised baseline: known and unknown labels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import abilities_of
from sensorium.base.draw import Draw
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.parts.drop import DropPath
from sensorium.selfsup.supervised.method import Supervised
from sensorium.selfsup.supervised.recipe import supervised


def method(**numbers):
    torch.manual_seed(0)
    return Supervised(ResNet((1, 1), 8, stem="small"), 5, **numbers).eval()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_the_labelled(smoothing):
    model = method(label_smoothing=smoothing)
    x = torch.randn(6, 3, 8, 8)
    labels = torch.tensor([0, -1, 4, 2, -1, 1])
    out = model({"image": x, "label": labels})
    known = labels >= 0
    logits = model.logits(x)
    want = F.cross_entropy(logits[known], labels[known], label_smoothing=smoothing)
    assert out["loss"].item() == pytest.approx(want.item(), rel=1e-6)
    assert out["top1"].item() == pytest.approx((logits.argmax(1) == labels)[known].float().mean().item())
    everything = model({"image": x, "label": labels.clamp(min=0)})["loss"]
    assert everything.item() == pytest.approx(
        F.cross_entropy(logits, labels.clamp(min=0), label_smoothing=smoothing).item()
    )


def test_right_answers_count():
    model = method()
    x = torch.randn(6, 3, 8, 8)
    labels = model.logits(x).argmax(1)
    labels[0] = -1
    assert model({"image": x, "label": labels})["top1"] == 1
    assert model({"image": x, "label": (labels + 1) % 5})["top1"] < 0.2


def test_nothing_known_is_no_loss_but_still_a_graph():
    model = method().train()
    out = model({"image": torch.randn(4, 3, 8, 8), "label": torch.full((4,), -1)})
    assert out["loss"] == 0
    assert out["top1"] == 0
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_abilities_and_shapes():
    model = method()
    assert abilities_of(model) == ("Encoder", "Classifier")
    x = torch.randn(3, 3, 9, 7)
    assert model.features(x).shape == (3, model.dim)
    assert model.logits(x).shape == (3, model.classes)
    with pytest.raises(TypeError, match="Supervised needs a backbone with Encoder"):
        Supervised(nn.Linear(3, 3), 2)


def test_loss_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        out = method()({"image": torch.randn(4, 3, 8, 8), "label": torch.tensor([0, 1, 2, -1])})
    assert out["loss"].dtype == torch.float32


def test_it_learns_its_labels():
    model = method().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x, labels = torch.randn(15, 3, 8, 8), torch.arange(15) % 5
    for _ in range(20):
        out = model({"image": x, "label": labels})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["top1"] > 0.9


def test_the_regularization_of_fine_tuning_reaches_the_network_and_the_batches():
    on = Situation(
        images=100, image_size=32, classes=("a", "b", "c"), mean=(0.5,) * 3, std=(0.2,) * 3, device="cpu", cores=2
    )
    recipe = supervised(on, backbone="vit-micro", drop_path=0.1, mixup=0.8, cutmix=1.0)
    rates = [part.rate for part in recipe.method.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    fields = {"image": torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), "label": torch.arange(8) % 3}
    batch = recipe.views(fields, Draw.seeded(0, 0, 8))
    assert {"other", "weight"} < set(batch)
    loss = recipe.method.train()(batch)["loss"]
    loss.backward()
    assert loss > 0


def settings_of(side=32, **given):
    return {
        name: one.value
        for name, one in supervised(Situation(side, 400, ("a", "b"), (0.5,) * 3, (0.25,) * 3), **given).settings.items()
    }


def test_small_pictures_are_shifted_and_others_cropped():
    small, large, cropped = settings_of(), settings_of(96), settings_of(crop_min=0.4)
    assert (small["shift"], small["jitter"], small["view_size"]) == (2, 0.0, 32)
    assert "crop_min" not in small
    assert (large["shift"], large["crop_min"], large["jitter"], large["view_size"]) == (0, 0.3, 0.3, 96)
    assert (cropped["shift"], cropped["crop_min"], cropped["jitter"], cropped["view_size"]) == (0, 0.4, 0.3, 24)
    assert settings_of(shift=0)["crop_min"] == 0.3
    assert settings_of(96, shift=5, jitter=0.2) | {"shift": 5, "jitter": 0.2, "view_size": 96} == settings_of(
        96, shift=5, jitter=0.2
    )
    batch = supervised(Situation(32, 400, ("a", "b"), (0.5,) * 3, (0.25,) * 3), shift=31, view_size_first=16).views(
        {"image": torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8), "label": torch.arange(40) % 2},
        Draw.seeded(0, 0, 40, fraction=0.0),
    )
    assert batch["image"].shape == (40, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shift": 2, "crop_min": 0.5}, "--shift 2 and --crop-min 0.5: a picture is shifted or cropped; leave one out"),
        ({"shift": 32}, "--shift 32: must be at least 0 and below the image size of 32 pixels"),
        ({"shift": -1}, "--shift -1"),
        ({"jitter": 1.5}, "--jitter 1.5: must be from 0 to 1"),
    ],
)
def test_views_that_cannot_be_are_refused(given, said):
    with pytest.raises(SensoriumError, match=said):
        settings_of(**given)
