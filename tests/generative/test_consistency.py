"""Consistency distillation: the loss by hand, the boundary, a Gaussian whose trajectories are known, what a recipe refuses."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sensorium
from sensorium.base.draw import Draw
from sensorium.errors import SensoriumError
from sensorium.generative.consistency.method import Consistency, neighbor
from sensorium.generative.consistency.recipe import distilled_views
from sensorium.generative.diffusion import Diffusion
from sensorium.method import Progress
from sensorium.parts.denoising.frames import edm_frame
from sensorium.parts.denoising.samplers import sampled
from sensorium.use.sampling import draw

LEAST, MOST = 0.002, 80.0
FEW: dict[str, Any] = {"data": "digits", "limit": 40, "batch_size": 8, "progress": False, "budget": "2steps"}


class Net(nn.Module):
    def __init__(self, channels: int, classes: int = 0) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.label = nn.Embedding(classes + 1, channels)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        which = torch.zeros_like(t, dtype=torch.int64) if label is None else label
        return torch.tanh(self.mix(x) + t.view(-1, 1, 1, 1) + self.label(which)[:, :, None, None])


def consistency_of(shape: tuple[int, int, int], dtype: torch.dtype, classes: int = 0, **how: Any) -> Consistency:
    """With an average that differs from the weights."""
    torch.manual_seed(0)
    method = Consistency(Net(shape[0], classes), shape, classes=classes, **how)
    for parameter in method.target.parameters():
        nn.init.normal_(parameter, std=0.3)
    return method.to(dtype)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_is_the_papers(shape: tuple[int, int, int], dtype: torch.dtype, classes: int) -> None:
    d = 0.4
    method = consistency_of(shape, dtype, classes, deviation=d, levels=6)
    teacher = Diffusion(copy.deepcopy(method.target).float(), shape, edm_frame(0.5), classes=classes)
    pixels = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    fields = {"image": pixels, "label": torch.arange(9) % 4 - 1}
    batch = distilled_views(method, teacher, drop=0.0)(fields, Draw.seeded(0, 0, 9))
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}

    def f(net: nn.Module, x: Tensor, sigma: Tensor, label: Tensor | None, d: float, least: float) -> Tensor:
        s = sigma[:, None, None, None]
        skip, out = d**2 / ((s - least) ** 2 + d**2), d * (s - least) / (d**2 + s**2) ** 0.5
        return skip * x + out * net(x / (s**2 + d**2) ** 0.5, sigma.log() / 4, label)

    known = {torch.float32: 1e-4, torch.float64: 1e-6}[dtype]  # the batch is in float32
    high, low = batch["sigma"], batch["below"]
    grid = (MOST ** (1 / 7) + torch.arange(6) / 5 * (LEAST ** (1 / 7) - MOST ** (1 / 7))) ** 7
    at = (high[:, None] / grid - 1).abs().argmin(1)
    torch.testing.assert_close(high, grid[at].to(dtype), rtol=1e-4, atol=0)
    torch.testing.assert_close(low, grid[at + 1].to(dtype), rtol=1e-4, atol=0)

    label = torch.where(fields["label"] < 0, classes, fields["label"]) if classes else None
    net = teacher.net.to(dtype)
    x, s, e = batch["noisy"], high[:, None, None, None], low[:, None, None, None]
    slope = (x - f(net, x, high, label, 0.5, 0.0)) / s
    end = x + (e - s) * slope
    solved = x + (e - s) * (slope + (end - f(net, end, low, label, 0.5, 0.0)) / e) / 2
    torch.testing.assert_close(batch["solved"], solved, atol=1e-3, rtol=1e-3)

    online, target = f(method.net, x, high, label, d, LEAST), f(method.target, batch["solved"], low, label, d, LEAST)
    loss = ((online - target.detach()) ** 2).mean()
    found = method(batch)["loss"]
    torch.testing.assert_close(found, loss, rtol=known, atol=1e-6)
    wanted = torch.autograd.grad(loss, [method.net.mix.weight])[0]  # pyright: ignore
    found.backward()
    torch.testing.assert_close(method.net.mix.weight.grad, wanted, rtol=1e-4, atol=1e-5)  # pyright: ignore
    assert all(p.grad is None for network in (method.target, teacher) for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_least_sigma_it_changes_nothing(dtype: torch.dtype) -> None:
    method = consistency_of((3, 5, 7), dtype)
    x = 3 * torch.randn(4, 3, 5, 7, dtype=dtype)
    torch.testing.assert_close(method.origin(x, torch.full((4,), LEAST, dtype=dtype)), x, atol=1e-7, rtol=0)
    assert not torch.allclose(method.origin(x, torch.full((4,), 0.01, dtype=dtype)), x, atol=1e-3)


def test_the_teachers_step_is_heuns() -> None:
    teacher = Diffusion(Net(3), (3, 4, 4), edm_frame(0.5)).double()
    x = 5 * torch.randn(4, 3, 4, 4, dtype=torch.float64)
    high, low = torch.tensor([80.0, 3.0, 0.4, 0.01]).double(), torch.tensor([40.0, 2.0, 0.1, 0.002]).double()
    found = neighbor(teacher.denoiser(), x, high, low)
    one_by_one = [
        sampled(teacher.denoiser(), x[i : i + 1], torch.stack([high[i], low[i]]), "heun") for i in range(len(x))
    ]
    torch.testing.assert_close(found, torch.cat(one_by_one).detach())
    assert not found.requires_grad


def test_the_average_moves_after_a_step() -> None:
    method = consistency_of((3, 4, 4), torch.float32, momentum=0.9)
    before, weight = method.target.mix.weight.clone(), method.net.mix.weight.detach()  # pyright: ignore
    method.after_step(Progress(0, 0, 0.0))
    torch.testing.assert_close(method.target.mix.weight, 0.9 * before + 0.1 * weight)  # pyright: ignore
    assert not any(p.requires_grad for p in method.target.parameters())
    assert not method.train().target.training


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), t[:, None]], 1)).view(x.shape)


def test_a_gaussians_noise_is_mapped_to_where_the_ode_ends() -> None:
    mean, variance = (torch.tensor(one).view(2, 1, 1) for one in ([0.3, -0.2], [0.09, 0.36]))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        """Of such data it is known."""
        return mean + variance / (variance + sigma.view(-1, 1, 1, 1) ** 2) * (x - mean)

    torch.manual_seed(0)
    method = Consistency(Perceptron(), (2, 1, 1), momentum=0.5)
    levels, start = method.training_sigmas().float(), MOST * torch.randn(500, 2, 1, 1)
    ends = sampled(denoise, start, method.training_sigmas().flip(0), "heun")
    exact = mean + (start - mean) * (variance / (variance + MOST**2)).sqrt()

    @torch.no_grad()
    def off(wanted: Tensor) -> float:
        return float((method.origin(start, torch.full((500,), MOST)) - wanted).square().mean().sqrt())

    assert off(ends) > 0.3
    optimizer, steps = torch.optim.Adam(method.net.parameters()), 600
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - k / steps)
        at = torch.randint(0, 17, (128,))
        sigma, below = levels[at + 1], levels[at]
        data = mean + variance.sqrt() * torch.randn(128, 2, 1, 1)
        noisy = data + sigma.view(-1, 1, 1, 1) * torch.randn(128, 2, 1, 1)
        batch = {"noisy": noisy, "solved": neighbor(denoise, noisy, sigma, below), "sigma": sigma, "below": below}
        optimizer.zero_grad()
        method(batch)["loss"].backward()
        optimizer.step()
        method.after_step(Progress(k, 0, k / steps))
    assert off(ends) < 0.03  # the data's deviations are 0.3 and 0.6
    assert off(exact) < 0.06  # 18 steps of Heun's method are 0.026 off


def test_levels_of_training_and_sampling() -> None:
    method = consistency_of((3, 4, 4), torch.float32, levels=5)
    trained = method.training_sigmas()
    assert len(trained) == 5
    torch.testing.assert_close(trained[[0, -1]], torch.tensor([LEAST, MOST], dtype=torch.float64))
    assert bool((trained.diff() > 0).all())
    assert method.sampling_sigmas(1).tolist() == pytest.approx([MOST])
    middle = ((LEAST ** (1 / 7) + MOST ** (1 / 7)) / 2) ** 7
    assert method.sampling_sigmas(2).tolist() == pytest.approx([MOST, middle])


def test_further_steps_add_the_noise_of_their_level() -> None:
    """Of a function that gives zeros, what it is given is noise alone."""
    seen: list[tuple[float, float]] = []

    class Watched(Consistency):
        def origin(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            seen.append((float(sigma[0]), float(x.std())))
            return torch.zeros_like(x)

    method = Watched(Net(3), (3, 16, 16))
    trace = method.sample(60, steps=4, trace=True)
    assert [one for one, _ in seen] == pytest.approx(method.sampling_sigmas(4).tolist(), rel=1e-5)
    for k, (sigma, deviation) in enumerate(seen):
        assert deviation == pytest.approx((sigma**2 - (LEAST**2 if k else 0)) ** 0.5, rel=0.03)
        assert float(trace[k].std()) == pytest.approx(deviation / (1 + sigma**2) ** 0.5, rel=1e-5)
    assert not trace[-1].any()


def test_a_sample_is_a_function_of_its_start_also_in_several_steps() -> None:
    method = consistency_of((3, 4, 4), torch.float32, classes=2)
    start = method.noise_of(5, 0)
    drawn = method.sample(5, steps=3, start=start, condition=1)
    assert torch.equal(drawn, method.sample(5, steps=3, seed=7, start=start, condition=1))
    torch.testing.assert_close(method.sample(2, steps=3, start=start[3:], condition=1), drawn[3:])
    assert not torch.equal(drawn, method.sample(5, steps=3, start=start, condition=0))
    with pytest.raises(ValueError, match="no guidance"):
        method.sample(1, guidance=2.0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of EDM."""
    return sensorium.train("edm", **FEW, out=tmp_path_factory.mktemp("edm") / "run").folder


