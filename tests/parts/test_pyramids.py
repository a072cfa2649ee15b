"""Pyramids: bins and filters as their papers define them, and images that come back from their bands."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.pyramids import (
    chained_maxima,
    expand,
    from_laplacian,
    gaussian_pyramid,
    laplacian_pyramid,
    reduce,
    spatial_pyramid,
)

SIZES = [(1, 1), (1, 6), (2, 3), (5, 5), (7, 4), (16, 9), (13, 21)]


def close(found, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_bins_are_the_papers(size: tuple[int, int], pool) -> None:
    x = torch.randn(2, 3, *size, requires_grad=True)
    bins = (3, 1, 2, 6)
    expected = []
    for n in bins:
        for channel in range(3):
            for i in range(n):
                rows = slice(math.floor(i * size[0] / n), math.ceil((i + 1) * size[0] / n))
                for j in range(n):
                    columns = slice(math.floor(j * size[1] / n), math.ceil((j + 1) * size[1] / n))
                    window = x[:, channel, rows, columns].flatten(1)
                    expected.append(window.amax(1) if pool == "max" else window.mean(1))
    found, wanted = spatial_pyramid(x, bins, pool), torch.stack(expected, dim=1)
    assert found.shape == (2, 3 * (9 + 1 + 4 + 36))
    close(found, wanted)
    weight = torch.randn(found.shape)
    close(torch.autograd.grad(found, x, weight)[0], torch.autograd.grad(wanted, x, weight)[0], 1e-4)


def test_spatial_pyramid_is_torchs_pools_side_by_side() -> None:
    x = torch.randn(2, 5, 13, 10)
    kinds: dict = {"max": nn.AdaptiveMaxPool2d, "mean": nn.AdaptiveAvgPool2d}
    for pool, kind in kinds.items():
        close(spatial_pyramid(x, (4, 2, 1), pool), torch.cat([kind(n)(x).flatten(1) for n in (4, 2, 1)], dim=1))
    with pytest.raises(ValueError, match="max, mean"):
        spatial_pyramid(x, pool="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_maxima_in_a_row_are_maxima_of_wider_windows(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, requires_grad=True)
    for window, wider in ((5, (5, 9, 13)), (3, (3, 5, 7))):
        found = chained_maxima(x, window)
        expected = torch.cat([x, *(F.max_pool2d(x, k, stride=1, padding=k // 2) for k in wider)], dim=1)
        assert torch.equal(found, expected)
        weight = torch.randn(found.shape)
        close(torch.autograd.grad(found, x, weight)[0], torch.autograd.grad(expected, x, weight)[0], 1e-4)
    with pytest.raises(ValueError, match="center"):
        chained_maxima(x, 4)


def weights(a: float) -> Tensor:
    return torch.tensor([1 / 4 - a / 2, 1 / 4, a, 1 / 4, 1 / 4 - a / 2], dtype=torch.float64)


@pytest.mark.parametrize("a", [0.4, 0.375, 0.6])
@pytest.mark.parametrize("size", SIZES)
def test_reduce_and_expand_are_scipys_filter(size: tuple[int, int], a: float) -> None:
    x = torch.randn(*size, dtype=torch.float64)
    kernel = weights(a).outer(weights(a)).numpy()
    small = ndimage.correlate(x.numpy(), kernel, mode="mirror")[::2, ::2]
    close(reduce(x, a), torch.from_numpy(small.copy()), 1e-12)
    if min(size) > 1:
        between = np.zeros(size)
        between[::2, ::2] = small
        wide = 4 * ndimage.correlate(between, kernel, mode="mirror")
        close(expand(reduce(x, a), size, a), torch.from_numpy(wide), 1e-12)


def test_reduce_and_expand_are_torchs_convolutions() -> None:
    x = torch.randn(2, 1, 11, 14, dtype=torch.float64, requires_grad=True)
    kernel = weights(0.4).outer(weights(0.4))[None, None]
    small = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2)
    close(reduce(x), small, 1e-12)
    wide = 4 * F.conv_transpose2d(small, kernel, stride=2)[:, :, 2:, 2:]
    close(expand(small, (11, 14))[:, :, 2:-2, 2:-2], wide[:, :, 2:9, 2:12], 1e-12)
    assert torch.autograd.gradcheck(lambda x: laplacian_pyramid(x, 2)[0], x[:, :, :5, :6])


@pytest.mark.parametrize("size", SIZES)
def test_what_filters_keep(size: tuple[int, int]) -> None:
    """A constant stays one, borders and single pixels included; a slope stays one away from the borders."""
    for one in gaussian_pyramid(torch.ones(size), 3):
        close(one, torch.ones(one.shape), 1e-6)
    small = torch.ones([-(-n // 2) for n in size])
    close(expand(small, size), torch.ones(size), 1e-6)
    slope = torch.arange(20.0)[:, None] + 3 * torch.arange(16.0)
    close(reduce(slope)[1:-1, 1:-1], slope[2:-2:2, 2:-2:2])
    close(expand(slope[::2, ::2], (20, 16))[2:-3, 2:-3], slope[2:-3, 2:-3], 1e-5)


@pytest.mark.parametrize("levels", [0, 1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_comes_back_from_its_bands(size: tuple[int, int], levels: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    pyramid, bands = gaussian_pyramid(x, levels), laplacian_pyramid(x, levels)
    assert [g.shape[-2:] for g in pyramid] == [b.shape[-2:] for b in bands]
    assert [g.shape[-2:] for g in pyramid] == [tuple(math.ceil(n / 2**i) for n in size) for i in range(levels + 1)]
    assert torch.equal(bands[-1], pyramid[-1])
    close(from_laplacian(bands), x, 1e-13)
    close(from_laplacian(laplacian_pyramid(x.float(), levels, 0.6), 0.6), x.float(), 1e-6)


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="9x8 does not reduce to 4x4"):
        expand(torch.zeros(4, 4), (9, 8))
