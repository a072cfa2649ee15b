"""Normalizing flows: densities against autograd, layers against normflows, and what all of them promise."""

import math

import normflows
import pytest
import torch
import zuko
from torch import Tensor

from sensorium.base.draw import Draw
from sensorium.data.rows import ArrayRows
from sensorium.generative.flow import LEVELS, NormalizingFlow, beginning_with, dequantized_views, initialized, scales_of
from sensorium.generative.glow.method import Convolutions, Glow
from sensorium.generative.maf.method import MAF
from sensorium.generative.nice.method import NICE
from sensorium.generative.planar.method import PlanarFlow
from sensorium.generative.realnvp.method import RealNVP
from sensorium.parts.density.coupling import Autoregressive, Coupling
from sensorium.parts.density.invertible import ActNorm, Mixing, Planar, Radial

FLOWS = {
    "NICE": (lambda s: NICE(s, hidden=7, layers=3, depth=2), [(1, 3, 3), (3, 2, 4)]),
    "RealNVP": (lambda s: RealNVP(s, width=4, blocks=1, scales=scales_of(s[1])), [(1, 3, 5), (3, 8, 8)]),
    "RealNVP of two scales": (lambda s: RealNVP(s, width=4, blocks=2, scales=2), [(1, 4, 6), (3, 3, 3)]),
    "RealNVP of three scales": (lambda s: RealNVP(s, width=3, blocks=1, scales=3), [(1, 8, 4)]),
    "Glow": (lambda s: Glow(s, width=5, steps=2, scales=1), [(1, 4, 6), (3, 2, 2), (1, 3, 3)]),
    "Glow of two scales": (lambda s: Glow(s, width=5, steps=2, scales=2), [(1, 4, 8)]),
    "MAF": (lambda s: MAF(s, hidden=(9, 7), layers=3), [(1, 3, 3), (3, 2, 2)]),
    "planar": (lambda s: PlanarFlow(s, layers=4), [(1, 3, 3)]),
    "radial": (lambda s: PlanarFlow(s, layers=4, radial=True), [(3, 2, 3)]),
}
CASES = [(name, shape) for name, (_, shapes) in FLOWS.items() for shape in shapes]


def flow(name: str, shape: tuple[int, ...], spread: float = 0.2) -> NormalizingFlow:
    torch.manual_seed(0)
    found = FLOWS[name][0](shape)
    initialized(found.layers, torch.rand(64, *shape))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return found.double().eval()


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_the_density_is_that_of_z_and_the_jacobian(name: str, shape: tuple[int, ...]) -> None:
    found, x = flow(name, shape), torch.rand(2, *shape, dtype=torch.float64)
    got = found.log_prob(x).detach()
    for k in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda x: found.encode(x[None]).flatten(), x[k]).reshape(
            x[k].numel(), -1
        )
        z = found.encode(x[k, None]).flatten().detach()
        if found.base == "normal":
            base = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
        else:  # a logistic distribution's, of Larochelle's form exp(-z) / (1 + exp(-z))^2
            base = (-z - 2 * torch.log1p((-z).exp())).sum()
        assert float(base + torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(got[k]), abs=1e-8)
    torch.testing.assert_close(found.decode(found.encode(x)), x, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_samples_follow_seed_and_temperature(name: str, shape: tuple[int, ...]) -> None:
    found = flow(name, shape, 0.02)
    drawn = found.sample(6, seed=1)
    assert drawn.shape == (6, *shape)
    assert torch.equal(drawn, found.sample(6, seed=1))
    assert not torch.equal(drawn, found.sample(6, seed=2))
    cold = found.sample(6, seed=1, temperature=0.0)
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))  # the image of z = 0
    pixels = found.to_pixels(drawn)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (6, 3, *shape[1:]))
    assert torch.equal(found.to_pixels(found.from_pixels(pixels)), pixels)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_at_first_it_is_an_affine_map_of_the_data(name: str, shape: tuple[int, ...]) -> None:
    """Networks begin with zeros, and ActNorm with the data: z has about the mean 0 and the variance 1."""
    torch.manual_seed(0)
    found, x = FLOWS[name][0](shape), torch.rand(400, *shape)
    initialized(found.layers, x)
    z = found.encode(x).detach().flatten(1)
    if name not in ("NICE", "planar", "MAF"):  # these have no ActNorm, a first bend, random weights
        assert float(z.mean().abs()) < 0.2
        assert 0.4 < float(z.var()) < 1.7


