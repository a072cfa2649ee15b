"""Barlow Twins and VICReg: what their losses are, what the two forms of the off-diagonal are, what is logged and refused."""

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.covariance import off_diagonal_energy
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.barlow_twins.method import BarlowTwins, barlow_loss
from sensorium.selfsup.vicreg.method import VICReg, vicreg_loss

ON = Situation(8, 100, (), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1))


def backbone():
    return ResNet((1, 1), 8, stem="small")


def barlow(**numbers):
    torch.manual_seed(0)
    return BarlowTwins(backbone(), mlp_head(16, 12, 8, last_bias=False), **numbers)


def vicreg(**numbers):
    torch.manual_seed(0)
    return VICReg(backbone(), mlp_head(16, 12, 8, bias=True, last_bias=False), **numbers)


def views(n=6, size=8):
    return {"views": [torch.randn(n, 3, size, size) for _ in range(2)]}


@pytest.mark.parametrize("shape", [(3, 9), (9, 3), (5, 5), (4, 1)])
@pytest.mark.parametrize("same", [False, True])
def test_the_off_diagonal_is_that_of_the_product(shape, same):
    x = torch.randn(shape, dtype=torch.float64)
    y = x if same else torch.randn(shape, dtype=torch.float64)
    product = x.T @ y
    want = sum(product[i, j] ** 2 for i in range(shape[1]) for j in range(shape[1]) if i != j)
    assert float(off_diagonal_energy(x, y)) == pytest.approx(float(want), abs=1e-10)


def test_barlows_loss_is_equation_1():
    h1, h2 = (nn.BatchNorm1d(4, affine=False)(torch.randn(7, 4)) for _ in range(2))
    out = barlow_loss(h1, h2, 0.3)
    C = [[(h1[:, i] * h2[:, j]).mean().item() for j in range(4)] for i in range(4)]
    others = [C[i][j] for i in range(4) for j in range(4) if i != j]
    want = sum((1 - C[i][i]) ** 2 for i in range(4)) + 0.3 * sum(c**2 for c in others)
    assert out["loss"].item() == pytest.approx(want, rel=1e-5)
    assert out["correlation"].item() == pytest.approx(sum(C[i][i] for i in range(4)) / 4, rel=1e-5)
    assert out["redundancy"].item() == pytest.approx((sum(c**2 for c in others) / 12) ** 0.5, rel=1e-4)


def test_barlows_best_case_and_collapse_show():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # uncorrelated
    best = barlow_loss(rows, rows, 1.0)
    assert [best[name].item() for name in ("loss", "correlation", "redundancy")] == pytest.approx([0, 1, 0], abs=1e-6)
    twice = barlow_loss(rows[:, [0, 0]], rows[:, [0, 0]], 1.0)  # each dimension tells the same
    assert [twice[name].item() for name in ("loss", "correlation", "redundancy")] == pytest.approx([2, 1, 1], abs=1e-6)


def test_vicregs_terms_show_in_what_is_logged():
    still = vicreg_loss(torch.ones(5, 3), torch.ones(5, 3), 25, 25, 1)
    assert [still[name].item() for name in ("invariance", "std", "covariance")] == pytest.approx([0, 0.01, 0], abs=1e-6)
    assert still["loss"].item() == pytest.approx(25 * 0.99, rel=1e-5)
    rows = 3**0.5 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) / 2  # variance 1
    best = vicreg_loss(rows + 7, rows + 7, 25, 25, 1)
    assert best["loss"].item() == pytest.approx(0, abs=1e-5)
    assert best["std"].item() == pytest.approx(1, abs=1e-3)
    far = vicreg_loss(rows, rows + 2, 25, 25, 1)
    assert far["invariance"].item() == pytest.approx(4)
    assert far["loss"].item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("make", [barlow, vicreg])
def test_the_order_of_views_and_of_dimensions_does_not_matter(make):
    model, batch = make().eval(), views()
    want = model(batch)["loss"].item()
    assert model({"views": batch["views"][::-1]})["loss"].item() == pytest.approx(want, rel=1e-5)
    with torch.no_grad():
        model.head[-1].weight.copy_(model.head[-1].weight.flip(0))
    assert model(batch)["loss"].item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("make", [barlow, vicreg])
def test_each_view_is_a_pass_of_its_own(make):
    """As in the authors' code, so that batch norms use the statistics of one view."""
    model, seen = make().train(), []
    model.backbone.conv1.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    model(views(6))
    assert seen == [6, 6]


@pytest.mark.parametrize("make", [barlow, vicreg])
def test_autocast_keeps_the_loss_in_float32(make):
    model, batch = make(), views(32)
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)
    assert all(not value.requires_grad for name, value in out.items() if name != "loss")


@pytest.mark.parametrize("make", [barlow, vicreg])
def test_it_learns_without_collapsing(make):
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    images = torch.randn(32, 3, 8, 8)
    losses = []
    for _ in range(30):
        out = model({"views": [images + 0.3 * torch.randn_like(images) for _ in range(2)]})
        losses.append(out["loss"].item())
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert model.features(images).std(0).mean() > 0.01
    assert abilities_of(model) == ("Encoder",)


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="Barlow Twins needs a backbone with Encoder"):
        BarlowTwins(nn.Linear(3, 3), mlp_head(3, 4, 4))
    with pytest.raises(TypeError, match="VICReg needs a backbone with Encoder"):
        VICReg(nn.Linear(3, 3), mlp_head(3, 4, 4))
    with pytest.raises(ValueError, match="redundancy -1: must not be negative"):
        barlow(redundancy=-1)
    with pytest.raises(ValueError, match="none may be negative"):
        vicreg(variance=-1.0)


@pytest.mark.parametrize(
    "system, settings, why",
    [
        ("barlow_twins", {"redundancy": -0.1}, "--redundancy -0.1: must not be negative; the paper's is 0.0051"),
        ("barlow_twins", {"projection": 1}, "--projection 1: must be at least 2"),
        ("vicreg", {"covariance": -1.0}, "--covariance -1: must not be negative"),
        ("vicreg", {"projection": 0}, "--projection 0: must be at least 2"),
    ],
)
def test_bad_settings_are_one_line(system, settings, why):
    with pytest.raises(SensoriumError, match=why) as raised:
        make_recipe(system, ON, settings)
    assert "\n" not in str(raised.value)
