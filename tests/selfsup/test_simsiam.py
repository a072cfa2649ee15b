"""SimSiam: the stop-gradient, the predictor's constant rate, what is logged, what it offers."""

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.recipe.optim import undecayed
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.simsiam.method import SimSiam, simsiam_loss
from sensorium.training.step import Step

ON = Situation(16, 4000, ("cat", "dog"), (0.5,) * 3, (0.25,) * 3)


def method():
    torch.manual_seed(0)
    projector = mlp_head(16, 12, 12, 9, standardized=True)
    return SimSiam(ResNet((1, 1), 8, stem="small"), projector, mlp_head(9, 5, 9))


def views(n=6, side=8):
    return {"views": [torch.randn(n, 3, side, side) for _ in range(2)]}


def test_the_loss_is_from_minus_1_to_1_and_stops_gradients():
    z1, z2 = torch.randn(2, 7, 5, requires_grad=True)
    assert simsiam_loss(3 * z2, 0.1 * z1, z1, z2).item() == pytest.approx(-1, abs=1e-6)
    assert simsiam_loss(-z2, -z1, z1, z2).item() == pytest.approx(1, abs=1e-6)
    p1, p2 = torch.randn(2, 7, 5)
    assert not simsiam_loss(p1, p2, z1, z2).requires_grad


def test_each_view_is_a_batch_of_its_own():
    model, (x1, x2) = method(), views()["views"]
    x2 = 3 * x2 + 1
    z1, z2 = model.projector(model.backbone(x1)), model.projector(model.backbone(x2))
    want = simsiam_loss(model.predictor(z1), model.predictor(z2), z1, z2)
    assert torch.allclose(model({"views": [x1, x2]})["loss"], want, atol=1e-6)
    assert z1.mean(0).abs().max() < 1e-5  # standardized: no scale, no shift
    assert torch.allclose(z1.var(0, correction=0), torch.ones(9), atol=1e-2)


def test_a_forward_changes_running_statistics_and_nothing_else():
    model, batch = method(), views()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)
    model.eval()
    assert model(batch)["loss"] == model(batch)["loss"]


def test_what_is_logged_shows_collapse():
    model, batch = method(), views(64)
    out = model(batch)
    assert set(out) == {"loss", "alignment", "output_spread"}
    assert not any(out[name].requires_grad for name in ("alignment", "output_spread"))
    assert out["output_spread"] > 0.9
    model.projector[-1] = nn.Identity()
    nn.init.zeros_(model.projector[6].weight)
    model.projector[6].bias = nn.Parameter(torch.ones(9))
    out = model(batch)
    assert out["output_spread"].item() == pytest.approx(0, abs=1e-3)
    assert out["alignment"].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_predictor_keeps_its_rate_and_the_rest_follows_the_schedule(kind):
    recipe = make_recipe("simsiam", ON, {"lr": 0.01, "weight_decay": 0.3, "batch_size": 4, "optimizer": kind})
    step = Step(recipe.method.train(), recipe.optimizers, recipe.schedule)
    optimizer, model = step.optimizers["train"], recipe.method
    batch = views(4)
    seen = []
    for k, fraction in enumerate((0.0, 0.5, 0.999)):
        step([batch], Progress(k, 0, fraction))
        seen.append([group["lr"] for group in optimizer.param_groups])
    own = {id(p) for p in model.predictor.parameters()}
    grouped = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    steady = [bool(ids & own) for ids in grouped]
    assert all(ids <= own for ids, one in zip(grouped, steady, strict=True) if one)
    assert set().union(*grouped) == {id(p) for p in model.parameters()}
    assert sum(map(len, grouped)) == len(list(model.parameters()))
    assert any(group.get("matrices") for group in optimizer.param_groups) is (kind == "muon")
    for rates, fraction in zip(seen, (0.0, 0.5, 0.999), strict=True):
        want = [0.01 if one else 0.01 * recipe.schedule(fraction) for one in steady]
        assert rates == pytest.approx(want)
    kept, named = undecayed(model), {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        assert all(group["weight_decay"] == (0 if named[id(p)] in kept else 0.3) for p in group["params"])


def test_it_is_an_encoder_of_its_backbone():
    model = method().eval()
    assert abilities_of(model) == ("Encoder",)
    x = torch.randn(3, 3, 8, 8)
    assert model.dim == 16
    assert torch.equal(model.features(x), model.backbone.features(x))


def test_a_backbone_without_features_is_refused_when_built():
    with pytest.raises(TypeError, match="SimSiam needs a backbone with Encoder; Linear is none"):
        SimSiam(nn.Linear(3, 3), nn.Identity(), nn.Identity())


def test_without_the_stop_gradient_it_would_collapse():
    """Section 4.1: the same steps with gradients on both sides reach the minimum -1, where all outputs are equal."""

    def trained(stop):
        model = method()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        torch.manual_seed(1)
        images = torch.randn(16, 3, 8, 8)
        for _ in range(60):
            noisy = [images + 0.3 * torch.randn_like(images) for _ in range(2)]
            z1, z2 = (model.projector(model.features(x)) for x in noisy)
            p1, p2 = model.predictor(z1), model.predictor(z2)
            cos = nn.functional.cosine_similarity
            loss = simsiam_loss(p1, p2, z1, z2) if stop else -(cos(p1, z2).mean() + cos(p2, z1).mean()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model({"views": noisy})["output_spread"].item()

    assert trained(stop=True) > 0.7
    assert trained(stop=False) < trained(stop=True)
