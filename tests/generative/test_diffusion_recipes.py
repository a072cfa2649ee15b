"""DDPM, EDM and score SDEs as their recipes make them, beside diffusers and the papers' equations."""

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler
from torch import Tensor, nn

from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.generative.ddpm.recipe import ddpm
from sensorium.generative.diffusion import Diffusion
from sensorium.generative.edm.recipe import edm
from sensorium.generative.score_sde.recipe import score_sde
from sensorium.parts.denoising.paths import STEPS
from sensorium.parts.denoising.samplers import sampled

ON = Situation(8, 64, (), (0.5,) * 3, (0.2,) * 3, "cpu", 1)


def random_(method: Diffusion) -> Diffusion:
    """In float64, with weights that are not zero."""
    torch.manual_seed(0)
    for parameter in method.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    return method.double().eval()


@pytest.mark.parametrize("schedule, theirs", [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
@pytest.mark.parametrize("prediction, said", [("noise", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize("clip", [False, True])
@torch.no_grad()
def test_ddpms_network_is_one_of_diffusers_schedulers(schedule, theirs: str, prediction, said: str, clip: bool) -> None:
    method = random_(ddpm(ON, schedule=schedule, prediction=prediction, clip=clip).method)
    scheduler = DDIMScheduler(STEPS, beta_schedule=theirs, clip_sample=clip, prediction_type=said)
    scheduler.set_timesteps(8)
    products = scheduler.alphas_cumprod.double()
    sigmas = torch.cat([((1 - products) / products).sqrt()[scheduler.timesteps], torch.zeros(1)])
    x_t = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    start = x_t / products[scheduler.timesteps[0]].sqrt()
    for step in scheduler.timesteps:
        out = method.net(x_t, step.double().expand(2), None)
        x_t = scheduler.step(out, int(step), x_t, use_clipped_model_output=clip).prev_sample
    torch.testing.assert_close(sampled(method.denoiser(), start, sigmas, "euler"), x_t, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_edms_denoiser_is_diffusers() -> None:
    method, scheduler = (
        random_(edm(ON).method),
        EDMEulerScheduler(sigma_data=0.4),
    )  # the data's deviation, of values in -1..1
    x = 3 * torch.randn(5, 3, 8, 8, dtype=torch.float64)
    for sigma in (0.002, 0.3, 5.0, 80.0):
        level = torch.full((5,), sigma, dtype=torch.float64)
        out = method.net(scheduler.precondition_inputs(x, level[0]), scheduler.precondition_noise(level), None)
        torch.testing.assert_close(method.denoised(x, level), scheduler.precondition_outputs(x, out, level[0]))
    torch.testing.assert_close(
        method.sigmas(18)[:-1],
        scheduler._compute_karras_sigmas(torch.linspace(0, 1, 18)).double(),
        atol=1e-3,
        rtol=1e-4,
    )


def marginal(sde: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean's factor and deviation of x_t (Song et al., 2020, eq. 29), betas from 0.1 to 20, sigmas from 0.01 to 50."""
    half = -(t.square() * 19.9 / 4 + t * 0.1 / 2)
    match sde:
        case "ve":
            return torch.ones_like(t), 0.01 * 5000**t
        case "vp":
            return half.exp(), (1 - (2 * half).exp()).sqrt()
    return half.exp(), 1 - (2 * half).exp()


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@torch.no_grad()
def test_the_score_is_that_of_the_sde(sde, prediction) -> None:
    """grad log p(x_t) = (a D - x_t) / s^2 (Tweedie), which is -n / s of the noise n: the network F at 1,000 t, or of its velocity n - x."""
    method = random_(score_sde(ON, sde=sde, prediction=prediction).method)
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    a, s = marginal(sde, t)
    x_t = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    broad = lambda value: value[:, None, None, None]  # noqa: E731
    data = method.denoised(x_t / broad(a), s / a)
    score = (broad(a) * data - x_t) / broad(s.square())
    told = method.net(x_t, 1000 * t, None)
    noise = told if prediction == "noise" else (x_t + broad(a) * told) / broad(a + s)
    torch.testing.assert_close(score, -noise / broad(s), atol=1e-5, rtol=1e-4)


def test_what_a_recipe_refuses() -> None:
    with pytest.raises(SensoriumError, match=r"path must be one of"):
        ddpm(ON, schedule="quadratic")  # pyright: ignore
    with pytest.raises(SensoriumError, match="prediction must be one of"):
        ddpm(ON, prediction="velocities")  # pyright: ignore
    with pytest.raises(SensoriumError, match="no network is called"):
        edm(ON, network="unet-tiny")
