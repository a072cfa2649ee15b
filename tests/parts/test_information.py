"""Bounds of mutual information: the truth at the best critic, ceilings, gradients by the equations, processes apart."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.parts.learning import information as bound

DIMS, RHO = 3, 0.5
TRUTH = -DIMS / 2 * math.log(1 - RHO**2)


def gaussians(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, n, DIMS, dtype=torch.float64, generator=made)
    return x, RHO * x + (1 - RHO**2) ** 0.5 * e


def log_ratio(x: Tensor, y: Tensor) -> Tensor:
    """log p(y_i | x_j) / p(y_i), [N, N]: its expectation over pairs is the information."""
    apart = (y[:, None] - RHO * x).square().sum(-1) / (1 - RHO**2)
    return (y.square().sum(-1)[:, None] - apart - DIMS * math.log(1 - RHO**2)) / 2


def values(measure: Callable[[Tensor], Tensor], n: int = 256, batches: int = 200) -> tuple[float, float]:
    """Mean over batches, and its standard error."""
    found = torch.stack([measure(log_ratio(*gaussians(n, seed))) for seed in range(batches)])
    return float(found.mean()), float(found.std() / batches**0.5)


def of(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda scores: measure(*bound.pairs(scores))


CASES: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "donsker_varadhan": (of(bound.donsker_varadhan), TRUTH),
    "a constant more": (of(lambda p, q: bound.donsker_varadhan(p + 7, q + 7)), TRUTH),
    "mine": (of(lambda p, q: bound.mine(p, q, torch.tensor(0.3))), TRUTH),
    "nwj": (of(lambda p, q: bound.nwj(p + 1, q + 1)), TRUTH),
    "jsd_nwj": (of(bound.jsd_nwj), TRUTH),
    "infonce": (of(bound.infonce), TRUTH),
    "interpolated, 0": (lambda scores: bound.interpolated(scores, 0.0), TRUTH),
    "interpolated, half": (lambda scores: bound.interpolated(scores, 0.5), TRUTH),
    "interpolated, 1": (lambda scores: bound.interpolated(scores, 1.0), TRUTH),
}


@pytest.mark.parametrize("name", CASES)
def test_the_best_critic_gives_the_information(name: str) -> None:
    measure, want = CASES[name]
    mean, error = values(measure)
    # Donsker and Varadhan's logarithm, and InfoNCE's of finitely many candidates, are off by about var(r) / 2 / N.
    assert abs(mean - want) < 4 * error + 0.01
    assert error < 0.01


def test_jsd_is_twice_the_divergence() -> None:
    """At the best critic: E_p log 2r / (1 + r) + E_q log 2 / (1 + r), by many draws of both."""
    mean, error = values(of(bound.jsd))
    x, y = gaussians(400_000, seed=1000)
    other = x.roll(1, 0)
    r, s = (
        ((y.square() - (y - RHO * z).square() / (1 - RHO**2)).sum(-1) - DIMS * math.log(1 - RHO**2)) / 2 for z in (x, other)
    )  # fmt: skip
    want = (math.log(2) - (1 + (-r).exp()).log()).mean() + (math.log(2) - (1 + s.exp()).log()).mean()
    assert abs(mean - float(want)) < 4 * error + 0.005
    assert 0 < mean < 2 * math.log(2)


def test_no_other_critic_is_better() -> None:
    scores = torch.stack([log_ratio(*gaussians(256, seed)) for seed in range(60)])
    for measure in (bound.donsker_varadhan, bound.jsd_nwj, bound.jsd, bound.infonce):
        best = torch.stack([measure(*bound.pairs(one)) for one in scores]).mean()
        for other in (0.5 * scores, 1.5 * scores, scores + scores.sin()):
            assert torch.stack([measure(*bound.pairs(one)) for one in other]).mean() < best


@pytest.mark.parametrize("n", [2, 3, 64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_infonce_never_exceeds_the_logarithm_of_its_candidates(n: int, scale: float) -> None:
    torch.manual_seed(n)
    for scores in (scale * torch.randn(n, n), scale * torch.eye(n), -scale * torch.eye(n)):
        joint, marginal = bound.pairs(scores)
        assert bound.ceiling(marginal) == pytest.approx(math.log(n))
        assert bound.infonce(joint, marginal) <= math.log(n) + 1e-5
        if n > 2:
            assert bound.interpolated(scores, 0.3) <= 1 + math.log((n - 1) / 0.3) + 1e-5
    if scale == 300:
        assert bound.infonce(*bound.pairs(scale * torch.eye(n))) == pytest.approx(math.log(n))


def test_infonce_is_torchs_cross_entropy() -> None:
    torch.manual_seed(0)
    scores = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    got = bound.infonce(*bound.pairs(scores, 4))
    want = math.log(12) - F.cross_entropy(scores, torch.arange(7) + 4)
    torch.testing.assert_close(got, want)
    slopes = [torch.autograd.grad(value, scores, retain_graph=True)[0] for value in (got, want)]
    torch.testing.assert_close(*slopes)


def test_places_are_scored_one_at_a_time_among_those_of_others() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 5, 3)
    total = 0.0
    for i in range(4):
        others = [float(scores[i, j, place].exp()) for j in range(5) for place in range(3) if j != i + 1]
        for place in range(3):
            own = float(scores[i, i + 1, place].exp())
            total += math.log(13) + math.log(own / (own + sum(others)))
    joint, marginal = bound.pairs(scores, 1)
    assert joint.shape == (4, 3)
    assert marginal.shape == (4, 4, 3)
    assert bound.ceiling(marginal) == pytest.approx(math.log(13))
    assert float(bound.infonce(joint, marginal)) == pytest.approx(total / 12, rel=1e-5)


def literal(name: str, t: Tensor, off: Tensor) -> Tensor:
    joint, marginal = t.diagonal(), t[off]
    return {
        "donsker_varadhan": lambda: joint.mean() - marginal.exp().mean().log(),
        "nwj": lambda: joint.mean() - (marginal - 1).exp().mean(),
        "jsd_nwj": lambda: 1 + joint.mean() - marginal.exp().mean(),
        "jsd": lambda: 2 * math.log(2) + joint.sigmoid().log().mean() + (1 - marginal.sigmoid()).log().mean(),
    }[name]()


@pytest.mark.parametrize("name", ["donsker_varadhan", "nwj", "jsd_nwj", "jsd"])
@pytest.mark.parametrize("n", [2, 9])
def test_values_and_gradients_of_the_equations(name: str, n: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(n, n, dtype=torch.float64, requires_grad=True)
    got = getattr(bound, name)(*bound.pairs(scores))
    want = literal(name, scores, ~torch.eye(n, dtype=torch.bool))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, scores)[0], torch.autograd.grad(want, scores)[0])


@pytest.mark.parametrize("a", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_interpolated_is_the_literal_sum(a: float, scale: float) -> None:
    """Every row's own candidate takes the place of each of the others in turn; gradients too, where one score is most
    of its row's sum."""
    torch.manual_seed(0)
    n = 6
    scores = (scale * torch.randn(n, n, dtype=torch.float64)).requires_grad_()
    log_q = torch.randn(n, dtype=torch.float64)
    joint, apart = [], []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        e = scores[i].exp()
        b = a * e[others].mean() + (1 - a) * log_q[i].exp()
        apart += [e[j] / b for j in others]
        for j in others:
            among = [k for k in range(n) if k != j]
            joint.append(scores[i, i] - (a * e[among].mean() + (1 - a) * log_q[i].exp()).log())
    want = 1 + torch.stack(joint).mean() - torch.stack(apart).mean()
    got = bound.interpolated(scores, a, log_q)
    torch.testing.assert_close(got, want)
    slopes = [torch.autograd.grad(value, scores)[0] for value in (got, want)]
    torch.testing.assert_close(*slopes)


