"""PSNR and SSIM against torchmetrics', and what they are by definition."""

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sensorium.metrics.likeness import psnr, ssim


def pair(size: tuple[int, int], noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 3, *size, generator=generator, dtype=torch.float64) * 255
    return x, (x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 255)


@pytest.mark.parametrize("size", [(11, 11), (28, 28), (33, 17)])
@pytest.mark.parametrize("noise", [1.0, 30.0])
def test_they_are_torchmetrics(size: tuple[int, int], noise: float) -> None:
    x, y = pair(size, noise)
    for i in range(3):
        wanted = peak_signal_noise_ratio(y[i : i + 1], x[i : i + 1], data_range=255.0)
        assert float(psnr(x, y)[i]) == pytest.approx(float(wanted), rel=1e-6)
        _, places = structural_similarity_index_measure(
            y[i : i + 1], x[i : i + 1], data_range=255.0, gaussian_kernel=True, sigma=1.5, return_full_image=True
        )
        theirs = places[..., 5:-5, 5:-5].mean()  # they reflect the picture at its edges; Wang et al. stay within it
        assert float(ssim(x, y)[i]) == pytest.approx(float(theirs), abs=1e-9)


def test_equal_pictures_and_tiny_ones() -> None:
    x, _ = pair((8, 8), 0.0)
    assert torch.equal(psnr(x, x), torch.full((3,), 100.0, dtype=torch.float64))
    torch.testing.assert_close(ssim(x, x), torch.ones(3, dtype=torch.float64))
    whole = torch.zeros(1, 1, 4, 4)
    assert float(psnr(whole, whole + 255)[0]) == pytest.approx(0.0)
    assert float(ssim(x, 255 - x)[0]) < 0.2
