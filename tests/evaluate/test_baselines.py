"""What a method must beat, on data where the answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.judge import baselines
from sensorium.networks.resnet import ResNet


def coloured(count: int, seed: int) -> SimpleNamespace:
    """Two classes, red and blue noise: raw pixels tell them apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 100, (count, 3, 12, 12))
    images[labels == 0, 0] += 120
    images[labels == 1, 2] += 120
    return SimpleNamespace(
        images=images.astype(np.uint8), labels=labels, mean=(0.4,) * 3, std=(0.2,) * 3, classes=("red", "blue")
    )


def test_majority_counts_known_labels_only() -> None:
    assert baselines.majority(np.array([2, 2, 1, -1, -1, -1]), np.array([2, 1, 2, 2, -1])) == {"top1": 0.75, "n": 4}
    with pytest.raises(SensoriumError, match="labels"):
        baselines.majority(np.array([-1]), np.array([0]))


def test_raw_pixels_are_the_pixels_and_learn_what_pixels_show() -> None:
    train, test = coloured(60, 0), coloured(40, 1)
    expected = (train.images.reshape(60, -1) / 255 - 0.4) / 0.2
    np.testing.assert_allclose(baselines.pixel_features(train).numpy(), expected, atol=1e-5)  # type: ignore[arg-type]
    found = baselines.pixels(train, test, fractions=(0.2, 1.0), seeds=(0, 1))  # type: ignore[arg-type]
    assert found["knn"]["top1"] == 1.0
    assert found["knn"]["n"] == found["whitened"]["n"] == 40
    assert found["whitened"]["top1"] == 1.0
    assert all(score["top1"] > 0.95 for score in found["linear"].values())


def test_a_random_network_is_the_same_for_the_same_seed_and_leaves_the_generator_alone() -> None:
    train, test = coloured(40, 0), coloured(20, 1)

    def build() -> nn.Module:
        return ResNet((1,), 8, stem="small")

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = baselines.random_network(build, train, test, fractions=(1.0,))  # type: ignore[arg-type]
    assert torch.equal(torch.rand(1), expected)
    assert one == baselines.random_network(build, train, test, fractions=(1.0,))  # type: ignore[arg-type]
    assert one["rankme"] >= 1
