"""EMP-SSL: what its loss rewards, how large its crops are, what is logged and refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import abilities_of
from sensorium.base.draw import Draw
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.coding_rate import coding_rate
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.emp_ssl.method import EMPSSL, emp_loss
from sensorium.selfsup.emp_ssl.recipe import emp_views

ON = Situation(32, 100, (), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1))


def method(**numbers):
    torch.manual_seed(0)
    return EMPSSL(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 8, bias=True), **numbers)


def crops(n=6, count=3, size=6):
    return {"crops": [torch.randn(n, 3, size, size) for _ in range(count)]}


def test_collapse_and_spread_show_in_the_coding_rate():
    one = F.normalize(torch.ones(2, 16, 4), dim=-1)
    all_ = torch.eye(4).repeat(4, 1).expand(2, 16, 4)
    collapsed, spread = emp_loss(one, 1.0, 0.2), emp_loss(all_, 1.0, 0.2)
    assert collapsed["alignment"].item() == spread["alignment"].item() == pytest.approx(1)
    assert collapsed["coding_rate"].item() == pytest.approx(0.5 * torch.tensor(1 + 4 / 0.2).log().item(), rel=1e-5)
    assert spread["coding_rate"].item() == pytest.approx(4 * 0.5 * torch.tensor(1 + 1 / 0.2).log().item(), rel=1e-5)
    assert spread["loss"] < collapsed["loss"]


def test_the_rate_is_of_each_crops_index_and_the_lengths_do_not_matter():
    z = torch.randn(3, 9, 5)
    out = emp_loss(z, 2.0, 0.2)
    unit = F.normalize(z, dim=-1)
    assert out["coding_rate"].item() == pytest.approx(sum(coding_rate(u, 0.2).item() for u in unit) / 3, rel=1e-5)
    again = emp_loss(z * torch.rand(3, 9, 1).add(0.5), 2.0, 0.2)
    assert again["loss"].item() == pytest.approx(out["loss"].item(), rel=1e-5)


def test_numbers_that_are_not_finite_make_the_loss_so():
    z = torch.randn(2, 5, 3)
    z[0, 0, 0] = torch.nan
    assert not torch.isfinite(emp_loss(z, 1.0, 0.2)["loss"])


def test_all_crops_are_one_pass():
    model, seen = method().train(), []
    model.backbone.conv1.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    model(crops(5, 4))
    assert seen == [20]


def test_autocast_keeps_the_loss_in_float32():
    model, batch = method(), crops(32)
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)
    assert all(not value.requires_grad for name, value in out.items() if name != "loss")


def test_it_learns_without_collapsing():
    model = method(invariance=20.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images = torch.randn(32, 3, 6, 6)
    told = []
    for _ in range(30):
        out = model({"crops": [images + 0.3 * torch.randn_like(images) for _ in range(3)]})
        told.append({name: value.item() for name, value in out.items()})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    first, last = told[0], told[-1]
    assert last["loss"] < first["loss"] - 1
    assert last["alignment"] > first["alignment"]
    assert last["coding_rate"] > 1.5 * coding_rate(F.normalize(torch.ones(32, 8), dim=1), 0.2)
    assert abilities_of(model) == ("Encoder",)


@pytest.mark.parametrize(
    "side, backbone, area, want",
    [
        (32, "resnet-micro", 0.25, 16),
        (32, "vit-micro", 0.25, 16),
        (96, "resnet-micro", 0.25, 48),
        (96, "vit-micro", 0.25, 48),  # patches of 12
        (224, "vit-micro", 0.1, 64),  # patches of 16
        (8, "vit-micro", 0.25, 8),
        (28, "vit-micro", 0.25, 16),  # patches of 4
    ],
)
def test_crops_keep_their_own_size(side, backbone, area, want):
    on = Situation(side, 100, (), ON.mean, ON.std)
    recipe = make_recipe("emp_ssl", on, {"backbone": backbone, "crop_area": area, "crops": 3})
    assert recipe.settings["view_size"].value == want
    batch = recipe.views({"image": torch.zeros(2, 3, side, side, dtype=torch.uint8)}, Draw.seeded(0, 0, 2))
    assert [tuple(x.shape) for x in batch["crops"]] == [(2, 3, want, want)] * 3


def test_crops_are_of_the_given_area():
    """A horizontal ramp of known slope: how much of it a crop holds."""
    side = 64
    ramp = torch.linspace(0, 255, side).round().to(torch.uint8).expand(200, 3, side, side).contiguous()
    views = emp_views((0.0,) * 3, (1.0,) * 3, 32, 2, 0.25)
    x = torch.stack(views({"image": ramp}, Draw.seeded(0, 0, 200))["crops"])
    span = (x.amax((-1, -2, -3)) - x.amin((-1, -2, -3))).clamp(max=1)
    assert 0.3 < span.median() < 0.75


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="EMP-SSL needs a backbone with Encoder"):
        EMPSSL(nn.Linear(3, 3), mlp_head(3, 4, 4))
    with pytest.raises(ValueError, match="eps 0: the first must not be negative, the second be positive"):
        method(eps=0)
    with pytest.raises(ValueError, match="at least two crops of a picture, got 1"):
        method()(crops(2, 1))


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"crops": 1}, "--crops 1: must be at least 2"),
        ({"projection": 1}, "--projection 1: must be at least 2"),
        ({"invariance": -1.0}, "--invariance -1: must not be negative; the paper's is 200"),
        ({"crop_area": 0.0}, "--crop-area 0: must be above 0 and at most 1"),
        ({"eps": -0.2}, "--eps -0.2: must be above 0"),
    ],
)
def test_bad_settings_are_one_line(settings, why):
    with pytest.raises(SensoriumError, match=why) as raised:
        make_recipe("emp_ssl", ON, settings)
    assert "\n" not in str(raised.value)
