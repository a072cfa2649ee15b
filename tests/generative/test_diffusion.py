"""Diffusions in one frame: equal pictures through every parametrization, exact densities, guidance, completion."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sensorium.base.draw import Draw
from sensorium.generative.diffusion import Diffusion, diffusion_views
from sensorium.parts.denoising.frames import Frame, edm_frame, frame_of
from sensorium.parts.denoising.likelihood import log_density
from sensorium.parts.denoising.paths import data_of, path_of, target
from sensorium.parts.denoising.samplers import karras_sigmas, sampled

SHAPE = (3, 4, 5)


class Net(nn.Module):
    """Any function of a picture, the time and the label."""

    labels = 0

    def __init__(self, labels: int = 0) -> None:
        super().__init__()
        self.labels = labels
        self.inner, self.outer = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.label = nn.Embedding(labels, 8) if labels else None

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.inner(x) + torch.sin(t / 300).view(-1, 1, 1, 1)
        if self.label is not None:
            assert label is not None
            h = h + self.label(label)[..., None, None]
        return self.outer(torch.tanh(h))


def small(frame: Frame, classes: int = 0, **how) -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(Net(classes + 1 if classes else 0), SHAPE, frame, classes=classes, **how).double()


FRAMES = {
    **{
        f"{path} {kind}": lambda path=path, kind=kind: frame_of(path, kind)
        for path in ("linear", "scaled", "cosine", "vp", "flow")
        for kind in ("noise", "x", "v", "velocity")
    },
    "ve noise": lambda: frame_of("ve", "noise"),
    "subvp score": lambda: frame_of("subvp", "score"),
    "EDM": edm_frame,
}


def batch_of(found: Diffusion, n: int = 6) -> dict[str, Tensor]:
    fields = {"image": torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8), "label": torch.arange(n) % 2 - 1}
    batch = diffusion_views(found)(fields, Draw.seeded(0, 0, n))
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


@pytest.mark.parametrize("name", FRAMES)
def test_the_loss_is_that_of_the_denoiser(name: str) -> None:
    """w / c_out^2 |D - data|^2, and of a path the squared error of the prediction."""
    found = small(FRAMES[name]())
    batch = batch_of(found)
    sigma = found.frame.draw(batch["level"])
    low, high = found.frame.ends
    assert name == "EDM" or (float(sigma.min()) >= low * 0.999 and float(sigma.max()) <= high * 1.001)
    data = found.denoised(batch["image"] + sigma.view(-1, 1, 1, 1) * batch["noise"], sigma)
    scale = found.frame.weight(sigma) / found.frame.out(sigma).square()
    wanted = (scale * (data - batch["image"]).square().flatten(1).mean(1)).mean()
    torch.testing.assert_close(found(batch)["loss"], wanted)
    if name != "EDM":
        path_name, kind = name.split()
        path = path_of(path_name)  # pyright: ignore[reportArgumentType]
        t = path.time(sigma)
        a, s = (f(t).view(-1, 1, 1, 1) for f in (path.scale, path.noise))
        x_t = a * batch["image"] + s * batch["noise"]
        discrete = path_name in ("linear", "scaled", "cosine")
        given = found.net(x_t, t * 1000 - float(discrete))
        each = (given - target(kind, batch["image"], batch["noise"], a, s)).square().flatten(1).mean(1)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found(batch)["loss"], (found.frame.weight(sigma) * each).mean())


def test_edms_frame_has_equal_tasks() -> None:
    """Inputs and targets of variance 1 at each noise level (EDM, appendix B.6)."""
    frame = edm_frame(0.5)
    x, n = 0.5 * torch.randn(200_000).double(), torch.randn(200_000).double()
    for sigma in (0.01, 0.3, 2.0, 50.0):
        level = torch.tensor(sigma)
        noisy = x + sigma * n
        assert float((frame.inputs(level) * noisy).var()) == pytest.approx(1, abs=0.02)
        assert float(((x - frame.skip(level) * noisy) / frame.out(level)).var()) == pytest.approx(1, abs=0.02)


def test_one_network_through_each_parametrization_draws_the_same_pictures() -> None:
    """A denoiser told as noise, x, v, velocity or score of any path, and read back."""
    net = Net().double()
    plain = lambda x, sigma: torch.tanh(net(x / (1 + sigma.view(-1, 1, 1, 1)), 100 * sigma.log()))  # noqa: E731
    sigmas = karras_sigmas(12, 0.01, 20.0)
    start = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)).double() * 20
    wanted = sampled(plain, start, sigmas, "heun")
    for name in ("linear", "cosine", "vp", "subvp", "ve", "flow"):
        path = path_of(name)
        for kind in ("noise", "x", "v", "velocity", "score"):

            def told(x: Tensor, sigma: Tensor, path=path, kind=kind) -> Tensor:
                t = path.time(sigma)
                a, s = (f(t).view(-1, 1, 1, 1) for f in (path.scale, path.noise))
                data = plain(x, sigma)
                return data_of(kind, target(kind, data, (a * x - a * data) / s, a, s), a * x, a, s)

            torch.testing.assert_close(sampled(told, start, sigmas, "heun"), wanted, atol=1e-6, rtol=1e-6)


def test_ddim_is_euler_of_the_vp_ode_in_its_own_time() -> None:
    """Song et al.'s ODE dx/dt = -beta/2 (x + score), by small steps of t; DDIM of as many steps comes to the same picture."""
    path, found = path_of("vp"), small(frame_of("vp", "noise"))
    times = torch.linspace(0.999, 0.01, 3001, dtype=torch.float64)
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    start = x / path.scale(times[0])
    for now, after in itertools.pairwise(times):
        noise = found.net(x, (now * 1000).expand(2))
        beta = 0.1 + now * 19.9
        x = x + (after - now) * (-beta / 2 * (x - noise / path.noise(now)))
    mine = sampled(found.denoiser(), start, path.sigma(times), "euler") * path.scale(times[-1])
    torch.testing.assert_close(mine, x, atol=2e-2, rtol=2e-2)


