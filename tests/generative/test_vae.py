"""VAE: the bound against the truth where it can be had, its parts against torch and against sums."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from sensorium.base.draw import Draw
from sensorium.generative.vae.method import VAE
from sensorium.generative.vae.network import Decoder, Encoder, widths_of
from sensorium.generative.vae.recipe import vae_views
from sensorium.parts.density.pixels import LEVELS, BernoulliPixels, GaussianPixels, LogisticPixels, middle


class Flat(nn.Module):
    """A linear map of all values, to a shape."""

    def __init__(self, inputs: int, *outputs: int) -> None:
        super().__init__()
        self.linear, self.outputs = nn.Linear(inputs, math.prod(outputs)), outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).view(len(x), *self.outputs)


def small(pixels, classes: int = 0, latents: int = 2, spread: float = 1.0, **how) -> VAE:
    torch.manual_seed(0)
    numbers = latents * classes if classes else 2 * latents
    found = VAE(
        Flat(4, numbers),
        Flat(latents * (classes or 1), pixels.numbers, 2, 2),
        pixels,
        (1, 2, 2),
        latents,
        classes=classes,
        **how,
    )
    with torch.no_grad():
        for parameter in [*found.encoder.parameters(), *found.decoder.parameters()]:
            parameter.normal_(std=spread)
    return found.double()


def batch_of(found: VAE, n: int) -> dict[str, Tensor]:
    noise = torch.rand if found.classes else torch.randn
    return {"image": torch.rand(n, 1, 2, 2).round().double(), "noise": noise(n, *found.noise_shape).double()}


def everything() -> Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=4)), dtype=torch.float64).view(-1, 1, 2, 2)


def test_the_loss_is_that_of_torchs_distributions() -> None:
    found = small(BernoulliPixels())
    batch = batch_of(found, 7)
    got = found(batch)
    mean, log_deviation = found.encoder(batch["image"]).chunk(2, 1)
    q, prior = Normal(mean, log_deviation.exp()), Normal(torch.zeros(2).double(), torch.ones(2).double())
    y = found.decoder(mean + log_deviation.exp() * batch["noise"])
    wanted = kl_divergence(q, prior).sum(1) - Bernoulli(logits=y).log_prob(batch["image"]).flatten(1).sum(1)
    torch.testing.assert_close(got["loss"], wanted.mean())
    assert float(got["bits_per_dim"]) == pytest.approx(float(wanted.mean().detach()) / 4 / math.log(2))
    for beta, free in ((3.0, 0.0), (1.0, 0.7)):
        other = small(BernoulliPixels(), beta=beta, free=free)
        each = kl_divergence(q, prior).mean(0)
        penalty = beta * (each.clamp(min=free) if free else each).sum()
        cost = -Bernoulli(logits=y).log_prob(batch["image"]).flatten(1).sum(1).mean()
        torch.testing.assert_close(other(batch)["loss"], cost + penalty)


def test_the_loss_of_categorical_latents() -> None:
    found = small(BernoulliPixels(), 3, estimator="reinforce")
    batch = batch_of(found, 7)
    q = Categorical(logits=found.encoder(batch["image"]).view(7, 2, 3))
    uniform = Categorical(logits=torch.zeros(2, 3).double())
    assert float(found(batch)["divergence"]) == pytest.approx(float(kl_divergence(q, uniform).sum(1).mean().detach()))


@pytest.mark.parametrize("classes", [0, 3])
def test_importance_samples_approach_the_probability(classes: int) -> None:
    """From below: of all 2^4 inputs, against the integral over z (the sum, of categorical ones)."""
    found, x = small(BernoulliPixels(), classes, spread=0.7 if classes else 0.2).requires_grad_(False), everything()
    if classes:
        choices = torch.tensor(list(product(range(classes), repeat=2)))
        z = nn.functional.one_hot(choices, classes).flatten(1).double()
        weight = torch.full((len(z),), 1 / len(z)).double()
    else:
        at = torch.linspace(-7, 7, 141, dtype=torch.float64)
        z = torch.cartesian_prod(at, at)
        weight = Normal(0.0, 1.0).log_prob(z).sum(1).exp() * 0.1**2
    p = Bernoulli(logits=found.decoder(z)).log_prob(x[:, None].squeeze(2)[:, None]).flatten(2).sum(2).exp() @ weight
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)
    truth, bounds = float((p * p.log()).sum()), []
    for samples, copies in ((1, 2000), (10, 500), (2000, 5)):
        each = found.log_prob(x.repeat(copies, 1, 1, 1), samples).view(copies, 16).mean(0)
        bounds.append(float((p * each).sum()))
    assert bounds[0] + 0.02 < bounds[1] < truth
    assert bounds[2] == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("estimator", ["reinforce", "rebar"])
def test_gradients_through_real_choices_are_unbiased(estimator) -> None:
    """Against the sum over all choices, of the encoder and of the decoder."""
    found = small(BernoulliPixels(), 3, latents=2, spread=0.5, estimator=estimator)
    x = everything()[[3, 9]]
    q = found.encoder(x).view(2, 2, 3).log_softmax(-1)
    exact = 0.0
    for a, b in product(range(3), repeat=2):
        z = nn.functional.one_hot(torch.tensor([a, b]), 3).flatten().double().expand(2, -1)
        exact = exact + ((q[:, 0, a] + q[:, 1, b]).exp() * found._nats(z, x)).mean()
    exact = exact + (q.exp() * (q + math.log(3))).sum((1, 2)).mean()
    wanted = torch.autograd.grad(exact, list(found.parameters()))
    n = 20_000  # copies of the two images
    got = []
    for seed in range(4):
        noise = torch.rand(2 * n, 2, 2, 3, generator=torch.Generator().manual_seed(seed)).double()
        loss = found({"image": x.repeat(n, 1, 1, 1), "noise": noise})["loss"]
        got.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(found.parameters()))]))
    estimate, error = torch.stack(got).mean(0), torch.stack(got).std(0) / 2
    far = (estimate - torch.cat([g.flatten() for g in wanted])).abs()
    assert float(far.max()) < 0.02
    assert float((far > 6 * error + 1e-3).double().mean()) < 0.1


def test_the_logistic_is_a_distribution_of_levels() -> None:
    x = middle(torch.arange(256.0)).double().view(256, 1, 1, 1)
    pixels = LogisticPixels()
    for mean, log_scale in ((0.5, -1.0), (0.02, -4.0), (0.999, -6.5), (-0.3, -2.0), (0.4, -20.0)):
        given = torch.tensor([mean, log_scale]).double().view(1, 2, 1, 1).expand(256, -1, -1, -1).requires_grad_()
        each = pixels.log_prob(given, x)
        assert float(each.detach().exp().sum()) == pytest.approx(1, abs=1e-9)
        assert bool(torch.autograd.grad(each.sum(), given)[0].isfinite().all())
    single = pixels.log_prob(torch.tensor([0.1, -6.9]).view(1, 2, 1, 1).expand(256, -1, -1, -1), x.float())
    assert bool(single.isfinite().all())
    assert float(pixels.mean(torch.tensor([1.7, 0.0]).view(1, 2, 1, 1))) == 1


def test_the_gaussian_is_that_of_torch() -> None:
    pixels, given, x = GaussianPixels(0.3), torch.randn(4, 2, 3, 3), torch.rand(4, 2, 3, 3)
    wanted = Normal(given, 0.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(pixels.log_prob(given, x), wanted)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 33), (1, 28, 28), (3, 9, 17)])
def test_networks_of_any_side(shape) -> None:
    widths = widths_of(max(shape[1:]), 8)
    z = Encoder(shape, 6, widths, 16)(torch.rand(2, *shape))
    assert z.shape == (2, 6)
    assert Decoder(6, shape, 5, widths, 16)(z).shape == (2, 5, *shape[1:])
    assert widths_of(28, 8) == (8, 16)
    assert widths_of(512, 8) == (8, 16, 32, 64)


@pytest.mark.parametrize("pixels", [BernoulliPixels, GaussianPixels, LogisticPixels])
@pytest.mark.parametrize("classes", [0, 4])
def test_samples_and_views(pixels, classes: int) -> None:
    found = small(pixels(), classes).float()
    drawn = found.sample(5, seed=1)
    assert torch.equal(drawn, found.sample(5, seed=1))
    assert found.encode(torch.rand(3, 1, 2, 2)).shape == (3, 2 * (classes or 1))
    fields = {"image": torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8)}
    batch = vae_views(found, 1)(fields, Draw.seeded(0, 0, 6))
    assert batch["noise"].shape == (6, *found.noise_shape)
    levels = fields["image"].float().mean(1, keepdim=True).round()
    if pixels is BernoulliPixels:
        assert set(batch["image"].unique().tolist()) <= {0.0, 1.0}
    else:
        assert torch.equal((batch["image"] * LEVELS).floor(), levels)
    assert bool(found(batch)["loss"].isfinite())
    assert torch.equal(
        found.to_pixels(found.from_pixels(fields["image"])),
        found.to_pixels(found.from_pixels(found.to_pixels(found.from_pixels(fields["image"])))),
    )


def test_what_does_not_fit_is_refused() -> None:
    for how, said in (
        ({"estimator": "wake"}, "estimator"),
        ({"beta": -1.0}, "negative"),
        ({"classes": 1}, "two classes"),
    ):
        with pytest.raises(ValueError, match=said):
            small(BernoulliPixels(), **how)
