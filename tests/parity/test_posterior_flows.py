"""Flows that bend a posterior, given what an encoder says: IAF's steps and planar flows with parameters of each sample's own."""

import normflows
import pytest
import torch
import zuko
from torch import Tensor

from sensorium.parts.density.coupling import GatedAutoregressive
from sensorium.parts.density.invertible import Chain, Planar

DTYPES = pytest.mark.parametrize(
    "dtype, outputs, gradients", [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 1e-4)], ids=str
)
SIZES = pytest.mark.parametrize(
    "size, context, hidden", [(1, 3, (4,)), (5, 0, (9, 11)), (7, 5, (13,)), (12, 1, (30, 20))], ids=str
)


def step(size: int, context: int, hidden: tuple[int, ...], dtype: torch.dtype) -> GatedAutoregressive:
    torch.manual_seed(0)
    return GatedAutoregressive(torch.randperm(size), hidden, context, seed=1).to(dtype)


def seen(z: Tensor, h: Tensor | None) -> Tensor:
    return z if h is None else torch.cat([z, h], 1)


def alike(ours, theirs, given: list[Tensor], weights: list[Tensor], outputs: float, gradients: float) -> None:
    """z, log |det|, and the gradients of what is given and of all weights."""
    found = []
    for call in (ours, theirs):
        leaves = [one.clone().requires_grad_() for one in given]
        z, log_det = call(*leaves)
        loss = (z.square().sum(-1) / 2 + z.sin().sum(-1) - log_det).sum()
        found.append(((z, log_det), torch.autograd.grad(loss, [*leaves, *weights])))
    for tolerance, mine, other in zip((outputs, gradients), *found, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


@DTYPES
@SIZES
def test_a_step_is_the_papers(size, context, hidden, dtype: torch.dtype, outputs, gradients) -> None:
    """Eq. 12 - 14 as they stand, a value after the other: each sees the values before it in the order, the others are hidden from it."""
    ours = step(size, context, hidden, dtype)

    def theirs(z: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        values, log_det = [], torch.zeros(len(z), dtype=dtype)
        for i in range(size):
            before = (ours.places < ours.places[i]).to(dtype)
            m, s = ours.network(seen(z * before, h)).chunk(2, 1)
            sigma = 1 / (1 + (-s[:, i]).exp())
            values.append(sigma * z[:, i] + (1 - sigma) * m[:, i])
            log_det = log_det + sigma.log()
        return torch.stack(values, 1), log_det

    given = [torch.randn(6, n, dtype=dtype) for n in (size, context) if n]
    alike(ours, theirs, given, list(ours.parameters()), outputs, gradients)


@DTYPES
@SIZES
def test_a_step_is_zukos(size, context, hidden, dtype: torch.dtype, outputs, gradients) -> None:
    """Its transform of an autoregressive function, here y = exp(log sigma) x + (1 - sigma) m; it inverts by passes over all values."""
    ours = step(size, context, hidden, dtype)

    def transform(h: Tensor | None) -> zuko.transforms.Transform:
        def affine(z: Tensor) -> zuko.transforms.Transform:
            m, s = ours.network(seen(z, h)).chunk(2, -1)
            gate = torch.sigmoid(s)
            return zuko.transforms.DependentTransform(Affine(gate, (1 - gate) * m), 1)

        return zuko.transforms.AutoregressiveTransform(affine, passes=size)

    given = [torch.randn(6, n, dtype=dtype) for n in (size, context) if n]
    theirs = lambda z, h=None: transform(h).call_and_ladj(z)  # noqa: E731
    alike(ours, theirs, given, list(ours.parameters()), outputs, gradients)
    h = given[1] if context else None
    other = torch.randn(6, size, dtype=dtype)
    wanted = transform(h).inv(other).detach()
    torch.testing.assert_close(ours.inverse(other, h), wanted, atol=100 * outputs, rtol=100 * outputs)


class Affine(zuko.transforms.Transform):
    """y = a x + b."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def _call(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift) / self.scale

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale.log()


@DTYPES
@pytest.mark.parametrize("size, context", [(1, 2), (2, 1), (7, 5)])
def test_planar_flows_of_each_samples_own_parameters_are_normflows(size, context, dtype, outputs, gradients) -> None:
    torch.manual_seed(0)
    ours = Planar(size, context).to(dtype)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert ours.told is not None

    def theirs(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        values, log_dets = [], []
        for one, told in zip(x, ours.told(h), strict=True):
            w, u, b = told.split([size, size, 1])
            layer = normflows.flows.Planar((size,), u=torch.zeros(size), w=torch.zeros(size), b=torch.zeros(1))
            for name, value in (("w", ours.w + w), ("u", ours.u + u), ("b", ours.b + b)):
                delattr(layer, name)
                setattr(layer, name, value if name == "b" else value[None])
            z, log_det = layer(one[None])
            values.append(z[0])
            log_dets.append(log_det[0])
        return torch.stack(values), torch.stack(log_dets)

    given = [torch.randn(6, n, dtype=dtype) for n in (size, context)]
    alike(ours, theirs, given, list(ours.parameters()), outputs, gradients)


@pytest.mark.parametrize("size, context", [(1, 2), (2, 0), (6, 4)])
def test_causality(size: int, context: int) -> None:
    """Of wide layers: a value depends on itself, on those before it in the order, and on the whole context."""
    torch.manual_seed(0)
    ours = GatedAutoregressive(torch.randperm(size), (400, 400), context).double()
    given = [torch.randn(n, dtype=torch.float64) for n in (size, context) if n]
    over = torch.autograd.functional.jacobian(lambda *x: ours(*(one[None] for one in x))[0][0], tuple(given))
    assert torch.equal(over[0] != 0, ours.places[:, None] >= ours.places)
    assert not context or bool((over[1] != 0).all())


def test_a_chain_hands_what_is_given_to_each_of_its_steps() -> None:
    torch.manual_seed(0)
    steps = [GatedAutoregressive(torch.arange(4), (9,), 3), Planar(4, 3)]
    z, h = torch.randn(5, 4), torch.randn(5, 3)
    one, first = steps[0](z, h)
    two, second = steps[1](one, h)
    got = Chain(*steps)(z, h)
    assert torch.equal(got[0], two)
    torch.testing.assert_close(got[1], first + second)
    torch.testing.assert_close(Chain(*steps).inverse(got[0], h), z, atol=1e-5, rtol=1e-5)
    other = Chain(*steps)(z, h.flip(0))[0]
    assert not torch.isclose(other[0], got[0][0]).all()


def test_a_step_changes_little_at_first() -> None:
    """The gate is nearly open: s is about 2."""
    torch.manual_seed(0)
    ours = GatedAutoregressive(torch.arange(16), (64, 64), 8)
    z = torch.randn(200, 16)
    after, log_det = ours(z, torch.randn(200, 8))
    assert float((after - z).detach().std()) < 0.3
    assert float(log_det.detach().mean()) / 16 == pytest.approx(-0.127, abs=0.03)  # log sigmoid(2)
