"""Estimators: what is unbiased meets the exact gradient within its error, what is biased says so, and spreads compare."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sensorium.parts.estimators import (
    gaussian,
    given,
    gumbel,
    gumbel_max,
    gumbel_softmax,
    rebar,
    reinforce,
    relax,
)

COST = torch.tensor([0.2, 1.0, -0.4, 0.7], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.8, 0.1, 0.9], dtype=torch.float64)


def f(x: Tensor) -> Tensor:
    return ((x - COST) ** 2).sum(-1) + (x * COST.flip(0)).sum(-1)


def exact() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (logits.softmax(-1) @ f(torch.eye(4, dtype=torch.float64))).backward()
    assert logits.grad is not None
    return logits.grad


def uniform(samples: int, seed: int = 0) -> Tensor:
    return torch.rand(samples, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def each(estimate: Callable[[Tensor, Tensor], Tensor], samples: int = 20_000, group: int = 1) -> Tensor:
    """The gradient by groups of noise, [samples, K]."""
    noise = uniform(samples * group).view(samples, group, 4)
    return torch.vmap(torch.func.grad(estimate), in_dims=(None, 0))(LOGITS, noise)


def both(found: Tensor) -> tuple[Tensor, Tensor]:
    return found.mean(0), found.std(0) / len(found) ** 0.5


@pytest.mark.parametrize("baseline", ["none", 0.8])
def test_reinforce_is_unbiased_and_a_baseline_makes_it_steadier(baseline: str | float) -> None:
    mean, error = both(each(lambda a, u: reinforce(f, a, u, baseline=baseline), 4_000))  # type: ignore[arg-type]
    assert (mean - exact()).abs().le(4 * error + 1e-12).all()
    rough = each(lambda a, u: reinforce(lambda x: f(x) + 10, a, u), 1_000).var(0).sum()
    steady = each(lambda a, u: reinforce(lambda x: f(x) + 10, a, u, baseline=11.0), 1_000).var(0).sum()
    assert steady < rough / 20


def test_leaving_one_out_is_unbiased_and_the_mean_is_smaller_by_its_factor() -> None:
    left = each(lambda a, u: reinforce(f, a, u, baseline="leave-one-out"), 3_000, 3)
    mean, error = both(left)
    assert (mean - exact()).abs().le(4 * error).all()
    assert left.var(0).sum() < each(lambda a, u: reinforce(f, a, u), 3_000, 3).var(0).sum()
    shrunk = each(lambda a, u: reinforce(f, a, u, baseline="mean"), 3_000, 3)
    torch.testing.assert_close(shrunk * 1.5, left)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_rebar_is_unbiased_at_every_temperature_and_steadier_but_when_cold(temperature: float) -> None:
    def estimate(a: Tensor, u: Tensor) -> Tensor:
        return rebar(f, a, u[:1], u[1:], temperature=temperature)

    found = each(estimate, 4_000, 2)
    mean, error = both(found)
    assert (mean - exact()).abs().le(4 * error).all()
    if temperature >= 0.5:  # colder the control's own gradient is what spreads
        assert found.var(0).sum() < each(lambda a, u: reinforce(f, a, u), 4_000).var(0).sum()


def test_relax_with_any_control_is_unbiased() -> None:
    weight = torch.tensor([0.5, -1.0, 0.3, 0.2], dtype=torch.float64)

    def estimate(a: Tensor, u: Tensor) -> Tensor:
        return relax(f, lambda z: torch.tanh(z * weight).sum(-1), a, u[:1], u[1:])

    mean, error = both(each(estimate, 4_000, 2))
    assert (mean - exact()).abs().le(4 * error).all()


def test_a_relaxed_choice_is_biased_and_less_so_when_cold() -> None:
    away = []
    for temperature in (2.0, 0.3):
        mean, error = both(each(lambda a, u, t=temperature: f(gumbel_softmax(a, u, t)).mean(), 4_000))
        away.append((mean - exact()).norm())
        if temperature == 2.0:
            assert (mean - exact()).abs().max() > 6 * error.max()
    assert away[1] < away[0] / 2


def test_choices_have_their_probabilities() -> None:
    share = gumbel_max(LOGITS, uniform(40_000)).mean(0)
    p = LOGITS.softmax(-1)
    assert (share - p).abs().le(4 * (p * (1 - p) / 40_000).sqrt()).all()


def test_hard_is_a_choice_with_the_soft_gradient() -> None:
    noise, weight = uniform(50), torch.arange(4.0, dtype=torch.float64)
    gradients = []
    for hard in (False, True):
        logits = LOGITS.clone().requires_grad_()
        y = gumbel_softmax(logits, noise, 0.7, hard=hard)
        (y @ weight).sum().backward()
        gradients.append(logits.grad)
        if hard:
            torch.testing.assert_close(y.detach(), gumbel_max(LOGITS, noise))
    torch.testing.assert_close(*gradients)


def test_against_torch() -> None:
    torch.manual_seed(0)
    noise = torch.empty(64, 4).exponential_()  # what torch draws, and the noise that this is
    torch.manual_seed(0)
    theirs = torch.nn.functional.gumbel_softmax(LOGITS.float().expand(64, 4), tau=0.6)
    torch.testing.assert_close(gumbel_softmax(LOGITS.float(), (-noise).exp(), 0.6), theirs, atol=1e-5, rtol=0)


def test_noise_given_a_choice_is_that_of_draws_with_this_choice() -> None:
    """Joint law: drawing z and taking its choice, or drawing the choice and then z, is the same."""
    log_p = LOGITS.log_softmax(-1)
    z = log_p + gumbel(uniform(60_000, 1))
    choice = torch.nn.functional.one_hot(z.argmax(-1), 4).double()
    again = given(choice, log_p, uniform(60_000, 2))
    assert (again.argmax(-1) == z.argmax(-1)).all()
    for k in range(4):
        mine = choice[:, k] > 0
        torch.testing.assert_close(again[mine].mean(0), z[mine].mean(0), atol=0.06, rtol=0)
        torch.testing.assert_close(again[mine].std(0), z[mine].std(0), atol=0.06, rtol=0)


def test_gaussian_reparametrised() -> None:
    mean, log_std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, -0.3))
    noise = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gaussian(mean, log_std, noise) ** 2).mean().backward()  # E x^2 = mu^2 + sigma^2
    assert mean.grad is not None
    assert log_std.grad is not None
    assert abs(mean.grad - 2 * 0.4) < 0.01
    assert abs(log_std.grad - 2 * torch.tensor(-0.6).exp()) < 0.02


def test_numbers_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="above 0"):
        gumbel_softmax(LOGITS, uniform(2), 0.0)
    with pytest.raises(ValueError, match="two samples"):
        reinforce(f, LOGITS, uniform(1), baseline="leave-one-out")
    with pytest.raises(ValueError, match="leave-one-out"):
        reinforce(f, LOGITS, uniform(2), baseline="median")  # type: ignore[arg-type]
