"""A VAE whose posterior a flow has changed: its bound by torch's distributions, against the truth, and what it refuses."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

import sensorium
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.generative.vae.method import VAE
from sensorium.generative.vae.network import flow_of
from sensorium.generative.vae.recipe import vae
from sensorium.parts.density.coupling import GatedAutoregressive
from sensorium.parts.density.invertible import Chain, Planar
from sensorium.parts.density.pixels import BernoulliPixels
from sensorium.recipe.trained import Trained

LATENTS, CONTEXT = 2, 5
KINDS = pytest.mark.parametrize("planar", [False, True], ids=["IAF", "planar"])
GRAY = (0.5, 0.5, 0.5)


class Linear(nn.Module):
    """A linear map of all values, to a shape."""

    def __init__(self, inputs: int, *outputs: int) -> None:
        super().__init__()
        self.linear, self.outputs = nn.Linear(inputs, math.prod(outputs)), outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).view(len(x), *self.outputs)


def small(planar: bool, steps: int = 3, spread: float = 0.5, **how: Any) -> VAE:
    torch.manual_seed(0)
    encoder, decoder = Linear(4, 2 * LATENTS + CONTEXT), Linear(LATENTS, 1, 2, 2)
    flow = flow_of(LATENTS, steps, CONTEXT, planar=planar)
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *decoder.parameters(), *flow.parameters()]:
            parameter.add_(spread * torch.randn_like(parameter))
    return VAE(encoder, decoder, BernoulliPixels(), (1, 2, 2), LATENTS, flow=flow, **how).double()


def everything() -> Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).view(-1, 1, 2, 2)


def bound_of(found: VAE, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(x|z) and log q(z|x) - log p(z) [B], by torch's distributions and autograd's determinant of the flow."""
    mean, log_deviation, h = found.encoder(x).split([LATENTS, LATENTS, CONTEXT], 1)
    z, costs, ratios = mean + log_deviation.exp() * noise, [], []
    assert found.flow is not None
    for k in range(len(x)):
        moved = lambda one, k=k: found.flow(one[None], h[k, None])[0][0]  # noqa: E731
        last = moved(z[k])
        jacobian = torch.autograd.functional.jacobian(moved, z[k], create_graph=True)
        log_q = Normal(mean[k], log_deviation[k].exp()).log_prob(z[k]).sum() - jacobian.det().abs().log()
        ratios.append(log_q - Normal(0.0, 1.0).log_prob(last).sum())
        costs.append(-Independent(Bernoulli(logits=found.decoder(last[None])), 3).log_prob(x[k, None])[0])
    return torch.stack(costs), torch.stack(ratios)


@KINDS
@pytest.mark.parametrize("beta, free", [(1.0, 0.0), (3.0, 0.0), (1.0, 0.01), (2.0, 50.0)])
def test_the_loss_is_that_of_torchs_distributions(planar: bool, beta: float, free: float) -> None:
    """With free bits all latents are one group: 50 nats of each are more than there are, and then only the pixels have gradients."""
    found, x, noise = small(planar, beta=beta, free=free), everything()[:7], torch.randn(7, LATENTS).double()
    got = found({"image": x, "noise": noise})
    cost, ratio = bound_of(found, x, noise)
    wanted = cost.mean() + beta * ratio.mean().clamp(min=LATENTS * free if free else -math.inf)
    torch.testing.assert_close(got["loss"], wanted)
    for mine, other in zip(
        *(torch.autograd.grad(one, list(found.parameters())) for one in (got["loss"], wanted)), strict=True
    ):
        torch.testing.assert_close(mine, other)
    nats = float((cost.mean() + ratio.mean()).detach())
    assert float(got["bits_per_dim"]) == pytest.approx(nats / 4 / math.log(2))
    assert float(got["divergence"]) == pytest.approx(float(ratio.mean().detach()))
    assert "active" not in got


@KINDS
def test_importance_samples_approach_the_probability(planar: bool) -> None:
    """From below: of all 2^4 inputs, against the integral over z; of one sample it is the loss, of which flows are a part."""
    found, x = small(planar, spread=0.2).requires_grad_(False), everything()
    with torch.no_grad():  # about as wide as the prior, so that few samples suffice
        found.encoder.linear.weight.mul_(0.3)
        found.encoder.linear.bias[LATENTS : 2 * LATENTS] += 0.7
    at = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(at, at)
    weight = Normal(0.0, 1.0).log_prob(z).sum(1).exp() * 0.1**2
    p = Bernoulli(logits=found.decoder(z)).log_prob(x[:, None].squeeze(2)[:, None]).flatten(2).sum(2).exp() @ weight
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)
    truth, bounds = float((p * p.log()).sum()), []
    for samples, copies in ((1, 1000), (10, 200), (1000, 5)):
        each = found.log_prob(x.repeat(copies, 1, 1, 1), samples).view(copies, 16).mean(0)
        bounds.append(float((p * each).sum()))
    assert bounds[0] + 0.02 < bounds[1] < truth
    assert bounds[2] == pytest.approx(truth, abs=0.02)
    many = torch.multinomial(p, 20_000, replacement=True)
    loss = found({"image": x[many], "noise": torch.randn(20_000, LATENTS).double()})["loss"]
    assert -float(loss.detach()) == pytest.approx(bounds[0], abs=0.05)


