"""NADE against its recursion as a loop; the orderless loss against the mean over all orders."""

import math
from itertools import permutations, product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.base.draw import Draw
from sensorium.generative.nade import method
from sensorium.generative.nade.method import NADE, order
from sensorium.generative.nade.recipe import known


def random_(model: NADE, dtype: torch.dtype = torch.float64) -> NADE:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.to(dtype)


def by_the_paper(model: NADE, x: Tensor, turn: Tensor) -> Tensor:
    """Algorithm 1 of Larochelle & Murray, of one layer: -log p(x) [B]."""
    a, nats = model.bias.expand(len(x), -1), torch.zeros(len(x), dtype=x.dtype)
    for d in turn.tolist():
        h = torch.sigmoid(a) if model.known_weight is None else F.relu(a)
        y = model.out_bias[d] + h @ model.out[d]
        nats = nats - F.logsigmoid(torch.where(x[:, d] == 1, y, -y))
        a = a + x[:, d, None] * model.weight[:, d] + (0 if model.known_weight is None else model.known_weight[:, d])
    return nats


@pytest.mark.parametrize(
    "dtype, outputs, gradients", [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 1e-4)], ids=str
)
@pytest.mark.parametrize("inputs, hidden", [(1, 3), (7, 5), (64, 17), (75, 20)])
@pytest.mark.parametrize("orderless", [False, True])
def test_the_recursion(inputs: int, hidden: int, orderless: bool, dtype: torch.dtype, outputs, gradients) -> None:
    torch.manual_seed(0)
    model = random_(NADE(inputs, (hidden,), orderless=orderless, seeds=(4,)), dtype)
    x = torch.rand(6, inputs).round().to(dtype)
    want = by_the_paper(model, x, order(inputs, 4))
    got = -model.log_prob(x)
    torch.testing.assert_close(got, want, atol=outputs * inputs, rtol=outputs)
    wanted = torch.autograd.grad(want.mean(), list(model.parameters()), allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(got.mean(), list(model.parameters()), allow_unused=True, materialize_grads=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=gradients, rtol=gradients)


def test_blocks_change_nothing(monkeypatch) -> None:
    torch.manual_seed(0)
    model, x = random_(NADE(40, (9,), seeds=(1,))), torch.rand(3, 40).round().double()
    want = model.log_prob(x)
    for block in (1, 7, 40, 100):
        monkeypatch.setattr(method, "BLOCK", block)
        torch.testing.assert_close(model.log_prob(x), want)


def test_the_orderless_loss_is_the_mean_over_all_orders() -> None:
    """By enumeration: of each number k of known pixels all sets, as often as the view draws them."""
    torch.manual_seed(0)
    n, x = 4, torch.tensor([[1.0, 0.0, 1.0, 1.0]]).double()
    model = random_(NADE(n, (6, 5), orderless=True))
    everyone = []
    for turn in permutations(range(n)):
        model.orders = torch.tensor([turn])
        everyone.append(float(-model.log_prob(x)))
    losses = []
    for k in range(n):
        sets = [torch.tensor([bits]).bool() for bits in product([0, 1], repeat=n) if sum(bits) == k]
        losses.append(sum(float(model({"image": x, "known": one})["loss"]) for one in sets) / len(sets))
    assert sum(losses) / n == pytest.approx(sum(everyone) / len(everyone), rel=1e-10)


def test_an_orderless_one_completes_any_part() -> None:
    """Given the last two pixels the first ones are drawn of p(unknown | known), in the order that begins with those."""
    torch.manual_seed(0)
    model, n = random_(NADE(4, (6,), orderless=True, seeds=(1,))).requires_grad_(False), 40_000
    known = torch.tensor([False, False, True, True])
    given = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    drawn = model.complete(given.expand(n, -1), known.expand(n, -1), seed=1)
    assert torch.equal(drawn[:, 2:], given[2:].expand(n, -1))
    turn = list(model.in_turn(drawn, 0, known)[0])
    assert sorted(turn[:2]) == [2, 3]
    model.orders = torch.tensor([turn])
    x = torch.tensor([[a, b, 1.0, 0.0] for a in (0.0, 1.0) for b in (0.0, 1.0)]).double()
    p = model.log_prob(x).softmax(0)
    counts = torch.bincount((drawn[:, 0] * 2 + drawn[:, 1]).long(), minlength=4)
    assert float(((counts - n * p) / (n * p * (1 - p)).sqrt()).abs().max()) < 4.5


def test_known_pixels_are_any_number_of_any() -> None:
    draw = Draw.seeded(0, 0, 20_000)
    found = known(draw, torch.zeros(20_000, 1, 2, 3)).flatten(1)
    count = found.sum(1)
    assert torch.bincount(count, minlength=7)[6] == 0
    torch.testing.assert_close(
        torch.bincount(count, minlength=6).double() / 20_000, torch.full((6,), 1 / 6).double(), atol=0.01, rtol=0
    )
    torch.testing.assert_close(found.double().mean(0), torch.full((6,), 2.5 / 6).double(), atol=0.015, rtol=0)


def test_it_learns_what_pixels_do_together() -> None:
    """Two bits that are always equal: independent pixels need 2 bits, NADE 1."""
    for orderless in (False, True):
        torch.manual_seed(0)
        model = NADE(2, (32,), orderless=orderless)
        x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        optimizer = torch.optim.Adam(model.parameters(), 0.03)
        for step in range(300):
            batch = {"image": x}
            if orderless:
                batch["known"] = known(Draw.seeded(0, step, 2), x)
            optimizer.zero_grad()
            model(batch)["loss"].backward()
            optimizer.step()
        assert float(-model.log_prob(x).mean()) / math.log(2) == pytest.approx(1, abs=0.1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="an orderless one may have more"):
        NADE(4, (3, 3))
    with pytest.raises(ValueError, match="an orderless one may have more"):
        NADE(4, (3,), seeds=(0, 1))
    with pytest.raises(ValueError, match="at least one hidden layer"):
        NADE(4, ())
