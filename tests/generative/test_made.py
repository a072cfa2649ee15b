"""What MADE promises: outputs see only what is before them, probabilities sum to one, samples agree with them."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from sensorium.generative.made.method import MADE, places
from sensorium.method import Progress
from sensorium.parts.density.pixels import binarise


def made(shape=8, hidden=(13, 11), seed: int = 0, **numbers) -> MADE:
    torch.manual_seed(seed)
    model = MADE(shape, hidden, **numbers).double()
    with torch.no_grad():
        for parameter in model.parameters():  # the direct weights too, which start at zero
            parameter.copy_(torch.randn_like(parameter))
    return model.eval()


def everything(n: int) -> Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def jacobian(model: MADE, x: Tensor, which: int) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: model.logits(x[None], which)[0], x)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("order", ["random", "natural"])
@pytest.mark.parametrize("hidden", [(30,), (40, 25, 30)], ids=str)
def test_an_output_depends_on_what_is_before_it_alone(hidden, order: str, direct: bool) -> None:
    model = made(9, hidden, order=order, direct=direct, seeds=(0, 1, 2))
    seen = set()
    for which, seed in enumerate(model.seeds):
        place = places(9, order, torch.Generator().manual_seed(seed))
        depends = sum(jacobian(model, x, which).abs() for x in everything(9)[::37]) > 0
        before = place[:, None] > place
        assert not (depends & ~before).any()
        assert depends.sum() >= 0.8 * before.sum()  # wide layers leave hardly a pair unconnected
        if direct:
            assert torch.equal(depends, before)
        seen.add(tuple(place.tolist()))
    assert len(seen) == (3 if order == "random" else 1)
    assert order == "random" or tuple(range(9)) in seen


@pytest.mark.parametrize("inputs", [1, 2, 5, 12])
@pytest.mark.parametrize("direct", [False, True])
def test_probabilities_sum_to_one(inputs: int, direct: bool) -> None:
    model = made(inputs, (17, 16), direct=direct, seeds=(4, 5, 6)).requires_grad_(False)
    x = everything(inputs)
    for which in range(3):
        total = -torch.nn.functional.binary_cross_entropy_with_logits(model.logits(x, which), x, reduction="none").sum(
            1
        )
        assert float(total.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(model.log_prob(x).exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(model.log_prob(x, 3).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_an_ensemble_is_a_mean_of_probabilities() -> None:
    model, alone = made(6, (20,), seeds=(1, 2, 3)), made(6, (20,), seeds=(1,))
    x, parts = everything(6), []
    for seed in (1, 2, 3):
        alone = MADE(6, (20,), seeds=(seed,)).double()
        alone.load_state_dict(model.state_dict())
        parts.append(alone.log_prob(x).exp())
    torch.testing.assert_close(model.log_prob(x, 3).exp(), torch.stack(parts).mean(0))
    torch.testing.assert_close(model.log_prob(x, 2).exp(), torch.stack(parts[:2]).mean(0))
    assert not torch.allclose(parts[0], parts[1])
    with pytest.raises(ValueError, match="between 1 and the 3 members"):
        model.log_prob(x, 4)


@pytest.mark.parametrize("hidden", [(16,), (12, 10)], ids=str)
def test_samples_are_as_frequent_as_they_are_likely(hidden) -> None:
    model, n = made(4, hidden, seeds=(0, 7)).requires_grad_(False), 40_000
    for which in range(2):
        alone = MADE(4, hidden, seeds=(model.seeds[which],)).double()
        alone.load_state_dict(model.state_dict())
        p = alone.log_prob(everything(4)).exp().detach()
        drawn = model.complete(torch.zeros(n, 4), torch.zeros(n, 4).bool(), seed=3, which=which)
        counts = torch.bincount((drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long(), minlength=16)
        spread = (n * p * (1 - p)).sqrt().clamp_min(1)
        assert float(((counts - n * p) / spread).abs().max()) < 4.5  # 32 normal deviates; beyond 4.5 once in 5000 seeds


def test_samples_follow_their_seed_and_shape() -> None:
    model = made((1, 3, 4), (20,), seeds=(0, 1))
    drawn = model.sample(5, seed=2)
    assert drawn.shape == (5, 1, 3, 4)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(drawn, model.sample(5, seed=2))
    assert not torch.equal(drawn, model.sample(5, seed=3))
    # place by place by the whole network, with the same dice
    dice, x = torch.rand(12, 5, generator=torch.Generator().manual_seed(2)), torch.zeros(5, 1, 3, 4).double()
    for d in model.get_buffer("places")[0].argsort().tolist():
        x.view(5, -1)[:, d] = (dice[d] < torch.sigmoid(model.logits(x, 0).flatten(1)[:, d])).double()
    assert torch.equal(drawn, x)


def test_the_loss_and_who_changes_the_masks() -> None:
    model = made(7, (15,), seeds=(0, 1, 2)).train()
    batch = {"image": everything(7)[::5]}
    losses = []
    for step in range(5):
        model.before_step(Progress(step, 0, 0.0))
        first, second = model(batch)["loss"], model(batch)["loss"]
        assert torch.equal(first, second)
        model.after_step(Progress(step, 0, 0.0))
        assert torch.equal(first, model(batch)["loss"])
        losses.append(float(first))
    assert losses[:2] == losses[3:]
    assert len(set(losses[:3])) == 3
    model.before_step(Progress(3, 0, 0.0))
    found = model(batch)
    torch.testing.assert_close(found["loss"], -model.log_prob(batch["image"]).mean())
    assert float(found["bits_per_dim"]) == pytest.approx(float(found["loss"].detach()) / 7 / math.log(2))
    assert not found["bits_per_dim"].requires_grad


def test_it_learns_what_pixels_do_together() -> None:
    """Two bits that are always equal: independent pixels need 2 bits, MADE 1."""
    torch.manual_seed(0)
    model = MADE(2, (8,), seeds=(0,))
    batch = {"image": torch.tensor([[0.0, 0.0], [1.0, 1.0]])}
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()
    assert float(-model.log_prob(batch["image"]).mean()) / math.log(2) == pytest.approx(1, abs=0.05)


def test_masks_follow_the_seeds_and_stay_out_of_checkpoints() -> None:
    model = made(6, (9,), seeds=(3, 4))
    layers = {f"network.layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert set(model.state_dict()) == {"current", "network.direct", *layers}
    again = MADE(6, (9,), seeds=(3, 4)).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.log_prob(everything(6), 2), model.log_prob(everything(6), 2))


def test_binarise() -> None:
    grey = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert binarise(grey).tolist() == [0, 0, 1, 1]
    assert torch.equal(binarise(grey), binarise(grey.float() / 255))
    uniform = (torch.arange(1000) + 0.5) / 1000
    for value in (0, 51, 204, 255):
        assert float(binarise(torch.full((1000,), value, dtype=torch.uint8), uniform).mean()) == pytest.approx(
            value / 255
        )


def test_pictures_and_what_does_not_fit() -> None:
    model = made((1, 3, 4), (6,))
    picture = model.reconstruct(torch.ones(2, 1, 3, 4).double())
    assert picture.shape == (2, 3, 3, 8)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    with pytest.raises(ValueError, match="zeros and ones"):
        model.log_prob(torch.full((1, 1, 3, 4), 0.5).double())
    with pytest.raises(ValueError, match="order"):
        MADE(4, order="sorted")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one hidden layer"):
        MADE(4, ())
