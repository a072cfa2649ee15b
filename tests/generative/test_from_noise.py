"""What systems promise that draw a sample as a function of normal noise."""

import pytest
import torch
from torch import Tensor, nn

from sensorium.abilities import FromNoise
from sensorium.generative.consistency.method import Consistency
from sensorium.generative.diffusion import Diffusion
from sensorium.generative.gan.method import GAN
from sensorium.generative.nice.method import NICE
from sensorium.generative.realnvp.method import RealNVP
from sensorium.generative.rectified_flow.method import RectifiedFlow
from sensorium.generative.vae.method import VAE
from sensorium.networks.gan import Discriminator, Generator
from sensorium.parts.denoising.frames import edm_frame, frame_of
from sensorium.parts.density.pixels import BernoulliPixels

SHAPE = (3, 4, 4)


class Net(nn.Module):
    labels = 0

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.tanh(self.mix(x) + t.view(-1, 1, 1, 1) / 1000)


def gan(classes: int = 0) -> GAN:
    return GAN(
        Generator(5, SHAPE, 4, classes=classes), Discriminator(SHAPE, 4, classes=classes), SHAPE, 5, classes=classes
    )


def vae(classes: int = 0) -> VAE:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 12))
    decoder = nn.Sequential(nn.Linear(3 * (classes or 1), 16), nn.Unflatten(1, (1, 4, 4)))
    return VAE(encoder, decoder, BernoulliPixels(), (1, 4, 4), 3, classes=classes)


KINDS = {
    "rectified flow": lambda: RectifiedFlow(Net(), SHAPE),
    "diffusion": lambda: Diffusion(Net(), SHAPE, edm_frame(), usual_steps=3),
    "DPM": lambda: Diffusion(Net(), SHAPE, frame_of("cosine", "v"), sampler="dpm", usual_steps=3),
    "consistency": lambda: Consistency(Net(), SHAPE),
    "GAN": gan,
    "VAE": vae,
    "categorical VAE": lambda: vae(4),
    "NICE": lambda: NICE((1, 4, 4), hidden=7, layers=3, depth=2),
    "RealNVP": lambda: RealNVP((1, 4, 4), width=4, blocks=1, scales=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_function_of_its_noise(kind: str) -> None:
    torch.manual_seed(0)
    found = KINDS[kind]().eval()
    assert isinstance(found, FromNoise)
    noise = found.noise_of(6, 3)
    assert noise.shape == (6, *found.start_shape)
    drawn = found.sample(6, start=noise)
    assert torch.equal(drawn, found.sample(6, seed=3))
    assert torch.equal(drawn, found.sample(6, seed=9, start=noise))
    torch.testing.assert_close(found.sample(2, start=noise[[4, 1]]), drawn[[4, 1]], atol=1e-5, rtol=1e-5)
    assert not torch.equal(drawn[0], drawn[1])
    with pytest.raises(ValueError, match=r"start must be \[5, "):
        found.sample(5, start=noise)


@pytest.mark.parametrize("sampler", ["ancestral", "dpm-sde"])
def test_a_start_has_no_further_noise(sampler) -> None:
    found = Diffusion(Net(), SHAPE, frame_of("linear", "noise"), sampler=sampler, usual_steps=4)
    noise = found.noise_of(3, 0)
    assert torch.equal(found.sample(3, seed=1, start=noise), found.sample(3, seed=2, start=noise, sampler="euler"))
    assert not torch.equal(found.sample(3, seed=1, start=noise), found.sample(3, seed=0))
    asked = [found.sample(3, seed=seed, start=noise, sampler=sampler) for seed in (1, 2)]
    assert not torch.equal(*asked)


def test_a_gan_of_classes_draws_a_start_of_one_class() -> None:
    found = gan(2)
    noise = found.noise_of(4, 0)
    assert torch.equal(found.sample(4, start=noise), found.sample(4, start=noise, condition=0))
    assert not torch.equal(found.sample(4, start=noise), found.sample(4, seed=0))


def test_logistic_and_categorical_variables_have_their_distribution() -> None:
    found = NICE((1, 4, 4), hidden=7, layers=3, depth=2).double()
    noise = (
        torch.tensor([-6.0, -1.3, 0.0, 0.4, 5.0], dtype=torch.float64).expand(16, 5).T.reshape(5, *found.start_shape)
    )
    z = found.encode(found.sample(5, start=noise)).flatten(1)[:, 0]
    torch.testing.assert_close(z.sigmoid(), torch.special.ndtr(noise.flatten(1)[:, 0]), atol=1e-12, rtol=1e-9)
    chosen = vae(4).noise_of(5000, 0).argmax(-1)
    assert float((torch.bincount(chosen.flatten(), minlength=4) / chosen.numel() - 0.25).abs().max()) < 0.02
