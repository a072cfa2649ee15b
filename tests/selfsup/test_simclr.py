"""SimCLR: what the loss is, what it is invariant to, what the method offers."""

import math

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.learning.nt_xent import nt_xent as contrast
from sensorium.selfsup.simclr.method import SimCLR


def method(**numbers):
    torch.manual_seed(0)
    return SimCLR(ResNet((1, 1), 8, stem="small"), ProjectionHead(16, 16, 8), **numbers)


def nt_xent(*given):
    return contrast(*given)["loss"]


def views(n=6, size=8):
    return {"views": [torch.randn(n, 3, size, size), torch.randn(n, 3, size, size)], "label": torch.zeros(n)}


def test_loss_is_equation_1():
    z1, z2, tau = torch.randn(4, 5), torch.randn(4, 5), 0.3
    z = torch.nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    total = 0.0
    for i in range(8):
        j = (i + 4) % 8
        others = sum(math.exp((z[i] @ z[k]).item() / tau) for k in range(8) if k != i)
        total += -math.log(math.exp((z[i] @ z[j]).item() / tau) / others)
    assert nt_xent(z1, z2, tau).item() == pytest.approx(total / 8, rel=1e-5)


def test_permutation_order_and_length_change_nothing():
    z1, z2 = torch.randn(9, 7), torch.randn(9, 7)
    want = nt_xent(z1, z2, 0.2)
    mixed = torch.randperm(9)
    assert torch.allclose(nt_xent(z1[mixed], z2[mixed], 0.2), want, atol=1e-6)
    assert torch.allclose(nt_xent(z2, z1, 0.2), want, atol=1e-6)
    assert torch.allclose(nt_xent(5 * z1, 0.1 * z2, 0.2), want, atol=1e-6)
    assert not torch.allclose(nt_xent(z1[mixed], z2, 0.2), want, atol=1e-3)


def test_collapse_scores_as_chance_and_identity_as_nearly_nothing():
    same = torch.ones(16, 8)
    assert nt_xent(same, same).item() == pytest.approx(math.log(31), rel=1e-5)
    apart = torch.eye(16)
    assert nt_xent(apart, apart, 0.01).item() < 1e-6


def test_what_is_logged():
    model = method()
    model.head = nn.Identity()
    model.features = lambda images: images.flatten(1)
    eye = torch.eye(4, 12).view(4, 3, 2, 2)
    out = model({"views": [eye, eye]})
    assert set(out) == {"loss", "contrast_top1", "alignment", "information", "ceiling"}
    assert out["ceiling"].item() == pytest.approx(math.log(7))
    assert out["information"].item() == pytest.approx(math.log(7) - out["loss"].item(), rel=1e-5)
    assert out["contrast_top1"] == 1
    assert out["alignment"].item() == pytest.approx(1)
    turned = model({"views": [eye, eye.roll(1, 0)]})
    assert turned["contrast_top1"] == 0
    assert turned["alignment"].item() == pytest.approx(0, abs=1e-6)
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")


def test_both_views_share_their_batch_statistics():
    model, batch = method(), views()
    z1, z2 = model.head(model.backbone(torch.cat(batch["views"]))).chunk(2)
    assert torch.allclose(model(batch)["loss"], nt_xent(z1, z2, 0.5), atol=1e-6)


def test_a_forward_changes_running_statistics_and_nothing_else():
    model, batch = method(), views()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch)
    model(batch)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = model(batch)["loss"], model(batch)["loss"]
    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_loss_stays_in_float32_under_autocast():
    z1, z2 = torch.randn(32, 16), torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z1, z2, 0.05)
        narrow = nt_xent(z1.bfloat16(), z2.bfloat16(), 0.05)
        whole = method()(views())["loss"]
    assert loss.dtype == narrow.dtype == whole.dtype == torch.float32
    assert torch.equal(loss, nt_xent(z1, z2, 0.05))


def test_it_is_an_encoder_of_its_backbone():
    model = method().eval()
    assert abilities_of(model) == ("Encoder",)
    x = torch.randn(3, 3, 8, 8)
    assert model.dim == 16
    assert torch.equal(model.features(x), model.backbone.features(x))


def test_a_backbone_without_features_is_refused_when_built():
    with pytest.raises(TypeError, match="SimCLR needs a backbone with Encoder; Linear is none"):
        SimCLR(nn.Linear(3, 3), nn.Identity())


def test_it_learns_to_tell_images_apart():
    model = method(temperature=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(1)
    images = torch.randn(16, 3, 8, 8)
    for _ in range(15):
        noisy = {"views": [images + 0.3 * torch.randn_like(images) for _ in range(2)]}
        out = model(noisy)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["contrast_top1"] > 0.9
