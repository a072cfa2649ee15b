"""BYOL: what its loss measures, where its state changes, what its target is, what it offers."""

import copy

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import cosine
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.byol.method import BYOL, byol_loss

ON = Situation(16, 4000, ("cat", "dog"), (0.5,) * 3, (0.25,) * 3)


def method(backbone=None, **numbers):
    torch.manual_seed(0)
    backbone = ResNet((1, 1), 8, stem="small") if backbone is None else backbone
    return BYOL(backbone, mlp_head(16, 12, 9), mlp_head(9, 12, 9), **numbers)


def views(n=6, side=8):
    return {"views": [torch.randn(n, 3, side, side) for _ in range(2)]}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_the_loss_is_0_where_predictions_are_right_and_8_where_they_are_opposite():
    z1, z2 = torch.randn(2, 7, 5)
    assert byol_loss(3 * z2, 0.1 * z1, z1, z2).item() == pytest.approx(0, abs=1e-6)
    assert byol_loss(-z2, -z1, z1, z2).item() == pytest.approx(8, abs=1e-6)
    assert torch.allclose(byol_loss(z1, z2, z2, z1), byol_loss(z2, z1, z1, z2), atol=1e-6)


def test_a_forward_changes_running_statistics_and_nothing_else():
    model, batch = method(), views()
    before = snapshot(model)
    model(batch)
    names = changed(model, before)
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)
    assert {name.split(".")[0] for name in names} == {"online", "target", "predictor"}
    model.eval()
    before = snapshot(model)
    assert model(batch)["loss"] == model(batch)["loss"]
    assert changed(model, before) == set()


def test_each_view_is_a_batch_of_its_own_and_the_target_sees_the_other():
    model, (x1, x2) = method(), views()["views"]
    x2 = 3 * x2 + 1
    model.target["projector"][3].weight.data.normal_()
    online = nn.Sequential(model.backbone, model.online["projector"], model.predictor)
    target = nn.Sequential(model.target["backbone"], model.target["projector"])
    want = byol_loss(online(x1), online(x2), target(x1), target(x2))
    assert torch.allclose(model({"views": [x1, x2]})["loss"], want, atol=1e-6)


def test_gradients_reach_the_online_network_only():
    model = method()
    model(views())["loss"].backward()
    assert all(p.grad is not None for p in [*model.online.parameters(), *model.predictor.parameters()])
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())


def test_the_target_is_a_moving_average_that_stands_still_at_the_end():
    model = method(momentum=0.9)
    assert all(torch.equal(a, b) for a, b in zip(model.target.parameters(), model.online.parameters(), strict=True))
    old = copy.deepcopy(model.target)
    with torch.no_grad():
        for p in model.online.parameters():
            p.add_(torch.randn_like(p))
    model.after_step(at(0.25))
    tau = cosine(0.9, 1.0, 0.25)
    assert 0.9 < tau < 1
    for t, o, s in zip(model.target.parameters(), old.parameters(), model.online.parameters(), strict=True):
        assert torch.allclose(t, tau * o + (1 - tau) * s, atol=1e-6)
    still = snapshot(model.target)
    model.after_step(at(1.0))
    assert changed(model.target, still) == set()


def test_the_target_drops_nothing_and_normalizes_by_its_own_batch():
    model = method(ViT(8, 4, 16, 2, 2, drop_path=0.5)).train()
    x = torch.randn(16, 3, 8, 8)
    target = model.target["backbone"]
    assert torch.equal(target.features(x), target.features(x))
    assert not torch.equal(model.features(x), model.features(x))

    model = method().train()
    norms = [m for m in model.target.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert norms
    assert all(m.training for m in norms)
    model(views())
    own = snapshot(model.target)
    assert model.target["projector"][1].num_batches_tracked == 2  # one of each view
    model.after_step(at(0))
    assert not any("running" in name or "tracked" in name for name in changed(model.target, own))
    assert not any(m.training for m in model.eval().target.modules())


def test_what_is_logged_shows_collapse():
    model, batch = method(), views(64)
    out = model(batch)
    assert set(out) == {"loss", "alignment", "output_spread"}
    assert not any(out[name].requires_grad for name in ("alignment", "output_spread"))
    assert out["output_spread"] > 0.5
    nn.init.zeros_(model.online["projector"][3].weight)
    nn.init.ones_(model.online["projector"][3].bias)
    out = model(batch)
    assert out["output_spread"].item() == pytest.approx(0, abs=1e-3)
    assert out["alignment"].item() == pytest.approx(1, abs=1e-5)


def test_it_is_an_encoder_of_its_online_backbone():
    model = method().eval()
    assert abilities_of(model) == ("Encoder",)
    nn.init.normal_(next(model.target.parameters()))
    x = torch.randn(3, 3, 8, 8)
    assert model.dim == 16
    assert torch.equal(model.features(x), model.online["backbone"].features(x))


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="BYOL needs a backbone with Encoder; Linear is none"):
        BYOL(nn.Linear(3, 3), nn.Identity(), nn.Identity())
    with pytest.raises(ValueError, match=r"momentum must be from 0 to 1, got 1\.5"):
        method(momentum=1.5)


def test_settings_follow_from_the_machine_and_bad_ones_are_refused_in_one_line():
    recipe = make_recipe("byol", ON, {})
    assert recipe.settings["momentum"].value == 0.97
    with pytest.raises(SensoriumError, match=r"^byol: momentum must be from 0 to 1, got -1\.$") as refused:
        make_recipe("byol", ON, {"momentum": -1})
    assert "\n" not in str(refused.value)


def test_it_learns_without_collapsing():
    torch.manual_seed(0)
    model = method(momentum=0.9)
    optimizer = torch.optim.AdamW([*model.online.parameters(), *model.predictor.parameters()], 3e-3)
    images, losses = torch.randn(16, 3, 8, 8), []
    for step in range(40):
        out = model({"views": [images + 0.3 * torch.randn_like(images) for _ in range(2)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        model.after_step(at(step / 40, step))
        losses.append(out["loss"].item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert out["output_spread"] > 0.3