def test_views_hold_the_pixels_and_their_noise() -> None:
    pixels = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    for channels in (1, 3):
        views = dequantized_views(channels)
        x = views({"image": pixels}, Draw.seeded(0, 0, 50))["image"]
        assert x.shape == (50, channels, 4, 4)
        wanted = pixels.float().mean(1, keepdim=True).round() if channels == 1 else pixels.float()
        assert torch.equal((x * LEVELS).floor(), wanted)
        assert float((x * LEVELS - wanted).mean()) == pytest.approx(0.5, abs=0.03)


def test_actnorm_begins_with_the_rows_once() -> None:
    rows = ArrayRows({"image": torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8).numpy()})
    found = Glow((3, 4, 4), width=5, steps=1, scales=1)
    begin = beginning_with(found, dequantized_views(3))
    assert begin(rows, None, False) is rows
    before = {name: value.clone() for name, value in found.state_dict().items()}
    assert float(before["layers.layers.0.log_scale"].abs().min()) > 0.5  # pixels of 0..1 have a deviation of 0.29
    other = ArrayRows({"image": torch.zeros(40, 3, 4, 4, dtype=torch.uint8).numpy()})
    begin(other, None, False)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


def test_bits_are_of_eight_bit_values() -> None:
    """A density of 1 on 0..1 is 8 bits a value."""

    class Uniform(NormalizingFlow):
        def log_prob(self, x: Tensor, ensemble: int = 1) -> Tensor:
            return x.new_zeros(len(x), requires_grad=True)

    found = Uniform(ActNorm(1), (1, 2, 2))({"image": torch.rand(3, 1, 2, 2)})
    assert float(found["bits_per_dim"]) == pytest.approx(8)


# --- normflows ---


@pytest.mark.parametrize("size", [1, 2, 7])
def test_planar_and_radial_layers(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, size)
    theirs, ours = normflows.flows.Planar((size,)), Planar(size)
    with torch.no_grad():
        for name in "wu":
            getattr(ours, name).copy_(getattr(theirs, name)[0])
        theirs.b.fill_(0.3)
        ours.b.fill_(0.3)
    compare(theirs(x), ours(x))
    theirs, ours = normflows.flows.Radial((size,)), Radial(size)
    with torch.no_grad():
        ours.center.copy_(theirs.z_0[0])
        ours.raw_alpha.copy_(theirs.alpha.abs().log()[0])
        ours.raw_beta.copy_(theirs.beta[0])
    compare(theirs(x), ours(x))


@pytest.mark.parametrize("channels, side", [(2, 4), (6, 3)])
def test_a_step_of_glow(channels: int, side: int) -> None:
    """normflows' GlowBlock, from data to z: (z - t) exp(-s), the matrix, (b - shift) sigmoid(r + 2), parameters in turn."""
    torch.manual_seed(0)
    theirs = normflows.flows.GlowBlock(channels, 8, init_zeros=False)
    x = torch.randn(5, channels, side, side)
    theirs.inverse(x)  # begins with a batch
    coupling, mixing, norm = theirs.flows
    map_ = coupling.flows[1].param_map

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = map_

        def forward(self, still: Tensor) -> Tensor:
            found = self.net(still)
            shift, raw = found[:, 0::2], found[:, 1::2]
            return torch.cat([raw, -shift * torch.sigmoid(raw + 2)], 1)

    ours = torch.nn.ModuleList([ActNorm(channels), Mixing(channels), Coupling(Theirs(), None, "sigmoid")])
    with torch.no_grad():
        ours[0].log_scale.copy_(-norm.s.flatten())
        ours[0].shift.copy_(-norm.t.flatten())
        ours[1].permutation.copy_(mixing.P)
        ours[1].sign.copy_(mixing.sign_S)
        for mine, name in (("lower", "L"), ("upper", "U"), ("log_scale", "log_S")):
            getattr(ours[1], mine).copy_(getattr(mixing, name))
    z, total = x, torch.zeros(5)
    for layer in ours:
        z, log_det = layer(z)
        total = total + log_det
    compare(theirs.inverse(x), (z, total))


# --- zuko ---


