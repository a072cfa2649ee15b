"""Encoding: order, modes, random state, errors; what an encoder costs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.judge.cost import flops_per_image, parameters
from sensorium.judge.encode import encode, labels_of, normalised


@dataclass
class Pixels:
    images: np.ndarray
    labels: np.ndarray | None = None
    mean: tuple = (0.5, 0.4, 0.3)
    std: tuple = (0.2, 0.25, 0.3)
    classes: tuple = ()


def some(n=11, size=6, seed=0):
    return Pixels(np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8))


class Small(nn.Module):
    """A frozen part in evaluation mode beside one that trains; dropout and batch norm would show a wrong mode."""

    dim = 5

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))
        self.frozen = nn.Linear(2, 2).eval()

    def features(self, images):
        return self.net(images).mean((2, 3))


def test_features_are_those_of_normalised_images_in_order():
    pixels, encoder = some(), Small()
    got = encode(encoder, pixels, batch_size=4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pixels.mean, pixels.std))
    images = (torch.from_numpy(pixels.images).float() / 255 - mean) / std
    assert torch.allclose(normalised(torch.from_numpy(pixels.images), pixels.mean, pixels.std), images, atol=1e-5)
    with torch.no_grad():
        want = encoder.eval().features(images)
    assert got.dtype == torch.float32
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 11, 50])
def test_batch_size_and_memory_maps_change_nothing(batch_size, tmp_path):
    pixels, encoder = some(), Small()
    np.save(tmp_path / "x.npy", pixels.images)
    mapped = Pixels(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert torch.allclose(encode(encoder, mapped, batch_size=batch_size), encode(encoder, pixels), atol=1e-6)


def test_the_encoder_and_the_random_state_are_as_before():
    encoder = Small().train()
    encoder.frozen.eval()
    encoder.features_ = encoder.features
    encoder.features = lambda x: encoder.features_(x) + torch.rand(5) * 0
    before, modes = torch.get_rng_state(), [m.training for m in encoder.modules()]
    buffers = [b.clone() for b in encoder.buffers()]
    got = encode(encoder, some())
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in encoder.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, encoder.buffers(), strict=True))
    assert not got.requires_grad
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_modes_come_back_after_an_error_too():
    encoder = Small().train()
    encoder.features = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        encode(encoder, some())
    assert encoder.net.training


def test_what_it_caches_can_still_be_trained_through():
    class Caching(nn.Module):
        dim, cache = 3, None

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def features(self, images):
            if self.cache is None:
                self.cache = torch.arange(3.0)
            return images.mean((2, 3)) * self.cache * self.weight

    encoder = Caching()
    encode(encoder, some())
    encoder.features(torch.randn(2, 3, 4, 4)).sum().backward()
    assert encoder.weight.grad is not None


def test_progress_indices_size_and_empty_sets():
    seen, pixels, encoder = [], some(10), Small()
    encode(encoder, pixels, batch_size=4, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
    rows = np.array([7, 2, 2])
    assert torch.allclose(encode(encoder, pixels, indices=rows), encode(encoder, pixels)[rows], atol=1e-6)
    sizes = []
    encoder.features = lambda x: sizes.append(tuple(x.shape[-2:])) or x.mean((2, 3))
    encode(encoder, pixels, size=9)
    assert sizes == [(9, 9)]
    assert encode(encoder, some(0)).shape == (0, 5)


def test_bf16_is_near_float32_and_comes_back_as_float32():
    pixels, encoder = some(), Small()
    low, high = encode(encoder, pixels, precision="bf16"), encode(encoder, pixels)
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)
    assert torch.allclose(low, high, atol=0.05)
    with pytest.raises(ValueError, match="fp8"):
        encode(encoder, pixels, precision="fp8")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_first_image(bad):
    pixels, encoder = some(10), Small()
    pixels.images[6:] = 255
    encoder.features = lambda x: torch.where((x > 1.6).all(-1).all(-1).all(-1)[:, None], bad, 1.0).expand(-1, 5)
    with pytest.raises(SensoriumError, match="image 6 are not finite"):
        encode(encoder, pixels, batch_size=4)


def test_features_of_a_wrong_shape_are_refused():
    encoder = Small()
    encoder.features = lambda x: x
    with pytest.raises(ValueError, match=r"must be \[B, D\]"):
        encode(encoder, some())


def test_labels_of_a_set_without_labels_are_unknown():
    assert labels_of(some(3)).tolist() == [-1, -1, -1]
    assert labels_of(Pixels(some(2).images, np.array([1, 0]))).dtype == np.int64


def test_cost_of_a_convolution_an_attention_and_shared_weights():
    class Attending(nn.Module):
        dim = 8

        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 4, 4)
            self.same = self.patch

        def features(self, images):
            x = self.patch(images).flatten(2).transpose(1, 2)[:, None]
            return nn.functional.scaled_dot_product_attention(x, x, x)[:, 0].mean(1)

    net = Attending().train()
    n = 4 * 4
    assert flops_per_image(net, 16) == 2 * n * 8 * 3 * 16 + 2 * 2 * n * n * 8
    assert parameters(net) == 3 * 8 * 16 + 8
    assert net.training
