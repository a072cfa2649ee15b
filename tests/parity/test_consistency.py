"""Consistency models beside diffusers' scheduler of them, which has the authors' coefficients and sampler."""

import pytest
import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from torch import Tensor, nn

from sensorium.generative.consistency.method import Consistency


class Net(nn.Module):
    labels = 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.tanh(self.mix(x) + t.view(-1, 1, 1, 1))


def scheduler_of(steps: int, deviation: float) -> CMStochasticIterativeScheduler:
    """Of Karras' levels, the least of which no step begins at. Its times are 1,000 log(sigma) / 4."""
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=steps + 1, sigma_data=deviation)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 5])
@torch.no_grad()
def test_samples_are_those_of_diffusers(shape: tuple[int, int, int], dtype: torch.dtype, steps: int) -> None:
    torch.manual_seed(0)
    method = Consistency(Net(shape[0]), shape, deviation=0.4, levels=9).to(dtype)
    scheduler, dice = scheduler_of(steps, 0.4), torch.Generator().manual_seed(3)
    # noise in float32 whatever the precision, as ours
    x = (torch.randn(4, *shape, generator=dice) * scheduler.init_noise_sigma).to(dtype)
    for k, time in enumerate(scheduler.timesteps):
        out = method.net(scheduler.scale_model_input(x, time), (time / 1000).to(dtype).expand(4))
        x = scheduler.step(out.float(), time, x.float(), generator=dice, return_dict=False)[0].to(dtype)
        assert float(method.sampling_sigmas(steps)[k]) == pytest.approx(float(scheduler.sigmas[k]), rel=1e-5)
    torch.testing.assert_close(method.sample(4, seed=3, steps=steps), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("deviation", [0.2, 0.5, 1.3])
@torch.no_grad()
def test_the_function_is_diffusers(deviation: float) -> None:
    torch.manual_seed(0)
    method, scheduler = Consistency(Net(3), (3, 4, 4), deviation=deviation).double(), scheduler_of(2, deviation)
    x = 2 * torch.randn(3, 3, 4, 4, dtype=torch.float64)
    for sigma in (0.002, 0.01, 0.7, 80.0):
        level = torch.full((3,), sigma, dtype=torch.float64)
        out = method.net(x / (level[0] ** 2 + deviation**2).sqrt(), level.log() / 4)
        skip, scale = scheduler.get_scalings_for_boundary_condition(level[0])
        torch.testing.assert_close(method.origin(x, level), skip * x + scale * out, atol=1e-12, rtol=1e-9)