@pytest.mark.parametrize(
    "dtype, outputs, gradients", [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 1e-4)], ids=str
)
@pytest.mark.parametrize("size, hidden", [(1, (3,)), (5, (9, 11)), (12, (40,))])
def test_an_autoregressive_layer(size: int, hidden: tuple[int, ...], dtype: torch.dtype, outputs, gradients) -> None:
    """zuko solves its inverse by passes over all values, here of the same mu and alpha."""
    torch.manual_seed(0)
    ours = Autoregressive(torch.randperm(size), hidden).to(dtype)

    def affine(x: Tensor) -> zuko.transforms.Transform:
        mu, alpha = ours.network(x).chunk(2, -1)
        moved = zuko.transforms.AdditiveTransform(-mu)
        scaled = zuko.transforms.MonotonicAffineTransform(torch.zeros_like(mu), -alpha)  # bounded likewise
        return zuko.transforms.DependentTransform(zuko.transforms.ComposedTransform(moved, scaled), 1)

    theirs, x = zuko.transforms.AutoregressiveTransform(affine, passes=size), torch.randn(7, size, dtype=dtype)
    same(theirs, ours, x, outputs, gradients)


@pytest.mark.parametrize(
    "dtype, outputs, gradients", [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 1e-4)], ids=str
)
@pytest.mark.parametrize("size", [2, 7])
def test_an_affine_coupling(size: int, dtype: torch.dtype, outputs, gradients) -> None:
    torch.manual_seed(0)
    still = torch.arange(size) % 2 == 0
    ours = Coupling(torch.nn.Linear(size, 2 * size), still.to(dtype), "tanh", size).to(dtype)

    def affine(a: Tensor) -> zuko.transforms.Transform:
        raw, shift = ours.network(a.new_zeros(len(a), size).masked_scatter(still, a)).chunk(2, -1)
        assert ours.factor is not None
        log_scale = torch.tanh(raw) * ours.factor
        return zuko.transforms.DependentTransform(Affine(log_scale[:, ~still], shift[:, ~still]), 1)

    theirs, x = zuko.transforms.CouplingTransform(affine, still), torch.randn(7, size, dtype=dtype)
    same(theirs, ours, x, outputs, gradients)


class Affine(zuko.transforms.Transform):
    """y = exp(a) x + b; zuko's own bounds a."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True

    def __init__(self, log_scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.log_scale, self.shift = log_scale, shift

    def _call(self, x: Tensor) -> Tensor:
        return self.log_scale.exp() * x + self.shift

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale


def same(theirs, ours, x: Tensor, outputs: float, gradients: float) -> None:
    """z, log |det|, the inverse, and the gradients of all weights and of x."""
    found = []
    for call in (ours, theirs.call_and_ladj):
        given = x.clone().requires_grad_()
        z, log_det = call(given)
        loss = (z.square().sum(-1) / 2 - log_det).sum()
        found.append(((z, log_det), torch.autograd.grad(loss, [given, *ours.parameters()])))
    for tolerance, mine, other in zip((outputs, gradients), *found, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)
    z = found[0][0][0].detach()
    torch.testing.assert_close(
        ours.inverse(z), theirs.inv(z).detach(), atol=10 * outputs, rtol=10 * outputs, check_dtype=True
    )


def test_the_networks_of_glow_begin_with_zeros_and_grow() -> None:
    net = Convolutions(2, 4, 6)
    assert not net(torch.randn(3, 2, 5, 5)).any()
    with torch.no_grad():
        net.last.convolution.bias.fill_(1.0)
        net.last.log_scale.fill_(0.5)
    torch.testing.assert_close(net(torch.zeros(1, 2, 3, 3)), torch.full((1, 4, 3, 3), math.exp(1.5)))


def compare(theirs: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> None:
    """Values and gradients of the inputs' sum."""
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_gradients_of_a_planar_layer() -> None:
    torch.manual_seed(0)
    theirs, ours, x = normflows.flows.Planar((4,)), Planar(4), torch.randn(6, 4)
    with torch.no_grad():
        for name in "wu":
            getattr(ours, name).copy_(getattr(theirs, name)[0])
    for layer in (theirs, ours):
        z, log_det = layer(x)
        (z.square().sum() / 2 - log_det.sum()).backward()
    for name in "wub":
        torch.testing.assert_close(
            getattr(ours, name).grad.flatten(), getattr(theirs, name).grad.flatten(), atol=1e-4, rtol=1e-4
        )


def test_scales_and_what_does_not_fit() -> None:
    assert [scales_of(side) for side in (8, 9, 16, 28, 32, 33, 37, 64)] == [1, 1, 2, 2, 3, 1, 1, 3]
    with pytest.raises(ValueError, match="divided 2 times, not 6 x 4"):
        Glow((1, 6, 4), scales=2)
    with pytest.raises(ValueError, match="divided 1 times, not 5 x 4"):
        RealNVP((1, 5, 4), scales=2)
    with pytest.raises(ValueError, match="at least two values"):
        NICE((1, 1, 1))
