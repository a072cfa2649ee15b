"""Bits a dimension and the baselines: by hand, against torch's distributions, and by what they draw."""

import math
from itertools import product

import pytest
import torch

from sensorium.metrics.densities import Bernoulli, GaussianPCA, bits_per_dim


def test_bits_by_hand() -> None:
    found = bits_per_dim(torch.full((4,), -6 * math.log(2), dtype=torch.float64), 6)
    assert found == {"bits_per_dim": pytest.approx(1), "error": 0.0, "n": 4}
    found = bits_per_dim(torch.tensor([-1.0, -3.0]), 2)
    assert found["bits_per_dim"] == pytest.approx(1 / math.log(2))
    assert found["error"] == pytest.approx(0.5 / math.log(2))  # of 0.5 and 1.5 nats: deviation 0.7071, over sqrt(2)
    # uniform over -1 .. 1 is 8 bits of 256 levels that are 2 / 256 wide
    uniform = torch.full((3,), 5 * math.log(0.5))
    assert bits_per_dim(uniform, 5, width=2 / 256)["bits_per_dim"] == pytest.approx(8)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
def test_bernoulli(smoothing: float) -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]])
    model = Bernoulli.fit(x, smoothing)
    wanted = (torch.tensor([[2.0, 0.0], [3.0, 2.0]]) + smoothing) / (3 + 2 * smoothing)
    torch.testing.assert_close(model.probability, wanted.double())
    every = torch.tensor(list(product([0.0, 1.0], repeat=4))).view(-1, 2, 2)
    assert float(model.log_prob(every).exp().sum()) == pytest.approx(1)
    if smoothing:
        theirs = torch.distributions.Bernoulli(model.probability).log_prob(every.double()).flatten(1).sum(1)
        torch.testing.assert_close(model.log_prob(every), theirs)
    else:  # never seen: impossible, not undefined
        assert float(model.log_prob(torch.ones(1, 2, 2))) == -math.inf
    drawn = model.sample(4000, seed=1)
    assert drawn.shape == (4000, 2, 2)
    torch.testing.assert_close(drawn.double().mean(0), model.probability, atol=0.03, rtol=0)
    assert torch.equal(drawn, model.sample(4000, seed=1))


def spread(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + 3


@pytest.mark.parametrize("k", [1, 4, 7])
def test_gaussian_of_main_directions(k: int) -> None:
    x = spread(300, 7, 0)
    model = GaussianPCA.fit(x.view(300, 1, 7), k)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    torch.testing.assert_close(model.variances, values.flip(0)[:k])
    left = values.clone()
    left[: 7 - k] = values[: 7 - k].mean() if k < 7 else 0
    covariance = vectors @ torch.diag(left) @ vectors.T
    theirs = torch.distributions.MultivariateNormal(x.mean(0), covariance).log_prob(x)
    torch.testing.assert_close(model.log_prob(x), theirs)
    drawn = model.sample(20_000, seed=2).flatten(1).double()
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.15, rtol=0)
    assert float((torch.cov(drawn.T) - covariance).norm() / covariance.norm()) < 0.05
    assert model.sample(3).shape == (3, 1, 7)
    assert torch.equal(model.sample(3, seed=5), model.sample(3, seed=5))


def test_fewer_samples_than_dimensions_give_the_same() -> None:
    x = spread(12, 40, 1)
    model = GaussianPCA.fit(x, 6)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    torch.testing.assert_close(model.variances, values.flip(0)[:6])
    torch.testing.assert_close(model.directions @ model.directions.T, torch.eye(6, dtype=torch.float64))
    same_up_to_signs = (model.directions @ vectors[:, -6:].flip(1)).abs()
    torch.testing.assert_close(same_up_to_signs, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)
    assert model.rest == pytest.approx(float(values[:-6].mean()))
    assert torch.isfinite(model.log_prob(x)).all()


def test_what_has_no_density() -> None:
    flat = torch.cat([spread(50, 3, 2), torch.zeros(50, 2, dtype=torch.float64)], 1)
    model = GaussianPCA.fit(flat, 3)
    assert model.rest < 1e-12
    with pytest.raises(ValueError, match="between 1 and 5"):
        GaussianPCA.fit(flat, 6)
    exact = GaussianPCA(torch.zeros(2), torch.eye(2)[:1], torch.ones(1), 0.0, (2,))
    with pytest.raises(ValueError, match="no density"):
        exact.log_prob(torch.zeros(1, 2))


def test_a_gaussian_beats_nothing_and_pixels_alone_lose_to_what_they_do_together() -> None:
    x = (torch.rand(400, 1, generator=torch.Generator().manual_seed(0)) < 0.5).float().expand(-1, 6)
    alone = bits_per_dim(Bernoulli.fit(x).log_prob(x), 6)
    assert alone["bits_per_dim"] == pytest.approx(1, abs=0.02)  # though one bit in six would do