@KINDS
def test_the_posterior_is_a_density(planar: bool) -> None:
    """q(z|x) of one image, by the inverse of the flow, has the integral 1 over z, and samples lie where it says."""
    found, x = small(planar, spread=0.3).requires_grad_(False), everything()[5:6]
    mean, log_deviation, h = found.encoder(x).split([LATENTS, LATENTS, CONTEXT], 1)
    assert found.flow is not None
    at = torch.linspace(-9, 9, 181, dtype=torch.float64)
    z = torch.cartesian_prod(at, at)
    first = found.flow.inverse(z, h.expand(len(z), -1))
    log_q = Normal(mean, log_deviation.exp()).log_prob(first).sum(1) - found.flow(first, h.expand(len(z), -1))[1]
    q = log_q.exp() * float(at[1] - at[0]) ** 2
    assert float(q.sum()) == pytest.approx(1, abs=1e-3)
    noise = torch.randn(20_000, LATENTS, dtype=torch.float64)
    drawn = found._gaussian(found.encoder(x).expand(20_000, -1), noise)[0]
    torch.testing.assert_close(drawn.mean(0), q @ z, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), (z - q @ z).T @ ((z - q @ z) * q[:, None]), atol=0.05, rtol=0.05)


@KINDS
def test_latents_of_pictures_are_where_the_flow_takes_the_mean(planar: bool) -> None:
    found, x = small(planar), everything()
    mean, _, h = found.encoder(x).split([LATENTS, LATENTS, CONTEXT], 1)
    assert found.flow is not None
    torch.testing.assert_close(found.encode(x), found.flow(mean, h)[0])
    torch.testing.assert_close(found._gaussian(found.encoder(x), torch.zeros(16, LATENTS).double())[0], found.encode(x))
    assert found.reconstruct(x).shape == (16, 3, 2, 4)
    torch.testing.assert_close(found.reconstruct(x)[:, :1, :, 2:], found.decode(found.encode(x)))


def test_orders_alternate() -> None:
    steps = [one for one in flow_of(3, 3, 2).layers if isinstance(one, GatedAutoregressive)]
    assert [one.places.tolist() for one in steps] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]
    assert all(isinstance(one, Planar) for one in flow_of(3, 3, 2, planar=True).layers)


def made(**settings: Any) -> Any:
    torch.manual_seed(0)
    on = Situation(8, 100, ("a", "b"), GRAY, GRAY, "cpu", 2)
    return vae(on, width=8, hidden=16, latents=4, **settings)


def test_settings() -> None:
    kinds = {"iaf": (GatedAutoregressive, 4), "planar": (Planar, 10)}
    for posterior, (kind, steps) in kinds.items():
        recipe = made(posterior=posterior)
        assert isinstance(recipe.method.flow, Chain)
        assert [type(one) for one in recipe.method.flow.layers] == [kind] * steps
        assert (recipe.settings["posterior"].value, recipe.settings["flows"].value) == (posterior, steps)
    plain = made().method.state_dict()
    for other in (made(posterior="iaf", flows=0), made(posterior="planar", flows=0), made(flows=0)):
        state = other.method.state_dict()
        assert list(state) == list(plain)
        assert all(torch.equal(state[name], plain[name]) for name in plain)


@pytest.mark.parametrize("posterior", ["iaf", "planar"])
def test_a_run_opens_again(posterior: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"data": "digits", "limit": 64, "batch_size": 8, "width": 8, "hidden": 16, "latents": 4}
    sensorium.train("vae", **how, posterior=posterior, flows=2, budget="2steps", out=tmp_path / "run", progress=False)
    found = Trained(str(tmp_path / "run")).method
    assert isinstance(found, VAE)
    assert found.flow is not None
    assert len(found.flow.layers) == 2
    x = found.from_pixels(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8))
    assert bool(found.log_prob(x, 2).isfinite().all())
    assert found.sample(2).shape == (2, *found.shape)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"posterior": "radial"}, "--posterior radial: choose gaussian, iaf, planar"),
        ({"flows": 2}, "--flows 2: a Gaussian posterior has none; choose --posterior iaf or planar"),
        ({"posterior": "iaf", "flows": -1}, "--flows -1: must not be negative"),
        ({"posterior": "iaf", "classes": 3}, "--posterior iaf with --classes 3: flows change Gaussian latents"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SensoriumError, match=said) as caught:
        made(**settings)
    assert "\n" not in str(caught.value)


def test_a_method_of_categorical_latents_takes_no_flow() -> None:
    encoder, decoder = Linear(4, 6), Linear(6, 1, 2, 2)
    with pytest.raises(ValueError, match="not categorical ones"):
        VAE(encoder, decoder, BernoulliPixels(), (1, 2, 2), 2, classes=3, flow=flow_of(2, 1, 3))
