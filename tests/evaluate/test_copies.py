"""Copies of training pictures: nearest ones by brute force, the share by scipy's test."""

import pytest
import torch
from scipy.stats import mannwhitneyu

from sensorium.metrics.copies import nearer, nearest
from sensorium.metrics.frechet import frechet, frechet_error


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_nearest(k: int, chunk: int) -> None:
    dice = torch.Generator().manual_seed(0)
    made, train = torch.randn(23, 5, generator=dice), torch.randn(40, 5, generator=dice)
    away, at = nearest(made, train, k, chunk=chunk)
    each = (made[:, None] - train).square().sum(2).sqrt().sort(1)
    torch.testing.assert_close(away, each.values[:, :k])
    assert torch.equal(at, each.indices[:, :k])
    with pytest.raises(ValueError, match="between 1 and 40"):
        nearest(made, train, 41)


@pytest.mark.parametrize("ties", [False, True])
def test_the_share_is_scipys(ties: bool) -> None:
    dice = torch.Generator().manual_seed(0)
    made, held = torch.rand(50, generator=dice), 1.2 * torch.rand(31, generator=dice)
    if ties:
        made, held = (5 * made).round(), (5 * held).round()
    share, error = nearer(made, held)
    theirs = mannwhitneyu(held.numpy(), made.numpy(), method="asymptotic", use_continuity=False)
    assert share == pytest.approx(theirs.statistic / (50 * 31))
    if not ties:
        z = (share - 0.5) / error
        assert 2 * (1 - float(torch.special.ndtr(torch.tensor(abs(z)).double()))) == pytest.approx(
            theirs.pvalue, abs=1e-6
        )


def test_copies_are_told_from_new_samples() -> None:
    dice = torch.Generator().manual_seed(0)
    train, held, new = torch.randn(3, 400, 6, generator=dice)
    beyond = nearest(held, train)[0][:, 0]
    share, error = nearer(nearest(new, train)[0][:, 0], beyond)
    assert abs(share - 0.5) < 3 * error
    assert nearer(nearest(train[:200] + 0.01, train)[0][:, 0], beyond)[0] > 0.99
    assert nearer(nearest(new + 5, train)[0][:, 0], beyond)[0] < 0.01


def test_the_error_of_a_distance() -> None:
    """About the deviation of the distance over sets of samples."""
    dice = torch.Generator().manual_seed(0)
    known, many = torch.randn(2000, 3, generator=dice), torch.randn(40, 500, 3, generator=dice) + 0.5
    spread = float(torch.tensor([frechet(one, known) for one in many]).std())
    assert frechet_error(many[0], known, 40) == pytest.approx(spread, rel=0.5)
