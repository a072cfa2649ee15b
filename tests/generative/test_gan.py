"""GAN: losses and penalties by hand, who gets a gradient in which phase, and two kinds of pictures learned."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from sensorium.base.draw import Draw
from sensorium.data.augment.differentiable import NUMBERS, diff_augment
from sensorium.generative.gan.method import GAN
from sensorium.generative.gan.recipe import gan_views
from sensorium.method import Progress
from sensorium.networks.gan import Discriminator, Generator, sides_of
from sensorium.parts.adversarial import gradient_penalty, r1, wasserstein_discriminator
from sensorium.parts.spectral import Spectral, spectral_, spectral_step_
from sensorium.training.step import Step


def small(shape=(3, 8, 8), classes: int = 0, residual: bool = True, width: int = 4, **how) -> GAN:
    torch.manual_seed(0)
    generator = Generator(5, shape, width, classes=classes, residual=residual)
    return GAN(
        generator, Discriminator(shape, width, classes=classes, residual=residual), shape, 5, classes=classes, **how
    )


def batch_of(found: GAN, n: int = 6) -> dict[str, Tensor]:
    fields = {"image": torch.randint(0, 256, (n, 3, *found.shape[1:]), dtype=torch.uint8), "label": torch.arange(n) % 2}
    return gan_views(found)(fields, Draw.seeded(0, 0, n))


def test_penalties_of_a_linear_discriminator() -> None:
    """Whose gradient is its weight everywhere."""
    w = torch.tensor([3.0, -4.0], requires_grad=True)
    x, y = torch.randn(6, 2), torch.randn(6, 2)
    judge = lambda images: images @ w  # noqa: E731
    assert float(gradient_penalty(judge, x, y, torch.rand(6))) == pytest.approx(16.0)
    assert float(r1(judge, x)) == pytest.approx(12.5)
    (grad,) = torch.autograd.grad(r1(judge, x), w)
    torch.testing.assert_close(grad, w.detach())
    assert float(wasserstein_discriminator(torch.tensor([1.0, 3.0]), torch.tensor([5.0]))) == 3.0


def test_the_gradient_penalty_is_between_the_images() -> None:
    """Of D(x) = |x|^2 / 2 the gradient is x itself."""
    x, y, u = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5)
    at = u[:, None] * x + (1 - u[:, None]) * y
    got = gradient_penalty(lambda images: images.square().sum(1) / 2, x, y, u)
    torch.testing.assert_close(got, (at.norm(dim=1) - 1).square().mean())


@pytest.mark.parametrize("loss", ["non-saturating", "hinge", "wasserstein"])
@pytest.mark.parametrize("classes", [0, 2])
def test_the_losses(loss, classes: int) -> None:
    found = small(loss=loss, classes=classes).eval()
    batch = batch_of(found)
    labels = batch.get("label")
    y, z = (found.generator(batch["noise"][:, k], labels) for k in (0, 1))
    real, made, fooling = (found.discriminator(images, labels).detach() for images in (batch["image"], y, z))
    if loss == "non-saturating":
        wanted = (
            (-torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(made)).log().mean()) / 2,
            -torch.sigmoid(fooling).log().mean(),
        )
    elif loss == "hinge":
        wanted = ((1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()) / 2, -fooling.mean()
    else:
        wanted = made.mean() - real.mean(), -fooling.mean()
    torch.testing.assert_close(found(batch, "discriminator")["loss"], wanted[0])
    torch.testing.assert_close(found(batch, "generator")["loss"], wanted[1])
    with pytest.raises(ValueError, match="phase"):
        found(batch, "critic")


@pytest.mark.parametrize("penalty", ["none", "gradient", "r1"])
@pytest.mark.parametrize("spectral", [False, True])
def test_each_phase_trains_its_own(penalty, spectral: bool) -> None:
    found = small(penalty=penalty, spectral=spectral, augment=True).train()
    for phase, own, other in (
        ("discriminator", "discriminator", "generator"),
        ("generator", "generator", "discriminator"),
    ):
        found.zero_grad()
        found(batch_of(found), phase)["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in getattr(found, own).parameters())
        assert all(p.grad is None for p in getattr(found, other).parameters())


def test_spectral_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    theirs.load_state_dict(ours.state_dict())
    theirs = spectral_norm(theirs)
    spectral_(ours)
    one, other = ours.parametrizations.weight[0], theirs.parametrizations.weight[0]
    assert isinstance(one, Spectral)
    one.u.copy_(other._u)
    one.v.copy_(other._v)
    theirs.eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    grads = [
        torch.autograd.grad(layer(x).square().sum(), layer.parametrizations.weight.original)[0]
        for layer in (ours, theirs)
    ]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
    theirs.train()
    theirs(x)  # iterates once
    spectral_step_(ours)
    torch.testing.assert_close(one.u, other._u, atol=1e-5, rtol=1e-5)
    for _ in range(200):
        spectral_step_(ours)
    assert float(torch.linalg.matrix_norm(ours.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-4)


def test_only_the_hook_iterates() -> None:
    found = small(spectral=True).train()
    before = {name: b.clone() for name, b in found.named_buffers() if name.endswith((".u", ".v"))}
    assert before
    found(batch_of(found), "discriminator")
    assert all(torch.equal(found.get_buffer(name), b) for name, b in before.items())
    found.before_step(Progress(0, 0, 0.0))
    assert not all(torch.equal(found.get_buffer(name), b) for name, b in before.items())


@pytest.mark.parametrize("height, width", [(8, 8), (9, 12), (11, 6)])
def test_augmentation(height: int, width: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 3, height, width) * 2 - 1
    nothing = torch.full((64, NUMBERS), 0.5)
    same = diff_augment(x, nothing)
    cut = same == 0
    torch.testing.assert_close(same[~cut], x[~cut])
    size = int(height * 0.5 + 0.5) * int(width * 0.5 + 0.5)
    assert int(cut[0, 0].sum()) == size  # a square in the middle
    moved = diff_augment(x + 3, torch.cat([nothing[:, :3], torch.rand(64, 4)], 1))
    kept = (moved[:, 0] != 0).flatten(1).sum(1)
    assert int(kept.min()) < height * width - size + 1
    bright = nothing.clone()
    bright[:, 0] = 1.0
    torch.testing.assert_close(diff_augment(x, bright)[~cut], x[~cut] + 0.5)
    gray = nothing.clone()
    gray[:, 1] = 0.0
    torch.testing.assert_close(diff_augment(x, gray)[~cut], x.mean(1, keepdim=True).expand_as(x)[~cut])
    far = nothing.clone()
    far[:, 3] = 0.999  # rows come from below
    most = int(height / 8 + 0.5)
    wanted = F.pad(x, (0, 0, 0, most))[:, :, most:]
    got = diff_augment(x, far)
    torch.testing.assert_close(got[~cut], wanted[~cut])
    x.requires_grad_()
    diff_augment(x, torch.rand(64, NUMBERS)).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 33, 33), (1, 28, 28), (3, 9, 14), (3, 4, 4)])
def test_networks_of_any_side(residual: bool, shape) -> None:
    drawn = Generator(5, shape, 4, residual=residual)(torch.randn(3, 5))
    assert drawn.shape == (3, *shape)
    assert float(drawn.abs().max()) <= 1
    assert Discriminator(shape, 4, residual=residual)(drawn).shape == (3,)
    assert sides_of(28, 28) == [(28, 28), (14, 14), (7, 7), (4, 4)]


def test_it_learns_two_pictures_by_their_class() -> None:
    found = small((1, 8, 8), classes=2, width=8, penalty="r1", weight=1.0)
    rows = (torch.arange(8) // 2 % 2 * 2.0 - 1).expand(8, -1)
    images = torch.stack([rows, rows.T])[:, None]  # stripes of two pixels, down or across
    adam = lambda phase: lambda m: torch.optim.Adam(list(m.parameters_of(phase)), 2e-3, betas=(0.0, 0.99))  # noqa: E731
    step = Step(found, {phase: adam(phase) for phase in found.phases}, lambda f: 1.0)
    draw = torch.Generator().manual_seed(0)
    for k in range(300):
        label = torch.randint(2, (16,), generator=draw)
        noise = torch.randn(16, 2, 5, generator=draw)
        batch = {
            "image": images[label],
            "label": label,
            "noise": noise,
            "uniform": torch.rand(16, 1 + 3 * NUMBERS, generator=draw),
        }
        told = step([batch], Progress(k, 0, k / 300))
    assert all(math.isfinite(float(value)) for value in told.values())
    for label in (0, 1):
        drawn = found.sample(32, seed=1, condition=label)
        assert float((drawn - images[label]).square().mean()) < 0.3 * float((drawn - images[1 - label]).square().mean())


def test_samples_and_what_does_not_fit() -> None:
    found = small(classes=2)
    drawn = found.sample(5, seed=1)
    assert torch.equal(drawn, found.sample(5, seed=1))
    assert found.training
    assert torch.equal(drawn, found.sample(5, seed=1, condition=torch.arange(5) % 2))
    for how, said in (({"loss": "mse"}, "loss"), ({"penalty": "r3"}, "penalty"), ({"weight": -1.0}, "negative")):
        with pytest.raises(ValueError, match=said):
            small(**how)
    with pytest.raises(ValueError, match="guidance"):
        found.sample(2, guidance=2.0)