def test_a_run_opens_without_its_teacher(taught: Path, tmp_path: Path) -> None:
    teacher = sensorium.load(shutil.copytree(taught, tmp_path / "teacher"))
    weights = {name: value.clone() for name, value in teacher.method.state_dict().items()}
    student = sensorium.train("consistency", **FEW, out=tmp_path / "student", teacher=str(teacher.folder), steps=2)
    begun = sensorium.load(student.folder)
    again = sensorium.load(teacher.folder).method.state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert not any(name.startswith("teacher") for name in begun.method.state_dict())
    drawn = draw(begun, 3, steps=None, label=None, guidance=1.0, seed=0)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    alone = sensorium.load(student.folder)
    assert torch.equal(draw(alone, 3, steps=2, label=None, guidance=1.0, seed=0), drawn)
    with pytest.raises(SensoriumError, match="can't be guided"):
        draw(alone, 3, steps=2, label="1", guidance=2.0, seed=0)


def test_the_student_starts_from_the_teachers_weights(taught: Path, tmp_path: Path) -> None:
    teacher = sensorium.load(taught)
    asked = FEW | {"teacher": str(teacher.folder), "lr": 1e-9, "average": 0}
    student = sensorium.train("consistency", **asked, out=tmp_path / "student").method.state_dict()
    for name, value in teacher.method.state_dict().items():
        torch.testing.assert_close(student[name], value, atol=1e-6, rtol=0)
        torch.testing.assert_close(student[name.replace("net.", "target.", 1)], value, atol=1e-6, rtol=0)


def test_what_a_recipe_refuses(taught: Path, tmp_path: Path) -> None:
    teacher = str(taught)
    other = str(sensorium.train("ddpm", **FEW, out=tmp_path / "ddpm").folder)
    new: dict[str, Any] = FEW | {"out": tmp_path / "new"}
    for given, said in [
        ({"teacher": other}, "must be a run of EDM at 8 px"),
        ({"teacher": teacher, "image_size": 12}, "must be a run of EDM at 12 px"),
        ({"teacher": teacher, "classes": False}, "is unet-micro of 10 classes, .* of 0 classes"),
        ({"teacher": teacher, "network": "dit-micro"}, "the student, dit-micro of 10 classes"),
        ({"teacher": teacher, "levels": 1}, "levels 1 must be at least 2"),
        ({"teacher": teacher, "steps": 0}, "steps must be at least 1"),
        ({}, "consistency needs --teacher"),
    ]:
        with pytest.raises(SensoriumError, match=said):
            sensorium.train("consistency", **new, **given)
