"""Invertible layers: one contract, inverse and log-determinant against autograd, for each of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from sensorium.parts.density import invertible as part
from sensorium.parts.density.coupling import Autoregressive, Coupling, Factored, GatedAutoregressive, checkerboard
from sensorium.parts.density.invertible import Chain, Invertible

VECTOR, IMAGE, ODD = (5,), (4, 4, 6), (3, 5, 3)


class Net(nn.Module):
    """Any function of a part of the values."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(a, b) for a, b in ((inputs, 11), (11, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x.movedim(1, -1)))).movedim(-1, 1)


class Told(Invertible):
    """A layer with a context that is the same for all samples."""

    def __init__(self, layer: Invertible, context: int) -> None:
        super().__init__()
        self.layer, self.context = layer, nn.Parameter(torch.randn(context))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x, self.context.expand(len(x), -1))

    def inverse(self, z: Tensor) -> Tensor:
        return self.layer.inverse(z, self.context.expand(len(z), -1))  # pyright: ignore[reportCallIssue]


def chain(shape: tuple[int, ...]) -> Chain:
    """A small Glow."""
    after = (shape[0] * 4, shape[1] // 2, shape[2] // 2)
    steps = [part.ActNorm(after[0]), part.Mixing(after[0]), Coupling(Net(after[0] // 2, after[0]), None, "sigmoid")]
    return Chain(part.Squeeze(), *steps, Factored(Net(after[0] // 2, after[0]), part.ActNorm(after[0] // 2)))


LAYERS = {
    "planar": (lambda s: part.Planar(*s), [VECTOR, (1,)]),
    "radial": (lambda s: part.Radial(*s), [VECTOR, (1,)]),
    "scaling": (lambda s: part.Scaling(*s), [VECTOR, ODD]),
    "permuted": (lambda s: part.Permuted(torch.randperm(*s)), [VECTOR]),
    "flat": (lambda s: part.Flat(*s), [ODD]),
    "actnorm": (lambda s: part.ActNorm(s[0]), [VECTOR, IMAGE]),
    "mixing": (lambda s: part.Mixing(s[0]), [IMAGE, ODD, (1, 2, 2)]),
    "squeeze": (lambda s: part.Squeeze(), [IMAGE]),
    "NICE": (lambda s: Coupling(Net(s[0], s[0]), torch.arange(s[0]) % 2), [VECTOR]),
    "checkerboard": (lambda s: Coupling(Net(s[0], 2 * s[0]), checkerboard(*s[1:]), "tanh", s[0]), [IMAGE, ODD]),
    "other checkerboard": (lambda s: Coupling(Net(s[0], 2 * s[0]), checkerboard(*s[1:], True), "tanh", s[0]), [ODD]),
    "channels": (lambda s: Coupling(Net(s[0] // 2, s[0]), None, "sigmoid"), [IMAGE]),
    "channels by tanh": (lambda s: Coupling(Net(s[0] // 2, s[0]), None, "tanh", s[0] // 2), [IMAGE]),
    "MAF": (lambda s: Autoregressive(torch.randperm(*s), (13, 9)), [VECTOR, (1,)]),
    "IAF": (lambda s: GatedAutoregressive(torch.randperm(*s), (13, 9)), [VECTOR, (1,)]),
    "IAF with a context": (lambda s: Told(GatedAutoregressive(torch.randperm(*s), (13, 9), 3), 3), [VECTOR, (1,)]),
    "planar with a context": (lambda s: Told(part.Planar(*s, context=3), 3), [VECTOR, (1,)]),
    "reversed": (lambda s: part.Reversed(part.Scaling(*s)), [VECTOR]),
    "factored": (lambda s: Factored(Net(s[0] // 2, s[0]), part.Mixing(s[0] // 2)), [IMAGE]),
    "a chain": (chain, [IMAGE]),
}
CASES = [(name, shape) for name, (_, shapes) in LAYERS.items() for shape in shapes]


def layer(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Invertible:
    torch.manual_seed(0)
    found = LAYERS[name][0](shape)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return found.to(dtype)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_inverse_and_determinant(name: str, shape: tuple[int, ...]) -> None:
    found, x = layer(name, shape), torch.randn(3, *shape, dtype=torch.float64)
    z, log_det = found(x)
    assert z.shape == x.shape or name in ("flat", "squeeze", "a chain")
    assert log_det.shape == (3,)
    torch.testing.assert_close(found.inverse(z), x, atol=1e-9, rtol=1e-9)
    other = torch.randn_like(z)
    torch.testing.assert_close(found(found.inverse(other))[0], other, atol=1e-9, rtol=1e-9)
    for k in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x: found(x[None])[0][0], x[k]).reshape(x[k].numel(), -1)
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(log_det[k].detach()), abs=1e-9)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_single_precision(name: str, shape: tuple[int, ...]) -> None:
    found, x = layer(name, shape, torch.float32), torch.randn(3, *shape)
    z, log_det = found(x)
    assert (z.dtype, log_det.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found.inverse(z), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_det.double(), layer(name, shape)(x.double())[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, shape", [one for one in CASES if one[0] not in ("flat", "permuted", "squeeze")], ids=str
)
def test_all_that_is_trained_has_a_gradient(name: str, shape: tuple[int, ...]) -> None:
    found = layer(name, shape)
    z, log_det = found(torch.randn(3, *shape, dtype=torch.float64))
    (z.square().sum() / 2 - log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in found.parameters())


@pytest.mark.parametrize("margin", [1e-6, 0.05, 0.3])
def test_logit(margin: float) -> None:
    found, x = part.Logit(margin), torch.rand(4, 7, dtype=torch.float64)
    z, log_det = found(x)
    torch.testing.assert_close(found.inverse(z), x)
    each = torch.autograd.functional.jacobian(lambda x: found(x)[0].sum(), x)
    torch.testing.assert_close(each.log().sum(1), log_det)
    assert bool(found(torch.tensor([[0.0, 1.0]]).double())[0].isfinite().all())
    with pytest.raises(ValueError, match=r"below 0\.5"):
        part.Logit(0.5)


def test_densities_stay_densities() -> None:
    """A normal density moved by each layer of the plane still has the integral 1."""
    at = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(at, at)
    for make in (part.Planar, part.Radial, lambda _: Autoregressive(torch.arange(2), (9,))):
        torch.manual_seed(1)
        found = make(2).double()
        with torch.no_grad():
            z, log_det = found(grid)
        density = (-z.square().sum(1) / 2 - math.log(2 * math.pi) + log_det).exp()
        assert float(density.sum() * (at[1] - at[0]) ** 2) == pytest.approx(1, abs=1e-3)


def test_actnorm_begins_with_the_data() -> None:
    x = torch.randn(50, 3, 4, 5) * torch.tensor([0.1, 1.0, 7.0]).view(3, 1, 1) + 3
    found = part.ActNorm(3)
    found.initialize(x)
    z = found(x)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_far_values_come_back() -> None:
    for make in (part.Planar, part.Radial):
        torch.manual_seed(2)
        found = make(4).double()
        x = torch.randn(20, 4, dtype=torch.float64) * 10.0 ** torch.arange(-3, 5).repeat(3)[:20, None]
        torch.testing.assert_close(found.inverse(found(x)[0]), x, rtol=1e-8, atol=1e-8)
