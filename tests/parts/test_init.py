"""Initial weights have the variance that they claim, whatever they are drawn from; NTK changes steps, not functions."""

from typing import get_args

import pytest
import torch
from torch import nn

from sensorium.parts.init import Draw, Scheme, deviation, fill_, fixup_, to_ntk_


@pytest.mark.parametrize("draw", get_args(Draw))
@pytest.mark.parametrize("scheme", get_args(Scheme))
@pytest.mark.parametrize("shape", [(120, 300), (300, 120), (64, 24, 3, 3)])
def test_variance(draw: Draw, scheme: Scheme, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = fill_(torch.empty(shape), scheme, draw, gain=1.3)
    assert float(weight.std()) == pytest.approx(1.3 * deviation(weight, scheme), rel=0.03)
    assert abs(float(weight.mean())) < 0.05 * float(weight.std())


def test_deviations() -> None:
    weight = torch.empty(8, 2, 3, 3)
    assert deviation(weight, "lecun") == pytest.approx(18**-0.5)
    assert deviation(weight, "he") == pytest.approx((2 / 18) ** 0.5)
    assert deviation(weight, "xavier") == pytest.approx((2 / 90) ** 0.5)
    theirs = torch.nn.init.xavier_uniform_(torch.empty(500, 300))
    assert float(theirs.std()) == pytest.approx(deviation(theirs, "xavier"), rel=0.02)
    with pytest.raises(ValueError, match="two dimensions"):
        deviation(torch.empty(3), "he")
    with pytest.raises(ValueError, match="lecun"):
        deviation(weight, "glorot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="orthogonal"):
        fill_(weight, "he", "cauchy")  # type: ignore[arg-type]


def test_truncated_is_cut_and_orthogonal_is_so() -> None:
    torch.manual_seed(0)
    weight = fill_(torch.empty(400, 400), "lecun", "truncated")
    assert float(weight.abs().max()) < 2.3 * 400**-0.5  # two deviations of the wider normal
    assert float(weight.abs().max()) > 2.2 * 400**-0.5
    square = fill_(torch.empty(50, 50), "lecun", "orthogonal")
    torch.testing.assert_close(square @ square.T, torch.eye(50), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_a_deep_stack_keeps_its_variance(scheme: Scheme) -> None:
    """He's with relu and LeCun's without keep it over 30 layers; the other way it dies or explodes."""
    torch.manual_seed(0)

    def ratio(scheme: Scheme, relu: bool) -> float:
        x = torch.randn(64, 256)
        start = x.pow(2).mean()
        for _ in range(30):
            x = x @ fill_(torch.empty(256, 256), scheme).T
            x = x.relu() if relu else x
        return float(x.pow(2).mean() / start)

    kept = ratio(scheme, scheme == "he")
    lost = ratio(scheme, scheme != "he")
    assert 0.1 < kept * (2 if scheme == "he" else 1) < 10
    assert lost < 1e-6 or lost > 1e6


def test_ntk_keeps_the_function_and_slows_the_weights() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(50, 80), nn.Tanh(), nn.Linear(80, 3))
    turned = nn.Sequential(nn.Linear(50, 80), nn.Tanh(), nn.Linear(80, 3))
    turned.load_state_dict(plain.state_dict())
    to_ntk_(turned)
    x = torch.randn(7, 50)
    torch.testing.assert_close(turned(x), plain(x))
    for net in (plain, turned):
        net(x).pow(2).mean().backward()
    named = dict(turned.named_parameters())
    for name, factor in (("0", 50**-0.5), ("2", 80**-0.5)):
        learnt = named[f"{name}.parametrizations.weight.original"]
        assert learnt.grad is not None
        grad = dict(plain.named_parameters())[f"{name}.weight"].grad
        assert grad is not None
        torch.testing.assert_close(learnt.grad, factor * grad)
    assert float(named["0.parametrizations.weight.original"].detach().std()) == pytest.approx(
        3**-0.5, rel=0.05
    )  # torch's start


def test_fixup() -> None:
    torch.manual_seed(0)
    inner, last = torch.empty(200, 200), torch.ones(200, 200)
    fixup_(16, [inner], last)
    assert float(inner.std()) == pytest.approx(16**-0.5 * 0.1, rel=0.03)
    assert last.abs().max() == 0
