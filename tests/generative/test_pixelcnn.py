"""Gated PixelCNN: who sees whom, probabilities that sum to one, and pixel by pixel as in one pass."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sensorium.generative.pixelcnn.method import PixelCNN


def model(height: int = 3, width: int = 4, **how) -> PixelCNN:
    torch.manual_seed(0)
    found = PixelCNN(height, width, **{"channels": 5, "layers": 3, "kernel": 3, **how}).double().eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.5)
    return found


def everything(height: int, width: int) -> Tensor:
    return torch.tensor(list(product([0.0, 1.0], repeat=height * width)), dtype=torch.float64).view(
        -1, 1, height, width
    )


@pytest.mark.parametrize("layers, kernel", [(1, 5), (2, 3), (4, 3), (3, 5), (3, 1)])
def test_a_pixel_sees_all_before_it_and_no_other(layers: int, kernel: int) -> None:
    """Without a blind spot: of two layers and more each pixel near enough is seen."""
    found = model(5, 6, layers=layers, kernel=kernel)
    depends = torch.zeros(30, 30, dtype=torch.bool)
    for x in torch.rand(5, 1, 1, 5, 6).round().double():  # where one leaves a unit of the head at zero, another doesn't
        depends |= torch.autograd.functional.jacobian(lambda x: found.logits(x), x).view(30, 30) != 0
    before = torch.ones(30, 30).tril(-1).bool()
    assert not (depends & ~before).any()
    row, column = (torch.arange(30) // 6, torch.arange(30) % 6)
    near = ((row[:, None] - row).abs() <= 3) & ((column[:, None] - column).abs() <= 3)
    assert torch.equal(depends & near, before & near)  # the first layer's kernel of 7 reaches them all


def test_probabilities_of_all_inputs_sum_to_one() -> None:
    for height, width in ((1, 1), (1, 5), (4, 1), (3, 3)):
        found, x = model(height, width, classes=2), everything(height, width)
        assert float(found.log_prob(x).detach().exp().sum()) == pytest.approx(1, abs=1e-9)
        for label in (0, 1, -1):
            each = -found.cost(found.logits(x, labels=torch.full((len(x),), label)), x)
            assert float(each.detach().exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("height, width", [(1, 1), (5, 6), (9, 3), (3, 9)])
@pytest.mark.parametrize("layers, kernel", [(1, 5), (4, 3), (3, 5), (2, 1)])
@pytest.mark.parametrize("classes", [0, 3])
def test_pixel_by_pixel_as_in_one_pass(height: int, width: int, layers: int, kernel: int, classes: int) -> None:
    found = model(height, width, layers=layers, kernel=kernel, classes=classes + 1 if classes else 0)
    x = torch.rand(4, 1, height, width).round().double()
    labels = torch.tensor([0, 2, -1, 1]) if classes else None
    with torch.no_grad():
        whole = found.logits(x, labels=labels)
        walk = found.network.walk(x, found._rows(labels, x))
        for d in range(height * width):
            at = divmod(d, width)
            torch.testing.assert_close(walk(*at)[:, 0], whole[:, 0, at[0], at[1]], atol=1e-12, rtol=1e-12)


def test_samples_are_of_their_class_and_seed() -> None:
    """Two classes of one picture each: after some steps each is drawn where it is asked for."""
    torch.manual_seed(0)
    found = PixelCNN(4, 4, channels=6, layers=3, kernel=5, classes=2)  # it can count to four
    images = torch.stack([torch.eye(4), torch.eye(4).flip(0)])[:, None]
    optimizer = torch.optim.Adam(found.parameters(), 0.02)
    for step in range(200):
        optimizer.zero_grad()
        label = torch.tensor([0, 1]) if step % 4 else torch.tensor([-1, -1])
        found({"image": images, "label": label})["loss"].backward()
        optimizer.step()
    for guidance in (1.0, 2.0):
        drawn = found.sample(40, seed=1, condition=1, guidance=guidance)
        assert float((drawn == images[1]).flatten(1).all(1).float().mean()) > 0.8
    both = found.sample(40, seed=1)
    assert float((both == images[torch.arange(40) % 2]).flatten(1).all(1).float().mean()) > 0.8
    assert torch.equal(both, found.sample(40, seed=1))
    half = torch.zeros(40, 1, 4, 4, dtype=torch.bool)
    half[:, :, :2] = True
    rest = found.complete(images[1].expand(40, -1, -1, -1), half, condition=1)
    assert float((rest == images[1]).flatten(1).all(1).float().mean()) > 0.8
    # of an unknown class it is a mixture: one bit for the class
    bits = -found.log_prob(images).detach() / torch.log(torch.tensor(2.0))
    assert float(bits.mean()) == pytest.approx(1, abs=0.3)


def test_samples_are_as_frequent_as_they_are_likely() -> None:
    found, n = model(2, 2, classes=2).requires_grad_(False), 40_000
    x = everything(2, 2)
    p = (-found.cost(found.logits(x, labels=torch.ones(16, dtype=torch.int64)), x)).exp()
    drawn = found.sample(n, seed=3, condition=1).flatten(1)
    counts = torch.bincount((drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long(), minlength=16)
    assert float(((counts - n * p) / (n * p * (1 - p)).sqrt().clamp_min(1)).abs().max()) < 4.5


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="kernels must be odd"):
        PixelCNN(4, 4, kernel=4)
    with pytest.raises(ValueError, match="class 7 must be less than 2"):
        model(4, 4, classes=2).sample(2, condition=7)
