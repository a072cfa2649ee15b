"""Temperature scaling and the expected calibration error."""

import numpy as np
import pytest
import torch

from sensorium.metrics.calibration import calibration_error, crossfitted, temperature


def sampled(n: int, classes: int, heat: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from softmax(logits / heat)."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=g)
    return logits, torch.multinomial((logits / heat).softmax(1), 1, generator=g)[:, 0]


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_temperature_that_drew_the_labels_is_found(heat: float, classes: int) -> None:
    logits, labels = sampled(20_000, classes, heat)
    found = temperature(logits, labels)
    assert found == pytest.approx(heat, rel=0.05)
    assert calibration_error((logits / found).softmax(1), labels) < 0.012
    assert calibration_error((logits / (3 * heat)).softmax(1), labels) > 0.1
    assert calibration_error(crossfitted(logits, labels), labels) < 0.012


def test_the_error_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 500)
    labels = rng.integers(0, 4, 500)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        chosen = (confidence > low) & (confidence <= low + 1 / 15)
        if chosen.any():
            expected += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    found = calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert found == pytest.approx(expected, abs=1e-12)
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1


def test_few_images_that_are_all_right_do_not_make_it_certain() -> None:
    logits = 2.0 * torch.eye(3).repeat(4, 1)
    labels = torch.arange(3).repeat(4)
    heat = temperature(logits, labels)
    assert 0.9 < float((logits[:1] / heat).softmax(1).max()) < 0.99
    assert temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)) == 1
