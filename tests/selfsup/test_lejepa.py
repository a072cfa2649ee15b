"""LeJEPA and SIGReg: what the statistic says, where directions come from, views of several sizes, what is refused."""

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.base.draw import Draw
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.gaussianity import directions, sigreg
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.lejepa.method import LeJEPA, lejepa_loss
from sensorium.selfsup.lejepa.recipe import lejepa_views

ON = Situation(32, 100, (), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1))


def method(backbone=None, **numbers):
    torch.manual_seed(0)
    backbone = ResNet((1, 1), 8, stem="small") if backbone is None else backbone
    return LeJEPA(backbone, mlp_head(16, 12, 8, bias=True), **{"slices": 40, **numbers})


def crops(n=6, sizes=(8, 8, 4, 4)):
    return {"crops": [torch.randn(n, 3, size, size) for size in sizes]}


def at(step):
    return Progress(step, 0, 0.1)


def test_the_statistic_of_gaussians_is_about_one_at_every_size():
    torch.manual_seed(0)
    for count in (50, 1000):
        found = sigreg(torch.randn(100, count, 8), directions(8, 64, 0)).item()
        assert found == pytest.approx(1.0527, abs=0.08)  # integral of (1 - exp(-t^2)) exp(-t^2 / 2) from -3 to 3


def test_what_is_no_standard_gaussian_is_far_from_it():
    torch.manual_seed(0)
    z, a = torch.randn(1000, 8), directions(8, 64, 0)
    flat = z.clone()
    flat[:, 4:] = 0  # half of the dimensions have collapsed
    for other in (torch.zeros(1000, 8), z + 1, 2 * z, 0.5 * z, flat, torch.sign(z[:, :1]).expand(-1, 8)):
        assert sigreg(other, a) > 10


def test_directions_are_those_of_the_step_and_of_unit_length():
    a = directions(5, 1000, 7)
    assert torch.equal(a, directions(5, 1000, 7))
    assert torch.allclose(a.norm(dim=0), torch.ones(1000))
    assert a.mean(1).abs().max() < 0.1
    assert (a @ a.T / 1000 - torch.eye(5) / 5).abs().max() < 0.03  # no dimension is preferred
    assert not torch.isclose(a, directions(5, 1000, 8)).any(0).all()


def test_each_step_has_its_directions_and_each_micro_batch_the_steps():
    model, batch = method(), crops()
    model.eval()
    seen = {}
    for step in (3, 4, 3):
        model.before_step(at(step))
        now = model.directions.clone()
        first, second = model(batch)["sigreg"], model(batch)["sigreg"]
        assert torch.equal(first, second)
        assert torch.equal(model.directions, now)  # a forward changes nothing
        assert torch.equal(seen.setdefault(step, now), now)
    assert not torch.equal(seen[3], seen[4])
    assert "directions" not in model.state_dict()
    other = method()  # resumed at the step, in another process
    other.before_step(at(4))
    assert torch.equal(other.directions, seen[4])


@pytest.mark.parametrize("make", [lambda: ResNet((1, 1), 8, stem="small"), lambda: ViT(8, 4, 16, 2, 2)])
@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 4), (12, 12, 8, 8, 4)])
def test_views_of_any_sizes(make, sizes):
    model = method(make()).eval()
    batch = crops(3, sizes)
    z = torch.stack([model.head(model.backbone.features(x)) for x in batch["crops"]])
    want = lejepa_loss(z, model.directions, global_views=2, trade_off=0.05)
    got = model(batch)
    assert all(torch.allclose(got[name], want[name], atol=1e-5) for name in ("loss", "prediction", "sigreg", "power"))


def test_collapse_shows_in_what_is_logged():
    still = lejepa_loss(torch.zeros(2, 100, 4), directions(4, 16, 0), global_views=2, trade_off=0.5)
    assert still["prediction"] == still["power"] == 0
    assert still["sigreg"] > 40  # of N samples about 0.4 N
    assert still["loss"] == pytest.approx(0.5 * still["sigreg"].item())


def test_autocast_keeps_the_loss_in_float32():
    model, batch = method(), crops(32)
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)
    assert all(not value.requires_grad for name, value in out.items() if name != "loss")


def test_it_learns_without_collapsing():
    model = method(trade_off=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images = torch.randn(32, 3, 8, 8)
    losses = []
    for step in range(40):
        model.before_step(at(step))
        out = model({"crops": [images + 0.3 * torch.randn_like(images) for _ in range(3)]})
        losses.append(out["loss"].item())
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert out["power"] > 0.3
    assert abilities_of(model) == ("Encoder",)


def test_local_views_are_small_and_of_the_same_picture():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    views = lejepa_views(ON.mean, ON.std, 24, 10, 3, 0.3)
    batch = views({"image": images}, Draw.seeded(0, 0, 4))
    assert [tuple(x.shape) for x in batch["crops"]] == [(4, 3, 24, 24)] * 2 + [(4, 3, 10, 10)] * 3


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="LeJEPA needs a backbone with Encoder"):
        LeJEPA(nn.Linear(3, 3), mlp_head(3, 4, 4))
    with pytest.raises(ValueError, match=r"trade_off 1.5: must be from 0 to 1"):
        method(trade_off=1.5)
    with pytest.raises(ValueError, match="slices 0: must be at least 1"):
        method(slices=0)
    with pytest.raises(ValueError, match="at least two views, 2 of them global; got 1"):
        method()(crops(2, (8,)))


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"trade_off": 1.2}, r"--trade-off 1.2: must be from 0 to 1; the paper's are 0.01 to 0.1"),
        ({"slices": 0}, "--slices 0: must be at least 1"),
        ({"projection": 0}, "--projection 0: must be at least 1"),
        ({"local_crops": -1}, "--local-crops -1: must not be negative"),
    ],
)
def test_bad_settings_are_one_line(settings, why):
    with pytest.raises(SensoriumError, match=why) as raised:
        make_recipe("lejepa", ON, settings)
    assert "\n" not in str(raised.value)
