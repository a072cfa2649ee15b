"""SupCon: classes attract, unknown labels only their own view; what is logged; what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.supcon.method import SupCon, supcon_loss

ON = Situation(16, 4000, ("cat", "dog"), (0.5,) * 3, (0.25,) * 3)


def method(**numbers):
    torch.manual_seed(0)
    return SupCon(ResNet((1, 1), 8, stem="small"), mlp_head(16, 16, 8, norm=False), **numbers)


def views(n=6, side=8):
    return {"views": [torch.randn(n, 3, side, side) for _ in range(2)], "label": torch.arange(n) % 3}


def test_order_names_and_length_change_nothing():
    torch.manual_seed(0)
    z1, z2, labels = torch.randn(9, 7), torch.randn(9, 7), torch.tensor([0, 1, 1, -1, 2, -1, 0, 0, 3])
    want = supcon_loss(z1, z2, labels)
    mixed = torch.randperm(9)
    assert torch.allclose(supcon_loss(z1[mixed], z2[mixed], labels[mixed]), want, atol=1e-5)
    assert torch.allclose(supcon_loss(z2, z1, labels), want, atol=1e-5)
    assert torch.allclose(supcon_loss(5 * z1, 0.1 * z2, labels), want, atol=1e-5)
    assert torch.allclose(supcon_loss(z1, z2, torch.where(labels < 0, labels, 7 - labels)), want, atol=1e-6)
    assert not torch.allclose(supcon_loss(z1, z2, labels[mixed]), want, atol=1e-3)


def test_images_without_a_label_do_not_attract_each_other():
    torch.manual_seed(0)
    z = F.normalize(torch.randn(6, 5), dim=1)
    unknown, alone, together = (supcon_loss(z, z, labels) for labels in (torch.full((6,), -1), torch.arange(6), torch.zeros(6, dtype=torch.long)))  # fmt: skip
    assert torch.equal(unknown, alone)
    assert together > alone


def test_the_minimum_is_where_classes_coincide():
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.eye(4)[labels]
    within = supcon_loss(apart, apart, labels, 0.05).item()
    assert within == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-4)  # log |P(i)|
    assert supcon_loss(torch.eye(4), torch.eye(4), labels, 0.05).item() > within + 1


def test_what_is_logged():
    model = method()
    model.head, model.features = nn.Identity(), lambda images: images.flatten(1)
    eye = torch.eye(12)[[0, 0, 1, 1]].view(4, 3, 2, 2)
    out = model({"views": [eye, eye], "label": torch.tensor([0, 0, 1, 1])})
    assert set(out) == {"loss", "contrast_top1", "alignment"}
    assert out["contrast_top1"] == 1
    assert out["alignment"].item() == pytest.approx(1)
    wrong = model({"views": [eye, eye], "label": torch.tensor([0, 1, 0, 1])})
    assert wrong["alignment"].item() == pytest.approx(1 / 3)  # its own view among three positives
    assert not out["alignment"].requires_grad


def test_both_views_share_their_batch_statistics():
    model, batch = method(), views()
    z1, z2 = model.head(model.backbone(torch.cat(batch["views"]))).chunk(2)
    assert torch.allclose(model(batch)["loss"], supcon_loss(z1, z2, batch["label"], 0.1), atol=1e-6)


def test_a_forward_changes_running_statistics_and_nothing_else():
    model, batch = method(), views()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_it_is_an_encoder_of_its_backbone():
    model = method().eval()
    assert abilities_of(model) == ("Encoder",)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model.features(x), model.backbone.features(x))


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="SupCon needs a backbone with Encoder; Linear is none"):
        SupCon(nn.Linear(3, 3), nn.Identity())
    with pytest.raises(SensoriumError, match=r"^supcon: temperature must be above 0, got 0\.$"):
        make_recipe("supcon", ON, {"temperature": 0})
    with pytest.raises(SensoriumError, match=r"^'supcon' needs at least two classes; the data has no labels\. Train"):
        make_recipe("supcon", replace(ON, classes=()), {})
    with pytest.raises(SensoriumError, match=r"one class only \('a'\)"):
        make_recipe("supcon", replace(ON, classes=("a",)), {})


def test_it_learns_to_group_classes():
    model = method()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    torch.manual_seed(1)
    kinds = torch.randn(3, 3, 8, 8)
    labels = torch.arange(18) % 3
    for _ in range(25):
        noisy = [kinds[labels] + 0.5 * torch.randn(18, 3, 8, 8) for _ in range(2)]
        out = model({"views": noisy, "label": labels})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["contrast_top1"] > 0.9
    assert out["alignment"] > 0.8