def test_the_ends_of_the_interpolation() -> None:
    torch.manual_seed(0)
    scores = torch.randn(8, 8)
    torch.testing.assert_close(bound.interpolated(scores, 0.0), bound.jsd_nwj(*bound.pairs(scores)))
    left_out = [
        bound.infonce(scores[i, i].view(1), torch.cat([scores[i, :i], scores[i, i + 1 :]])[None, torch.arange(7) != j])
        for i in range(8)
        for j in range(7)
    ]
    torch.testing.assert_close(bound.interpolated(scores, 1.0), torch.stack(left_out).mean())


def test_mines_gradient_is_that_of_an_average_and_its_value_the_bounds() -> None:
    torch.manual_seed(0)
    joint, marginal = torch.randn(5, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    average = torch.tensor(2.5)
    got = bound.mine(joint, marginal, average.log())
    torch.testing.assert_close(got, bound.donsker_varadhan(joint, marginal))
    slope, other = torch.autograd.grad(got, (joint, marginal))
    torch.testing.assert_close(slope, torch.full((5,), 0.2))
    torch.testing.assert_close(other, -marginal.detach().exp() / 20 / 2.5)
    now = marginal.detach().exp().mean()
    same = torch.autograd.grad(bound.mine(joint, marginal, now.log()), marginal)[0]
    torch.testing.assert_close(same, torch.autograd.grad(bound.donsker_varadhan(joint, marginal), marginal)[0])
    after = bound.updated_log_average(average.log(), marginal, 0.9)
    assert not after.requires_grad
    torch.testing.assert_close(after.exp(), 0.9 * average + 0.1 * now)


def test_large_scores_and_half_precision_stay_finite() -> None:
    torch.manual_seed(0)
    scores = 200 * torch.randn(6, 6)
    for name in ("donsker_varadhan", "jsd", "infonce"):
        value = getattr(bound, name)(*bound.pairs(scores))
        assert value.isfinite()
        narrow = getattr(bound, name)(*bound.pairs(scores.bfloat16()))
        assert narrow.dtype == torch.float32
        assert narrow == pytest.approx(float(value), rel=0.05)


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="1 rows from column 0"):
        bound.pairs(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="4 rows from column 2"):
        bound.pairs(torch.zeros(4, 5), 2)
    with pytest.raises(ValueError, match=r"got 1\.5 and 4"):
        bound.interpolated(torch.zeros(4, 4), 1.5)
    with pytest.raises(ValueError, match=r"got 0\.5 and 2"):
        bound.interpolated(torch.zeros(2, 2), 0.5)
