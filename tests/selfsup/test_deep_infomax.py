"""Deep InfoMax: the weights of its objectives, its phases, what it logs and offers, what is refused, that it learns."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import BoundsInformation, abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.convnext import ConvNeXt
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.learning import information
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.deep_infomax.critics import ConcatLocal, DotGlobal, DotLocal
from sensorium.selfsup.deep_infomax.method import DeepInfoMax, discriminator
from sensorium.training.step import Step

DIGITS = Situation(8, 100, (), (0.5,) * 3, (0.2,) * 3)


def method(*, concat=False, level=0, **numbers):
    torch.manual_seed(0)
    backbone = ResNet((1, 1), 8, stem="small")
    channels, rows = backbone.channels[level], 8 // 2**level
    local = ConcatLocal(channels, 6, 12) if concat else DotLocal(channels, 6, 12)
    parts = {
        "whole": DotGlobal(channels, (rows, rows), 6, 12) if numbers.get("alpha") else None,
        "discriminator": discriminator(6) if numbers.get("gamma") else None,
    }
    return DeepInfoMax(backbone, 6, local, level=level, **parts, **numbers)


def batch(n=8):
    return {"image": torch.randn(n, 3, 8, 8), "prior": torch.rand(n, 6)}


@pytest.mark.parametrize("bound, value", [("infonce", "infonce"), ("jsd", "jsd"), ("dv", "donsker_varadhan")])
@pytest.mark.parametrize("concat", [False, True])
def test_the_loss_is_equation_8(bound, value, concat):
    model, given = method(concat=concat, bound=bound, alpha=0.5, beta=0.7, gamma=0.1), batch()
    out = model(given, "encoder")
    features, maps = model.backbone.features_and_maps(given["image"])
    y = model.output(features)
    measure = getattr(information, value)
    local, whole = measure(*model.local(y, maps[0])), measure(*model.whole(y, maps[0]))
    prior = -F.logsigmoid(model.discriminator(y.sigmoid())).mean()
    assert out["loss"].item() == pytest.approx((0.1 * prior - 0.5 * whole - 0.7 * local).item(), rel=1e-5)
    for name, want in (("local", local), ("global", whole), ("prior", prior)):
        assert out[name].item() == pytest.approx(want.item(), rel=1e-4, abs=1e-5)
    judged = model(given, "discriminator")
    real, made = model.discriminator(given["prior"]), model.discriminator(y.sigmoid())
    want = (-F.logsigmoid(real).mean() - F.logsigmoid(-made).mean()) / 2
    assert judged["loss"].item() == pytest.approx(want.item(), rel=1e-5)


def test_what_is_logged():
    out = method()(batch())
    assert set(out) == {"loss", "local", "found", "information", "ceiling"}
    assert out["ceiling"].item() == pytest.approx(math.log(1 + 7 * 64))
    assert out["information"] == out["local"] == -out["loss"]
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")
    assert "ceiling" not in method(bound="jsd")(batch())
    assert set(method(alpha=1.0, beta=0.0)(batch())) == {"loss", "global", "found", "information", "ceiling"}
    assert isinstance(method(), BoundsInformation)


def test_a_phase_trains_its_own_parameters():
    model = method(gamma=0.3)
    assert model.phases == ("encoder", "discriminator")
    assert method().phases == ("train",)
    owned = {phase: {id(p) for p in model.parameters_of(phase)} for phase in model.phases}
    assert owned["encoder"] | owned["discriminator"] == {id(p) for p in model.parameters()}
    assert owned["discriminator"] == {id(p) for p in model.discriminator.parameters()}
    for phase in model.phases:
        model.zero_grad()
        model(batch(), phase)["loss"].backward()
        assert {id(p) for p in model.parameters() if p.grad is not None} <= owned[phase]
    step = Step(
        model, {k: lambda m, k=k: torch.optim.Adam(list(m.parameters_of(k)), 1e-3) for k in model.phases}, lambda f: 1.0
    )
    told = step([batch()], Progress(0, 0, 0.0))
    assert {"encoder/prior", "encoder/information", "discriminator/real"} <= set(told)


def test_the_prior_makes_the_output_uniform():
    """Alone and long enough the output of a linear encoder nears the prior; without it the output stays narrow."""
    torch.manual_seed(0)
    spread = {}
    for gamma in (0.0, 1.0):
        model = method(gamma=gamma, beta=1e-6)
        builders = {k: lambda m, k=k: torch.optim.Adam(list(m.parameters_of(k)), 3e-3) for k in model.phases}
        if not gamma:
            builders = {"train": lambda m: torch.optim.Adam(m.parameters(), 3e-3)}
        step = Step(model, builders, lambda f: 1.0)
        for k in range(60):
            step([batch(32)], Progress(k, 0, 0.0))
        with torch.no_grad():
            made = model.output(model.backbone.features(batch(256)["image"])).sigmoid()
        spread[gamma] = made.std(0).mean().item()
    assert spread[1.0] > 2 * spread[0.0]


@pytest.mark.parametrize(
    "backbone", [ViT(8, 4, 16, 2, 2), ResNet((1, 1), 8, stem="small"), ConvNeXt((1, 1), (8, 12), patch=2)]
)
def test_any_network_with_maps(backbone):
    x = torch.randn(3, 3, 8, 8)
    backbone.eval()
    features, maps = backbone.features_and_maps(x)
    torch.testing.assert_close(features, backbone.features(x))
    for one, other in zip(maps, backbone.maps(x), strict=True):
        torch.testing.assert_close(one, other)
    model = DeepInfoMax(backbone, 5, DotLocal(backbone.channels[-1], 5, 7)).eval()
    assert abilities_of(model) == ("Encoder",)
    torch.testing.assert_close(model.features(x), features)
    assert model({"image": x})["loss"].isfinite()


@pytest.mark.parametrize("numbers", [{}, {"bound": "jsd"}, {"bound": "dv"}, {"alpha": 0.5, "gamma": 0.1}])
def test_the_loss_stays_in_float32_under_autocast(numbers):
    model, given = method(**numbers).eval(), batch()
    want = model(given)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(given)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1, abs=0.1)


def test_a_forward_changes_running_statistics_and_nothing_else():
    model, given = method(alpha=1.0, gamma=0.1), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for phase in model.phases:
        model(given, phase)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


@pytest.mark.parametrize("bound", ["infonce", "jsd", "dv"])
def test_it_learns_to_tell_pictures_apart(bound):
    model = method(bound=bound)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(1)
    images = torch.randn(8, 3, 1, 1).expand(-1, -1, 8, 8) + 0.3 * torch.randn(8, 3, 8, 8)
    for _ in range(25):
        out = model({"image": images})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["found"] > 0.9
    assert out["information"] > 1


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="Deep InfoMax needs a backbone with MapEncoder; Linear is none"):
        DeepInfoMax(nn.Linear(3, 3), 4, DotLocal(3, 4, 5))
    with pytest.raises(ValueError, match="a critic of whole maps belongs to alpha above 0"):
        DeepInfoMax(ResNet((1,), 8, stem="small"), 4, DotLocal(8, 4, 5), alpha=1.0)
    with pytest.raises(ValueError, match="has no discriminator"):
        method()(batch(), "discriminator")
    for given, said in (
        ({"bound": "nwj"}, "deep_infomax: bound must be one of infonce, jsd, dv, got 'nwj'"),
        ({"beta": 0.0}, "deep_infomax: alpha 0.0, beta 0.0 and gamma 0.0 must not be negative, nor both first ones 0"),
        ({"critic": "bilinear"}, "--critic bilinear: choose dot, concat"),
        ({"level": 7}, "--level 7: this network has maps 0 to 2"),
    ):
        with pytest.raises(SensoriumError, match=said):
            make_recipe("deep_infomax", DIGITS, given)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_the_recipe_of_every_setting(gamma):
    recipe = make_recipe("deep_infomax", DIGITS, {"alpha": 0.5, "gamma": gamma, "critic": "concat", "units": 8})
    assert recipe.method.phases == (("encoder", "discriminator") if gamma else ("train",))
    assert set(recipe.optimizers) == set(recipe.method.phases) if gamma else callable(recipe.optimizers)
    assert recipe.settings["level"].value == 0