def test_flow_matching_is_v_prediction_in_another_time_and_scale() -> None:
    """u and v of the same data and noise differ by a factor and a multiple of x_t at equal sigma (both tell the same data)."""
    x, n = torch.randn(2, 7).double()
    flow, cosine, sigma = path_of("flow"), path_of("cosine"), torch.tensor(0.8).double()
    data = []
    for path, kind in ((flow, "velocity"), (cosine, "v")):
        t = path.time(sigma)
        a, s = path.scale(t), path.noise(t)
        data.append(data_of(kind, target(kind, x, n, a, s), a * x + s * n, a, s))
    torch.testing.assert_close(*data)
    a, s = (f(cosine.time(sigma)) for f in (cosine.scale, cosine.noise))
    v, u = a * n - s * x, n - x
    x_t = a * x + s * n
    torch.testing.assert_close(v, (u + (a - s) * x_t) / (a + s))


# --- exact densities ---


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of two normals at -1 and 2 of deviation 0.3 in each coordinate."""
    centers, variance = torch.tensor([-1.0, 2.0]).double(), 0.09
    s = sigma.view(-1, *(1,) * (x.ndim - 1)).square()
    far = (x[..., None] - centers).square()
    share = (-far / 2 / (variance + s[..., None])).softmax(-1)
    each = (variance * x[..., None] + s[..., None] * centers) / (variance + s[..., None])
    return (share * each).sum(-1)


def density(x: Tensor, low: float) -> Tensor:
    spread = math.sqrt(0.09 + low**2)
    both = torch.stack([torch.distributions.Normal(center, spread).log_prob(x) for center in (-1.0, 2.0)])
    return (both.logsumexp(0) - math.log(2)).flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4, 4)])
def test_the_density_of_a_mixture(shape) -> None:
    """Exact traces of up to 16 values, Hutchinson's probes of more; these are exact here, as the Jacobian is diagonal."""
    torch.manual_seed(0)
    x = torch.cat(
        [torch.randn(4, *shape) * 0.3 - 1, torch.randn(4, *shape) * 0.3 + 2, torch.rand(4, *shape) * 4 - 1.5]
    ).double()
    got = log_density(mixture, x, 0.01, 200.0, steps=400, deviation=1.5)
    torch.testing.assert_close(got, density(x, 0.01), atol=0.03 * x[0].numel(), rtol=0)


