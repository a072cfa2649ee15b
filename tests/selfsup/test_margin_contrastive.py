"""Margin contrastive: when pairs are pulled and pushed, what is logged, what is refused."""

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.margin_contrastive.method import MarginContrastive, margin_loss

ON = Situation(16, 4000, ("cat", "dog"), (0.5,) * 3, (0.25,) * 3)


def method(**numbers):
    torch.manual_seed(0)
    return MarginContrastive(ResNet((1, 1), 8, stem="small"), mlp_head(16, 16, 8), **numbers)


def views(n=6, side=8):
    return {"views": [torch.randn(n, 3, side, side) for _ in range(2)]}


def test_only_dissimilar_pairs_within_the_margin_are_pushed():
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8], [3.0, 0.0]])  # distances 1, 3, 2.53
    assert margin_loss(z, z, 0.9).item() == 0
    assert margin_loss(z, z, 1.5).item() == pytest.approx(0.5**2 / 2 / 3, rel=1e-5)
    z1, z2 = z.clone().requires_grad_(), z.clone()
    margin_loss(z1, z2, 1.5).backward()
    assert z1.grad[2].abs().max() == 0
    assert z1.grad[0] @ (z[1] - z[0]) > 0  # a step down the gradient leads away
    shifted = z + torch.tensor([0.1, 0.0])
    assert margin_loss(z, shifted, 0.5).item() == pytest.approx(0.1**2 / 2, rel=1e-4)


def test_order_turns_and_shifts_change_nothing():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 9, 4)
    want, mixed = margin_loss(z1, z2, 2.0), torch.randperm(9)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    assert torch.allclose(margin_loss(z1[mixed], z2[mixed], 2.0), want, atol=1e-5)
    assert torch.allclose(margin_loss(z2, z1, 2.0), want, atol=1e-5)
    assert torch.allclose(margin_loss(z1 @ turn + 1, z2 @ turn + 1, 2.0), want, atol=1e-5)
    assert torch.allclose(margin_loss(3 * z1, 3 * z2, 6.0), 9 * want, atol=1e-4)
    assert not torch.allclose(margin_loss(z1[mixed], z2, 2.0), want, atol=1e-3)


def test_collapse_is_no_minimum_and_gives_no_nan():
    z = torch.zeros(4, 3, requires_grad=True)
    loss = margin_loss(z, z, 1.0)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert torch.isfinite(z.grad).all()


def test_what_is_logged():
    model = method(margin=2.0)
    model.head, model.features = nn.Identity(), lambda images: images.flatten(1)
    x1 = torch.zeros(3, 3, 1, 1)
    x1[1, 0], x1[2, 0] = 1.0, 5.0
    x2 = x1.clone()
    x2[:, 1] = 0.5
    out = model({"views": [x1, x2]})
    assert set(out) == {"loss", "near", "far", "inside"}
    assert out["near"].item() == pytest.approx(0.5)
    assert out["inside"].item() == pytest.approx(1 / 3)
    same_view, across = [1.0, 5.0, 4.0], [(d * d + 0.25) ** 0.5 for d in (1.0, 5.0, 4.0)]
    assert out["far"].item() == pytest.approx((sum(same_view) + sum(across)) / 6)


def test_both_views_share_their_batch_statistics():
    model, batch = method(), views()
    z1, z2 = model.head(model.backbone(torch.cat(batch["views"]))).chunk(2)
    assert torch.allclose(model(batch)["loss"], margin_loss(z1, z2), atol=1e-6)


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
    with pytest.raises(TypeError, match="Margin contrastive needs a backbone with Encoder; Linear is none"):
        MarginContrastive(nn.Linear(3, 3), nn.Identity())
    with pytest.raises(ValueError, match="at least two images"):
        margin_loss(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(SensoriumError, match=r"^margin_contrastive: margin must be above 0, got -1\.$"):
        make_recipe("margin_contrastive", ON, {"margin": -1})


def test_it_learns_to_tell_images_apart():
    model = method()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(1)
    images = torch.randn(16, 3, 8, 8)
    for _ in range(60):
        out = model({"views": [images + 0.1 * torch.randn_like(images) for _ in range(2)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["near"] < 0.5 * out["far"]
    assert out["loss"] < 0.2
