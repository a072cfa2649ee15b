"""Noise-contrastive estimation: the formula written plainly, and a normalizer learned that is known in closed form."""

import math

import pytest
import torch
from torch.nn import functional as F

from sensorium.parts.learning.nce import NCE, nce_loss


@pytest.mark.parametrize("k", [1, 4, 25])
@pytest.mark.parametrize("shape", [(5,), (3, 7)])
def test_formula_as_it_is_written_elsewhere(k: int, shape: tuple[int, ...]) -> None:
    """As in Stonesjtu/Pytorch-NCE: binary cross-entropy of log-odds, samples of data first, summed over the samples."""
    torch.manual_seed(k)
    data, noise = torch.randn(shape, dtype=torch.float64), torch.randn(*shape, k, dtype=torch.float64)
    q_data, q_noise = torch.randn_like(data), torch.randn_like(noise)
    model = NCE(0.7).double()
    data.requires_grad_()
    noise.requires_grad_()
    logits = torch.cat([(data - 0.7)[..., None], noise - 0.7], -1) - torch.cat([q_data[..., None], q_noise], -1)
    label = torch.zeros_like(logits)
    label[..., 0] = 1
    want = F.binary_cross_entropy_with_logits(logits - math.log(k), label, reduction="none").sum(-1).mean()
    got = model(data, noise, q_data, q_noise)
    torch.testing.assert_close(got, want)
    for one, other in zip(
        torch.autograd.grad(got, (data, noise)), torch.autograd.grad(want, (data, noise)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("k", [1, 10])
def test_the_normalizer_and_the_model_converge_to_the_truth(k: int) -> None:
    """Data of deviation 0.7 in 2 dimensions, noise of 1.5; f = -|x|^2 / 2 s^2, so Z = 2 pi s^2."""
    made = torch.Generator().manual_seed(0)
    true, wide, n = 0.7, 1.5, 20_000
    x = true * torch.randn(n, 2, dtype=torch.float64, generator=made)
    e = wide * torch.randn(n, k, 2, dtype=torch.float64, generator=made)

    def log_q(x: torch.Tensor) -> torch.Tensor:
        return -x.square().sum(-1) / 2 / wide**2 - math.log(2 * math.pi * wide**2)

    model, log_s = NCE().double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([model.log_z, log_s], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        data, noise = (-x.square().sum(-1) / 2 / (2 * log_s).exp() for x in (x, e))
        value = model(data, noise, log_q(x), log_q(e))
        value.backward()
        return value

    optimizer.step(loss)
    assert log_s.exp().item() == pytest.approx(true, abs=0.01)
    assert model.log_z.item() == pytest.approx(math.log(2 * math.pi * true**2), abs=0.03)


def test_data_and_noise_that_are_alike_are_chance() -> None:
    x, e = torch.randn(4), torch.randn(4, 3)
    assert nce_loss(x + math.log(3), e + math.log(3), x, e).item() == pytest.approx(4 * math.log(2))
    assert nce_loss(x.bfloat16(), e.bfloat16(), x, e).dtype == torch.float32


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[4\], \[3, 2\], \[4\], \[3, 2\]"):
        nce_loss(torch.zeros(4), torch.zeros(3, 2), torch.zeros(4), torch.zeros(3, 2))