def test_probes_are_without_bias() -> None:
    """Of coordinates that mix: the mean over seeds approaches the exact trace."""
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)).double()).Q
    mixed = lambda x, sigma: mixture(x @ turn, sigma) @ turn.T  # noqa: E731
    x = (torch.randn(1, 20, generator=torch.Generator().manual_seed(1)).double() * 0.3 - 1) @ turn.T
    wanted = float(density(x @ turn, 0.01))
    copies = x.expand(200, -1)
    got = log_density(mixed, copies, 0.01, 200.0, steps=150, deviation=1.5)
    assert float(got.std()) > 0.05
    assert float(got.mean()) == pytest.approx(wanted, abs=5 * float(got.std()) / math.sqrt(200) + 0.2)


# --- the method ---


def test_guidance() -> None:
    found = small(edm_frame(), classes=2)
    x, sigma, label = torch.randn(4, *SHAPE).double(), torch.full((4,), 1.5).double(), torch.tensor([0, 1, 1, 0])
    free, told = found.denoised(x, sigma), found.denoised(x, sigma, label)
    torch.testing.assert_close(found.denoiser(label, 3.0)(x, sigma), free + 3 * (told - free))
    torch.testing.assert_close(found.denoiser(label)(x, sigma), told)
    torch.testing.assert_close(found.denoiser(label, 3.0, (2.0, 9.0))(x, sigma), told)
    torch.testing.assert_close(found.denoised(x, sigma, torch.tensor([0, -1, 1, -1]))[1::2], free[1::2])
    with pytest.raises(ValueError, match="no classes"):
        small(edm_frame()).denoiser(label)


def test_samples_follow_seed_label_and_steps() -> None:
    found = small(edm_frame(), classes=2, usual_steps=4)
    drawn = found.sample(5, seed=1)
    assert torch.equal(drawn, found.sample(5, seed=1))
    assert not torch.equal(drawn, found.sample(5, seed=2))
    assert not torch.equal(drawn, found.sample(5, seed=1, condition=1))
    assert found.sample(5, seed=1, steps=3, trace=True).shape == (4, 5, *SHAPE)
    for sampler in ("euler", "heun", "ancestral", "dpm", "dpm-sde", "plms", "adaptive"):
        assert bool(found.sample(2, seed=0, sampler=sampler).isfinite().all())


def test_the_rest_of_a_picture() -> None:
    """Of pictures whose right half is the left one: a denoiser that knows it completes them."""
    frame = edm_frame()

    class Twins(Diffusion):
        def denoised(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            mean = (x + x.roll(2, -1)) / 2  # of both halves
            shrunk = sigma.view(-1, 1, 1, 1).square() / 2
            return 0.25 / (0.25 + shrunk) * mean

    torch.manual_seed(0)
    found = Twins(Net(), (3, 4, 4), frame).double()
    half = (torch.randn(8, 3, 4, 2) * 0.5).clamp(-1, 1).double()
    whole = torch.cat([half, half], -1)
    known = torch.zeros_like(whole, dtype=torch.bool)
    known[..., :2] = True
    drawn = found.complete(torch.where(known, whole, float("nan")), known, seed=1, steps=100)
    assert torch.equal(drawn[known], whole[known])
    assert float((drawn - whole).abs().mean()) < 0.1


def test_views_and_what_does_not_fit() -> None:
    found = small(edm_frame(), classes=2, drop=0.5)
    batch = batch_of(found, 400)
    assert float(batch["drop"].double().mean()) == pytest.approx(0.5, abs=0.1)
    assert 0 < float(batch["level"].min()) < float(batch["level"].max()) < 1
    for make, said in (
        (lambda: frame_of("vp", "mean"), "prediction must be"),  # pyright: ignore[reportArgumentType]
        (lambda: frame_of("line", "x"), "path must be"),  # pyright: ignore[reportArgumentType]
        (lambda: edm_frame(0.0), "above 0"),
        (lambda: Diffusion(Net(2), SHAPE, edm_frame(), drop=2.0), "drop"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
