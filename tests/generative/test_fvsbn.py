"""FVSBN: logistic regressions, whose probabilities sum to one, and the contract of all pixel-by-pixel models."""

from itertools import product

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sensorium.generative.binary import BinaryImages
from sensorium.generative.fvsbn.method import FVSBN
from sensorium.generative.made.method import MADE
from sensorium.generative.nade.method import NADE


def random_(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.double().eval()


def everything(n: int) -> Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64)


MODELS = {
    "FVSBN": lambda shape: FVSBN(shape),
    "NADE": lambda shape: NADE(shape, (7,)),
    "NADE in a random order": lambda shape: NADE(shape, (7,), seeds=(3,)),
    "orderless NADE": lambda shape: NADE(shape, (7,), orderless=True, seeds=(0, 1, 2)),
    "DeepNADE": lambda shape: NADE(shape, (7, 9), orderless=True, seeds=(0, 1)),
    "MADE": lambda shape: MADE(shape, (13,), seeds=(0, 1)),
}


@pytest.fixture(params=MODELS, ids=str)
def make(request):
    def made(shape) -> BinaryImages:
        torch.manual_seed(0)
        return random_(MODELS[request.param](shape))

    return made


@pytest.mark.parametrize("inputs", [1, 2, 7, 11])
def test_probabilities_of_all_inputs_sum_to_one(make, inputs: int) -> None:
    model = make(inputs)
    for ensemble in range(1, model.members + 1):
        assert float(model.log_prob(everything(inputs), ensemble).detach().exp().sum()) == pytest.approx(1, abs=1e-9)


def test_samples_are_as_frequent_as_they_are_likely(make) -> None:
    model, n = make(4), 40_000
    with torch.no_grad():  # of the first member, in whose order samples are drawn
        p = (-model.cost(model.logits(everything(4)), everything(4))).exp()
    counts = torch.bincount(
        (model.sample(n, seed=3) @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long(), minlength=16
    )
    spread = (n * p * (1 - p)).sqrt().clamp_min(1)
    assert float(((counts - n * p) / spread).abs().max()) < 4.5  # 16 normal deviates


def test_a_pixel_depends_on_those_before_it_alone(make) -> None:
    model, x = make(9), torch.rand(9, dtype=torch.float64).round()
    depends = torch.autograd.functional.jacobian(lambda x: model.logits(x[None])[0], x) != 0
    turn = list(model.in_turn(x[None])[0])
    place = torch.tensor([turn.index(d) for d in range(9)])
    assert not (depends & (place[:, None] <= place)).any()
    assert depends.any()


def test_drawn_pixel_by_pixel_as_by_the_whole_model(make) -> None:
    model = make((1, 3, 4))
    drawn = model.sample(5, seed=2)
    assert drawn.shape == (5, 1, 3, 4)
    dice, x = torch.rand(12, 5, generator=torch.Generator().manual_seed(2)), torch.zeros(5, 1, 3, 4).double()
    with torch.no_grad():
        for d in model.in_turn(x.flatten(1))[0]:
            x.view(5, -1)[:, d] = (dice[d] < torch.sigmoid(model.logits(x).flatten(1)[:, d])).double()
    assert torch.equal(drawn, x)
    assert torch.equal(drawn, model.sample(5, seed=2))
    assert not torch.equal(drawn, model.sample(5, seed=3))


def test_the_rest_of_a_picture_is_drawn_given_its_beginning(make) -> None:
    model, n = make(4), 40_000
    turn = list(model.in_turn(torch.zeros(1, 4).double())[0])
    known = torch.zeros(n, 4, dtype=torch.bool)
    known[:, turn[:2]] = True
    given = torch.full((n, 4), float("nan"))  # what is not known is not read
    given[:, turn[0]], given[:, turn[1]] = 1.0, 0.0
    drawn = model.complete(given, known, seed=1)
    assert bool((drawn[:, turn[0]] == 1).all() and (drawn[:, turn[1]] == 0).all())
    with torch.no_grad():
        p = (-model.cost(model.logits(everything(4)), everything(4))).exp()
    fits = (everything(4)[:, turn[0]] == 1) & (everything(4)[:, turn[1]] == 0)
    p = torch.where(fits, p, 0) / p[fits].sum()
    counts = torch.bincount((drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long(), minlength=16)
    assert float(((counts - n * p) / (n * p * (1 - p)).sqrt().clamp_min(1)).abs().max()) < 4.5


def test_pictures_and_what_does_not_fit(make) -> None:
    model = make((1, 3, 4))
    picture = model.reconstruct(torch.ones(2, 1, 3, 4).double())
    assert picture.shape == (2, 3, 3, 8)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    with pytest.raises(ValueError, match="zeros and ones"):
        model.log_prob(torch.full((1, 1, 3, 4), 0.5).double())
    with pytest.raises(ValueError, match="members"):
        model.log_prob(torch.zeros(1, 1, 3, 4).double(), model.members + 1)


def test_each_pixel_is_a_logistic_regression_on_those_before_it() -> None:
    """Trained to the end it has scikit-learn's weights."""
    torch.manual_seed(0)
    x = (torch.rand(400, 5) < 0.5).double()
    x[:, 3] = torch.where(torch.rand(400) < 0.8, x[:, 0], x[:, 3])
    model = FVSBN(5).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = model({"image": x})["loss"]
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    for d in range(1, 5):
        told = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000).fit(x[:, :d].numpy(), x[:, d].numpy())
        torch.testing.assert_close(model.weight[d, :d].detach(), torch.from_numpy(told.coef_[0]), atol=1e-3, rtol=1e-3)
        assert float(model.bias[d]) == pytest.approx(told.intercept_[0], abs=1e-3)
