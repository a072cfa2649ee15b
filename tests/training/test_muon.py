"""Muon: the orthogonalized update against a singular value decomposition and torch's Muon; AdamW for the rest."""

from typing import Any

import pytest
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.method import Method, Progress
from sensorium.networks.choice import velocity_network
from sensorium.recipe.muon import MATRICES, QUINTICS, SAFETY, Muon, drawing_optimizer, muon, orthogonal
from sensorium.recipe.recipe import Settings
from sensorium.training.step import Step


def polynomial(s):
    """What the iterations make of singular values, float64."""
    for a, b, c in QUINTICS:
        s = a / SAFETY * s + b / SAFETY**3 * s**3 + c / SAFETY**5 * s**5
    return s


def by_svd(matrix):
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ torch.diag(polynomial(s / s.norm())) @ v


def test_the_iterations_bring_singular_values_near_one():
    s = polynomial(torch.logspace(-3, 0, 10001, dtype=torch.float64))
    assert (s - 1).abs().max() < 0.875
    assert 0.18 < s[1000:].min() < s.max() < 1.87  # from 0.002 on
    assert 130 < float(polynomial(torch.tensor([1e-6], dtype=torch.float64))) / 1e-6 < 131


SHAPES = [(4, 4), (3, 17), (19, 5), (1, 8), (8, 1), (64, 144)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_is_the_polynomial_of_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    (got,), want = orthogonal([matrix]), by_svd(matrix)
    assert got.dtype == torch.float64
    assert (got - want).abs().max() <= 1e-12
    (got,) = orthogonal([matrix.float()])
    assert (got - want).abs().max() <= 0.08  # bfloat16 where that is fast


def test_matrices_of_one_shape_together_and_wide_beside_tall_ones():
    torch.manual_seed(0)
    some = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 17), (17, 3), (3, 17))]
    for got, matrix in zip(orthogonal(some), some, strict=True):
        assert (got - by_svd(matrix)).abs().max() <= 1e-12


@pytest.mark.parametrize("count", [1, 2])
def test_a_matrix_of_zeros_stays_zero(count):
    assert all(torch.equal(found, torch.zeros(3, 4)) for found in orthogonal([torch.zeros(3, 4)] * count))


@pytest.mark.parametrize("shapes", [[(6, 10)], [(12, 5)], [(6, 10), (10, 6), (4, 7), (6, 10)]])
def test_matrices_are_updated_as_by_torchs_muon(shapes, monkeypatch):
    """By Jordan's iterations; torch's are in bfloat16, so that single numbers differ by up to a tenth of the largest."""
    monkeypatch.setattr("sensorium.recipe.muon.QUINTICS", ((3.4445, -4.7750, 2.0315),) * 5)
    monkeypatch.setattr("sensorium.recipe.muon.SAFETY", 1.0)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(w.detach().clone()) for w in ours]
    mine = Muon([{"params": ours, MATRICES: True, "weight_decay": 0.1}], 0.02, (0.9, 0.95))
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        before = [w.detach().clone() for w in theirs]
        for w, v in zip(ours, theirs, strict=True):
            w.data.copy_(v.data)
            w.grad = torch.randn(w.shape)
            v.grad = w.grad.clone()
        mine.step()
        other.step()
        for w, v, old in zip(ours, theirs, before, strict=True):
            assert (w - v).abs().max() <= 0.1 * (v - old).abs().max()


class Small(Method):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, batch):
        x = self.norm(self.conv(self.stem(batch["image"]))).relu().mean((2, 3))
        return {"loss": self.head(self.hidden(x).relu()).square().mean()}


def test_the_first_and_the_last_layer_and_vectors_are_adamws():
    method = Small()
    optimizer = muon(1e-2, 0.1)(method)
    names = {id(p): n for n, p in method.named_parameters()}
    found = {
        matrices: {names[id(p)] for g in optimizer.param_groups if g[MATRICES] is matrices for p in g["params"]}
        for matrices in (True, False)
    }
    assert found[True] == {"conv.weight", "hidden.weight"}
    assert found[False] == {n for n, p in method.named_parameters() if p.requires_grad} - found[True]
    decays = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays["conv.bias"] == decays["norm.weight"] == 0
    assert decays["conv.weight"] == decays["head.weight"] == 0.1


def test_the_rest_is_updated_as_by_adamw():
    torch.manual_seed(0)
    ours, theirs = Small(), Small()
    theirs.load_state_dict(ours.state_dict())
    batch = {"image": torch.randn(5, 3, 8, 8)}
    mine = muon(1e-2, 0.1)(ours)
    other = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for method, optimizer in ((ours, mine), (theirs, other)):
        method(batch)["loss"].backward()
        optimizer.step()
    for name in ("stem.weight", "head.weight"):
        assert (ours.get_parameter(name) - theirs.get_parameter(name)).abs().max() <= 1e-7, name


def test_a_step_goes_on_from_its_state():
    torch.manual_seed(0)
    methods = [Small(), Small()]
    methods[1].load_state_dict(methods[0].state_dict())
    steps = [Step(m, muon(1e-2, 0.1), lambda f: 1 - f) for m in methods]
    batches = [{"image": torch.randn(4, 3, 8, 8)} for _ in range(6)]
    losses = [float(steps[0]([b], Progress(k, 0, k / 6))["loss"]) for k, b in enumerate(batches)]
    assert losses[-1] < losses[0]
    for k, b in enumerate(batches[:3]):
        steps[1]([b], Progress(k, 0, k / 6))
    other = Small()
    other.load_state_dict(methods[1].state_dict())
    resumed = Step(other, muon(1e-2, 0.1), lambda f: 1 - f)
    resumed.load_state_dict(steps[1].state_dict())
    for k in range(3, 6):
        resumed([batches[k]], Progress(k, 0, k / 6))
    for name, value in methods[0].state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    ("better", "given", "trained", "by", "rate"),
    [
        (True, None, False, "muon", 1e-2),
        (True, "adamw", False, "adamw", 2e-3),
        (True, None, True, "adamw", 2e-3),
        (False, None, False, "adamw", 2e-3),
        (False, "muon", False, "muon", 1e-2),
    ],
)
def test_networks_that_draw(better: bool, given: Any, trained: bool, by: str, rate: float) -> None:
    s = Settings()
    made = velocity_network("unet-micro", 8, 0)
    build = drawing_optimizer(
        given, None, made, 64, s, adamw_rate=2e-3, weight_decay=0.0, trained=trained, better=better
    )
    assert (s["optimizer"].value, s["lr"].value) == (by, pytest.approx(rate / 2))
    assert isinstance(build(made), Muon) == (by == "muon")


def test_a_network_of_two_matrices_has_nothing_for_muon():
    with pytest.raises(SensoriumError, match="no matrices but the first and the last"):
        muon(1e-2, 0.0)(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
