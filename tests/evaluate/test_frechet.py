"""The Fréchet distance: equal to the formula with scipy's root, exact where sets are alike, the same in parts."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from sensorium.metrics.frechet import Moments, frechet, moments


def drawn(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + torch.randn(
        d, generator=generator
    )


def by_formula(a: Tensor, b: Tensor) -> float:
    cov_a, cov_b = (np.cov(x.numpy(), rowvar=False).reshape(x.shape[1], -1) for x in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    apart = (a.mean(0) - b.mean(0)).numpy()
    return float(apart @ apart + np.trace(cov_a + cov_b - 2 * np.real(root)))


@pytest.mark.parametrize("n, m, d", [(50, 50, 3), (200, 90, 17), (400, 500, 64), (30, 40, 1)])
def test_equals_the_formula(n: int, m: int, d: int) -> None:
    a, b = drawn(n, d, 0), drawn(m, d, 1, scale=1.5)
    assert frechet(a, b) == pytest.approx(by_formula(a, b), rel=1e-8)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)


def test_normal_distributions_along_the_axes() -> None:
    """Of diagonal covariances: the sum of squared differences of means and of standard deviations."""
    a, b = Moments(3), Moments(3)
    for found, mean, std in ((a, [0.0, 1.0, 2.0], [1.0, 2.0, 3.0]), (b, [1.0, 1.0, 0.0], [4.0, 2.0, 0.5])):
        found.count, found.mean = 11, torch.tensor(mean, dtype=torch.float64)
        found._scatter = torch.diag(torch.tensor(std, dtype=torch.float64).square()) * 10
    assert frechet(a, b) == pytest.approx(1 + 4 + 9 + 6.25, rel=1e-12)


def test_fewer_samples_than_features() -> None:
    """The covariances are singular. By the nuclear norm of X Y^T the trace term needs no root of any covariance."""
    a, b = drawn(12, 40, 2), drawn(9, 40, 3)
    x, y = ((s - s.mean(0)) / np.sqrt(len(s) - 1) for s in (a, b))
    common = torch.linalg.svdvals(x @ y.T).sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * common
    assert frechet(a, b) == pytest.approx(float(wanted), rel=1e-8)


def test_identical_sets() -> None:
    a = drawn(300, 20, 4)
    assert frechet(a, a) == 0
    assert frechet(a, a.clone()) == 0
    turned = a.flip(0)  # the same samples: other roundings
    assert 0 <= frechet(a, turned) < 1e-20


@pytest.mark.parametrize("shift", [1e-3, 1e-6, 1e-9])
def test_small_distances_keep_their_digits(shift: float) -> None:
    """Scaling by 1 + e has distance e^2 tr S; the usual formula has lost it at 1e-6."""
    a = drawn(200, 10, 5)
    a = a - a.mean(0)
    wanted = shift**2 * float(moments(a).covariance.trace())
    assert frechet(a, a * (1 + shift)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("parts", [[1] * 7 + [93], [50, 50], [99, 1], [0, 100]], ids=str)
def test_parts_equal_the_whole(parts: list[int]) -> None:
    a = drawn(100, 6, 6) + 1e4  # far from zero: sums of squares would cancel
    found = Moments(6)
    for part in a.split(parts):
        found.update(part)
    assert found.count == 100
    torch.testing.assert_close(found.mean, a.mean(0))
    torch.testing.assert_close(
        found.covariance, torch.from_numpy(np.cov(a.numpy(), rowvar=False)), rtol=1e-9, atol=1e-9
    )
    half = moments(a[:40], chunk=7).merge(moments(a[40:]))
    torch.testing.assert_close(half.covariance, found.covariance, rtol=1e-9, atol=1e-9)


def test_it_is_biased_upward_and_less_so_with_more_samples() -> None:
    exact = Moments(8)
    exact.count, exact._scatter = 2, torch.eye(8, dtype=torch.float64)  # divided by N - 1 = 1
    generator = torch.Generator().manual_seed(7)
    means = [
        np.mean([frechet(torch.randn(n, 8, generator=generator), exact) for _ in range(20)]) for n in (50, 200, 800)
    ]
    assert means[0] > 2 * means[1] > 4 * means[2] > 0


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet(torch.zeros(1, 3), torch.randn(5, 3))
    with pytest.raises(ValueError, match="3 and 4 columns"):
        frechet(torch.randn(5, 3), torch.randn(5, 4))
    with pytest.raises(ValueError, match="finite"):
        moments(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        Moments(3).update(torch.zeros(2, 4))
