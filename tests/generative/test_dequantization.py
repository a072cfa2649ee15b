"""Learned noise of normalizing flows: its density against autograd, the bound against probabilities by integration."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sensorium.data.images.prepare import Situation
from sensorium.generative.flow import NormalizingFlow, initialized
from sensorium.generative.glow.method import Glow
from sensorium.generative.glow.recipe import glow
from sensorium.generative.nice.method import NICE
from sensorium.generative.nice.recipe import nice
from sensorium.generative.realnvp.method import RealNVP
from sensorium.generative.realnvp.recipe import realnvp
from sensorium.parts.density.coupling import Coupling, ResidualNet, checkerboard
from sensorium.parts.density.dequantization import LearnedNoise
from sensorium.parts.density.invertible import Invertible
from sensorium.parts.density.pixels import LEVELS

ON = Situation(8, 64, (), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "cpu", 1)


def shaken(module: Any, spread: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


class Narrow(Invertible):
    """Logistic values of a mean and a scale in levels."""

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        each = math.log(LEVELS / self.scale)
        return (x * LEVELS - self.mean) / self.scale, x.new_full((len(x),), x[0].numel() * each)

    def probability(self, level: Tensor) -> Tensor:
        low, high = ((level + side - self.mean) / self.scale for side in (0, 1))
        return torch.sigmoid(high) - torch.sigmoid(low)


def in_levels(log_density: Tensor, values: int) -> Tensor:
    """Of values in 0..1 -> of values in 0..256."""
    return log_density - values * math.log(LEVELS)


def middles(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (3, 2, 3)])
def test_the_density_of_the_noise_is_its_jacobian(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    noise = shaken(LearnedNoise(shape, 5))
    levels = torch.randint(LEVELS, (2, *shape)).double()
    uniform = torch.rand(2, *shape, dtype=torch.float64)
    made, log_q = noise((levels + uniform) / LEVELS)
    u = made * LEVELS - levels
    assert bool(((u > 0) & (u < 1)).all())
    assert (u - uniform).abs().max() > 0.02
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda e, level=levels[k]: noise((level + e)[None] / LEVELS)[0], uniform[k]
        )
        size = uniform[k].numel()
        found = -torch.linalg.slogdet(LEVELS * jacobian.reshape(size, size))[1]
        assert float(log_q[k].detach()) == pytest.approx(float(found), abs=1e-8)


def test_at_first_it_is_uniform() -> None:
    noise, x = LearnedNoise((3, 4, 5), 6), torch.rand(2, 3, 4, 5)
    made, log_q = noise(x)
    torch.testing.assert_close(made, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_q, torch.zeros(2), atol=1e-3, rtol=0)
    black, white = torch.zeros(1, 3, 4, 5), torch.full((1, 3, 4, 5), 1 - 2**-15 / LEVELS)
    for edge in (black, white):  # of e = 0 and the largest e
        made, log_q = noise(edge)
        assert made.isfinite().all()
        assert log_q.isfinite().all()
        torch.testing.assert_close(made, edge, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("mean", "scale"), [(128.3, 0.5), (127.9, 2.0), (128.0, 0.3)])
def test_the_bound_of_every_level_is_below_its_probability(mean: float, scale: float) -> None:
    """Levels that hold all but nothing of a density, one after the other; e is integrated over."""
    density = Narrow(mean, scale)
    learned = shaken(NormalizingFlow(density, (1, 1, 1), base="logistic", noise=4))
    uniform = NormalizingFlow(density, (1, 1, 1), base="logistic")
    levels, e = torch.arange(120, 137, dtype=torch.float64), middles(4000)
    x = ((levels[:, None] + e) / LEVELS).view(-1, 1, 1, 1)
    exact = density.probability(levels)
    assert scale > 1 or float(exact.sum()) > 0.999
    for method in (learned, uniform):
        found = in_levels(method.log_prob(x).detach(), 1).view(len(levels), -1)
        torch.testing.assert_close(found.exp().mean(1), exact, atol=0, rtol=1e-3)  # no mass is lost, whatever q
        assert bool((found.mean(1) < exact.log()).all())


@pytest.mark.parametrize("name", ["NICE", "RealNVP"])
def test_the_bound_of_two_values_of_a_flow(name: str) -> None:
    """The same of two values that depend on each other."""
    torch.manual_seed(0)
    make = {"NICE": lambda n: NICE((1, 1, 2), hidden=6, layers=3, depth=1, noise=n),
            "RealNVP": lambda n: RealNVP((1, 1, 2), width=3, blocks=1, scales=1, noise=n)}[name]  # fmt: skip
    learned, uniform = make(4), make(0)
    shaken(learned, 0.1)
    uniform.double().layers.load_state_dict(learned.layers.state_dict())
    e = middles(300)
    inside = torch.cartesian_prod(e, e)
    for level in ((0, 0), (3, 255), (100, 101)):
        x = ((torch.tensor(level) + inside) / LEVELS).view(-1, 1, 1, 2)
        one, other = (in_levels(method.log_prob(x).detach(), 2) for method in (learned, uniform))
        probability = other.exp().mean()
        torch.testing.assert_close(one.exp().mean(), probability, atol=0, rtol=1e-2)
        assert one.mean() < probability.log()
        assert not torch.allclose(one, other, atol=1e-2)


def test_learning_the_noise_closes_the_gap_of_uniform_noise() -> None:
    """Of a level whose density is nearly all in its upper half; the density itself does not learn."""
    torch.manual_seed(0)
    density = Narrow(128.9, 0.1)
    method = NormalizingFlow(density, (1, 1, 1), base="logistic", noise=8).double()
    x = ((128 + middles(300)) / LEVELS).view(-1, 1, 1, 1)
    best = float(density.probability(torch.tensor(128.0, dtype=torch.float64)).log())
    bounds = []
    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    for _ in range(200):
        bound = in_levels(method.log_prob(x), 1).mean()
        bounds.append(float(bound.detach()))
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
    plain = in_levels(NormalizingFlow(density, (1, 1, 1), base="logistic").log_prob(x), 1).mean()
    assert bounds[0] == pytest.approx(float(plain), abs=1e-6)
    assert best - bounds[0] > 1
    assert best > bounds[-1] > best - 0.1 * (best - bounds[0])


FLOWS = {
    "NICE": lambda noise: NICE((1, 3, 3), hidden=6, layers=2, depth=1, noise=noise),
    "RealNVP": lambda noise: RealNVP((3, 4, 4), width=3, blocks=1, scales=2, noise=noise),
    "Glow": lambda noise: Glow((1, 4, 6), width=4, steps=1, scales=1, noise=noise),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows_with_learned_noise(name: str) -> None:
    torch.manual_seed(0)
    uniform = FLOWS[name](0)
    torch.manual_seed(0)
    learned = FLOWS[name](4)
    batch = {"image": torch.rand(3, *learned.shape)}
    for method in (uniform, learned):
        initialized(method.layers, batch["image"])
    assert [m.bound for m in (uniform, learned)] == ["uniform noise", "learned noise"]
    assert not any(key.startswith("noise") for key in uniform.state_dict())
    torch.testing.assert_close(learned(batch)["loss"], uniform(batch)["loss"], atol=1e-3, rtol=1e-5)

    shaken(learned, 0.1)
    batch = {"image": batch["image"].double()}
    learned(batch)["loss"].backward()
    parameters = [p for p in learned.parameters() if p.grad is not None]
    silent = [
        n for n, p in learned.named_parameters() if n.startswith("noise") and (p.grad is None or not p.grad.any())
    ]
    assert not silent
    way = [torch.randn_like(p) for p in parameters]
    slope = sum(float((p.grad * w).sum()) for p, w in zip(parameters, way, strict=True) if p.grad is not None)
    losses = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, w in zip(parameters, way, strict=True):
                p.add_(step * w)
            losses.append(float(learned(batch)["loss"]))
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-4)
    drawn = learned.sample(4, seed=1)
    assert drawn.shape == (4, *learned.shape)


def test_a_coupling_with_something_given_is_inverted() -> None:
    torch.manual_seed(0)
    coupling = shaken(Coupling(ResidualNet(3, 4, 5, 1), checkerboard(3, 2), "tanh", 2))
    x, given = torch.randn(2, 2, 3, 2, dtype=torch.float64), torch.randn(2, 1, 3, 2, dtype=torch.float64)
    z, _ = coupling(x, given)
    torch.testing.assert_close(coupling.inverse(z, given), x)
    assert not torch.allclose(coupling(x, -given)[0], z)


@pytest.mark.parametrize("recipe", [nice, realnvp, glow])
def test_recipes_take_either_noise(recipe) -> None:
    assert recipe(ON).method.noise is None
    made = recipe(ON, dequantization="variational")
    assert isinstance(made.method.noise, LearnedNoise)
    assert made.settings["dequantization"].value == "variational"
