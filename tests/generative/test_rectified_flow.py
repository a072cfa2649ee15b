"""What the maths of rectified flow promises: exact straight lines, solvers' orders, guidance, reflow, the loss."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sensorium.abilities import VelocityNet
from sensorium.errors import SensoriumError
from sensorium.generative.rectified_flow.method import RectifiedFlow, reflow_pairs, straightness
from sensorium.networks.dit import DIT_SIZES, DiT, dit
from sensorium.networks.unet import UNET_SIZES, UNet, sinusoids, unet
from sensorium.parts.solvers import euler, heun, uniform_times

SHAPE = (2, 3, 4)


class Net(nn.Module, VelocityNet):
    """A smooth field with a label; ``calls`` counts its evaluations."""

    def __init__(self, labels: int = 0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.labels, self.calls = labels, 0
        self.mix = nn.Linear(24, 24)
        self.table = nn.Embedding(labels, 24) if labels else None

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        y = self.mix(x.flatten(1)) + t[:, None]
        if self.table is not None:
            y = y + self.table(condition)
        return torch.tanh(y).view_as(x)

    velocity = forward


class Constant(nn.Module):
    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.full_like(x, 0.75)


def flow(labels: int = 0, **numbers) -> RectifiedFlow:
    return RectifiedFlow(Net(labels), SHAPE, classes=max(0, labels - 1), **{"time_scale": 1.0, **numbers}).double()


@pytest.mark.parametrize("solve", [euler, heun])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_straight_field_is_followed_exactly(solve, steps: int) -> None:
    """To one data point all paths are straight: v = (x1 - x) / (1 - t). Euler arrives in any number of steps."""
    x0, x1 = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    times = uniform_times(steps)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x1 - x) / (1 - t).clamp_min(1e-9)[:, None] if solve is euler else x1 - x0

    path = solve(velocity, x0, times, trace=True)
    assert path.shape == (steps + 1, 5, 4)
    torch.testing.assert_close(path[-1], x1, atol=1e-6, rtol=0)
    torch.testing.assert_close(path, x0 + times.double().view(-1, 1, 1) * (x1 - x0), atol=1e-6, rtol=0)
    assert torch.equal(path[-1], solve(velocity, x0, times))


@pytest.mark.parametrize("solve, order", [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("backward", [False, True])
def test_orders(solve, order: int, backward: bool) -> None:
    """dx/dt = x cos(3 t) has x(1) = x(0) exp(sin(3) / 3): halving the step divides the error by 2^order."""
    start = torch.tensor([[1.3], [-0.4]], dtype=torch.float64)
    exact = start * math.exp((-1 if backward else 1) * math.sin(3) / 3)
    errors = []
    for steps in (128, 256, 512):
        times = uniform_times(steps).double()
        times = times.flip(0) if backward else times
        end = solve(lambda x, t: x * torch.cos(3 * t)[:, None], start, times)
        errors.append(float((end - exact).abs().max()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.1)


def test_a_grid_that_is_none() -> None:
    with pytest.raises(ValueError, match="steps"):
        uniform_times(0)
    with pytest.raises(ValueError, match="times"):
        euler(lambda x, t: x, torch.zeros(1, 1), torch.tensor([0.5]))


@pytest.mark.parametrize("labels", [0, 4])
def test_the_loss_is_the_formula(labels: int) -> None:
    method = flow(labels, time_scale=0.3).eval()  # a tanh that is not full, so that x counts
    x1, x0 = torch.randn(6, *SHAPE).double(), torch.randn(6, *SHAPE).double()
    t, label = torch.rand(6).double(), torch.tensor([0, 1, 2, -1, 0, 1])
    batch = {"image": x1, "noise": x0, "time": t} | ({"label": label} if labels else {})
    found = method(batch)
    by_hand = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        condition = torch.tensor([label[i] if label[i] >= 0 else 3]) if labels else None
        v = method.net((t[i] * x1[i] + (1 - t[i]) * x0[i])[None], 0.3 * t[i : i + 1], condition)[0]
        by_hand += (v - (x1[i] - x0[i])).square().mean() / 6
    torch.testing.assert_close(found["loss"], by_hand)
    paired = {key: value for key, value in batch.items() if key != "noise"} | {"start": x0}
    assert torch.equal(method(paired)["loss"], found["loss"])
    assert float(found["explained"]) == pytest.approx(float((1 - by_hand / (x1 - x0).square().mean()).detach()))
    assert not found["explained"].requires_grad


def test_labels_are_dropped_while_training_only() -> None:
    method = flow(4, drop=1.0)
    x1, x0, t = torch.randn(5, *SHAPE).double(), torch.randn(5, *SHAPE).double(), torch.rand(5).double()
    batch = {"image": x1, "noise": x0, "time": t, "label": torch.arange(5) % 3}
    null = {**batch, "label": torch.full((5,), -1)}
    assert torch.equal(method.train()(batch)["loss"], method(null)["loss"])
    assert not torch.equal(method.eval()(batch)["loss"], method(null)["loss"])
    chosen = method({**batch, "drop": torch.tensor([True, False, True, True, False])})["loss"]
    assert torch.equal(chosen, method({**batch, "label": torch.tensor([-1, 1, -1, -1, 1])})["loss"])


def test_times() -> None:
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    for kind, spread in (("uniform", (0.0, 1.0)), ("logit-normal", (0.0, 1.0)), ("logit-normal", (-1.0, 0.5))):
        t = flow(times=kind, spread=spread).draw_time(uniform)
        assert 0 <= float(t.min()) < float(t.max()) < 1
        if kind == "uniform":
            assert torch.equal(t, uniform)
        else:
            logit = torch.logit(t.double())
            assert float(logit.mean()) == pytest.approx(spread[0], abs=0.01)
            assert float(logit.std()) == pytest.approx(spread[1], rel=0.01)
    assert not flow(times="start").draw_time(uniform).any()
    torch.manual_seed(0)
    method, batch = (
        flow(times="start"),
        {"image": torch.randn(3, *SHAPE).double(), "start": torch.randn(3, *SHAPE).double()},
    )
    at_start = method.net(batch["start"], torch.zeros(3).double())
    torch.testing.assert_close(method(batch)["loss"], (at_start - (batch["image"] - batch["start"])).square().mean())


def test_guidance() -> None:
    method, x, t = flow(4).eval(), torch.randn(5, *SHAPE).double(), torch.rand(5).double()
    label = torch.tensor([0, 2, 1, -1, 0])
    with_label, without = method.velocity(x, t, label), method.velocity(x, t)
    assert torch.equal(without, method.net(x, t, torch.full((5,), 3)))
    assert torch.equal(with_label[3], without[3])
    before = method.net.calls
    assert torch.equal(method.velocity(x, t, label, guidance=1.0), with_label)
    assert method.net.calls == before + 1
    torch.testing.assert_close(method.velocity(x, t, label, guidance=0.0), without)
    torch.testing.assert_close(method.velocity(x, t, label, guidance=3.0), without + 3 * (with_label - without))
    same = [
        method.sample(4, 3, condition=1, guidance=g, start=torch.randn(4, *SHAPE).double() * 0 + 1) for g in (1.0, 2.0)
    ]
    assert not torch.equal(*same)


def test_samples_follow_their_seed_alone() -> None:
    method = flow(4).float()
    label = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    first = method.sample(7, 4, seed=5, condition=label)
    assert first.shape == (7, *SHAPE)
    torch.testing.assert_close(first, method.sample(7, 4, seed=5, condition=label, batch_size=3))
    assert torch.equal(first, method.sample(7, 4, seed=torch.Generator().manual_seed(5), condition=label))
    assert not torch.equal(first, method.sample(7, 4, seed=6, condition=label))
    path = method.sample(7, 4, seed=5, condition=label, trace=True, batch_size=4)
    assert path.shape == (5, 7, *SHAPE)
    torch.testing.assert_close(path[-1], first)
    assert method.training
    with pytest.raises(ValueError, match="start"):
        method.sample(3, 4, start=first)


def test_reflow_pairs() -> None:
    teacher = flow(4).float()
    label = torch.tensor([0, 1, 2, 0])
    pairs = reflow_pairs(teacher, 4, steps=6, seed=3, condition=label)
    assert set(pairs) == {"start", "image", "label"}
    again = reflow_pairs(teacher, 4, steps=6, seed=3, condition=label)
    assert all(torch.equal(pairs[key], again[key]) for key in pairs)
    assert not torch.equal(pairs["start"], reflow_pairs(teacher, 4, steps=6, seed=4)["start"])
    arrived = teacher.sample(4, 6, start=pairs["start"], condition=label, sampler="euler")
    assert torch.equal(arrived, pairs["image"])
    assert torch.isfinite(flow(4).float()(pairs)["loss"])


def test_straightness_is_zero_for_straight_paths_alone() -> None:
    straight = RectifiedFlow(Constant(), SHAPE)
    assert straightness(straight, 3, steps=5) == pytest.approx(0, abs=1e-10)
    curved = flow().float()
    path = curved.sample(3, 5, sampler="euler", trace=True)
    by_hand = sum(((path[-1] - path[0]) - 5 * (path[k + 1] - path[k])).square().mean() for k in range(5)) / 5
    assert straightness(curved, 3, steps=5) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(by_hand) > 1e-3


def test_shifted_times_in_training_and_sampling() -> None:
    plain, late = flow().float(), flow(shift=3.0).float()
    uniform = torch.tensor([0.1, 0.5, 0.9])
    t = plain.draw_time(uniform)
    torch.testing.assert_close(late.draw_time(uniform), t / (3 - 2 * t))
    torch.testing.assert_close(flow(times="uniform", shift=3.0).draw_time(uniform), uniform / (3 - 2 * uniform))
    assert not flow(times="start", shift=3.0).draw_time(uniform).any()
    assert torch.equal(plain.sampling_times(4), uniform_times(4))
    times = torch.tensor([0, 1 / 10, 1 / 4, 1 / 2, 1])  # by hand, of quarters
    torch.testing.assert_close(late.sampling_times(4), times)
    late.load_state_dict(plain.state_dict())
    start = torch.randn(2, *SHAPE)
    path = late.sample(2, 4, start=start, sampler="euler", trace=True)
    torch.testing.assert_close(path, euler(late.velocity, start, times, trace=True).detach())
    path = late.sample(3, 4, sampler="euler", trace=True)
    steps = times.diff().tolist()
    by_hand = sum(h * ((path[-1] - path[0]) - (path[k + 1] - path[k]) / h).square().mean() for k, h in enumerate(steps))
    assert straightness(late, 3, steps=4) == pytest.approx(float(by_hand), rel=1e-5)
    with pytest.raises(ValueError, match="shift must be a positive number, got 0"):
        flow(shift=0)


def test_reflow_straightens_and_distillation_needs_one_step() -> None:
    """A teacher that turns points in the plane; students see pairs alone, as the paper's algorithm has it."""

    class Turn(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return 2 * torch.stack([-x[:, 1], x[:, 0]], 1)

    class Student(nn.Module):
        """Linear in x, of any time: enough for a map that is linear."""

        def __init__(self) -> None:
            super().__init__()
            self.of_t = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            return torch.einsum("bij,bjhw->bihw", self.of_t(t[:, None]).view(-1, 2, 2), x)

    torch.manual_seed(0)
    teacher = RectifiedFlow(Turn(), (2, 1, 1), time_scale=1.0)
    pairs = reflow_pairs(teacher, 256, steps=50, sampler="heun")
    bent, found = straightness(teacher, 64, steps=50), {}
    for times in ("uniform", "start"):
        student = RectifiedFlow(Student(), (2, 1, 1), times=times, time_scale=1.0)
        optimizer = torch.optim.Adam(student.parameters(), 0.02)
        for _ in range(300):
            optimizer.zero_grad()
            student(pairs)["loss"].backward()
            optimizer.step()
        one = student.sample(256, 1, start=pairs["start"], sampler="euler")
        found[times] = float((one - pairs["image"]).square().mean())
        if times == "uniform":
            assert straightness(student, 64, steps=50) < 0.2 * bent
    assert found["start"] < 1e-3
    assert found["uniform"] < 0.1 * float((pairs["start"] - pairs["image"]).square().mean())


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="needs 4 labels, it has 3"):
        RectifiedFlow(Net(3), SHAPE, classes=3)
    with pytest.raises(ValueError, match="times"):
        flow(times="cosine")
    with pytest.raises(ValueError, match="no classes"):
        flow().velocity(torch.zeros(1, *SHAPE), torch.zeros(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="not both"):
        flow()({"image": torch.zeros(1, *SHAPE), "noise": torch.zeros(1), "start": torch.zeros(1)})
    with pytest.raises(ValueError, match="time"):
        flow()({"image": torch.zeros(2, *SHAPE), "time": torch.zeros(1)})


# --- the networks, beyond their parity ---


def test_published_sizes_have_the_papers_parameters() -> None:
    """35.7 million for CIFAR-10, 114 million at 256 pixels (Ho et al., appendix B); DiT's of table 4."""
    with torch.device("meta"):
        sizes = {"micro": 32, "small": 32, "base": 32, "large": 256}
        millions = {size: sum(p.numel() for p in unet(size, sizes[size]).parameters()) / 1e6 for size in UNET_SIZES}
        transformers = {
            size: dit(size, 32, 2, channels=4, out_channels=8, labels=1001) for size in DIT_SIZES if size != "micro"
        }
    assert round(millions["base"], 1) == 35.7
    assert round(millions["large"]) == 114
    assert millions["micro"] < 2
    trained = {s: sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6 for s, net in transformers.items()}
    assert {size: round(n) for size, n in trained.items()} == {"small": 33, "base": 130, "large": 458, "xlarge": 675}


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (13, 9), (4, 5)])
@pytest.mark.parametrize("pad_after", [False, True])
def test_unet_takes_any_size(size: tuple[int, int], pad_after: bool) -> None:
    net = UNet((8, 16, 16), layers=1, attention=(False, False, True), groups=4, pad_after=pad_after)
    assert net(torch.randn(2, 3, *size), torch.tensor([0.5, 900])).shape == (2, 3, *size)


@pytest.mark.parametrize("net", [UNet((8, 16), layers=1, groups=4, labels=3), DiT((8, 12), 4, 16, 2, 2, labels=3)])
def test_networks_begin_as_zero_and_learn(net: nn.Module) -> None:
    x, t, label = torch.randn(2, 3, 8, 12), torch.tensor([0.0, 500.0]), torch.tensor([0, 2])
    out = net(x, t, label)
    assert out.shape == x.shape
    assert not out.any()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, t, label) - x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    assert not torch.equal(net(x, t, label), net(x, t, torch.tensor([1, 1])))
    with pytest.raises(ValueError, match="condition needed"):
        net(x, t)


def test_sizes_and_names() -> None:
    with torch.device("meta"):
        assert unet("micro", 28).attention == (False, False, True)
        assert unet("base", 32).attention == (False, True, False, False)
        assert unet("micro", 32, attend=0).attention == (False, False, False)
        assert [dit("micro", size).patch_size for size in (28, 32, 64)] == [4, 4, 8]
    with pytest.raises(SensoriumError, match="no U-Net is called 'tiny'"):
        unet("tiny", 32)
    with pytest.raises(SensoriumError, match="no DiT is called 'tiny'"):
        dit("tiny", 32)
    with pytest.raises(SensoriumError, match="built for 8x12 images, not 8x8"):
        DiT((8, 12), 4, 16, 1, 2)(torch.zeros(1, 3, 8, 8), torch.zeros(1))


def test_dit_drops_labels_while_training_only() -> None:
    torch.manual_seed(0)
    net = DiT(4, 2, 16, 1, 2, labels=3, label_dropout=1.0)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x, t = torch.randn(2, 3, 4, 4), torch.zeros(2)
    null, label = torch.tensor([2, 2]), torch.tensor([0, 1])
    assert torch.equal(net(x, t, label), net(x, t, null))
    net.eval()
    assert not torch.equal(net(x, t, label), net(x, t, null))


def test_sinusoids() -> None:
    found = sinusoids(torch.tensor([0.0, 2.5]), 6, freq_shift=1)
    wanted = [math.sin(2.5), math.sin(2.5e-2), math.sin(2.5e-4), math.cos(2.5), math.cos(2.5e-2), math.cos(2.5e-4)]
    torch.testing.assert_close(found, torch.tensor([[0, 0, 0, 1, 1, 1], wanted]), atol=1e-6, rtol=0)
    assert sinusoids(torch.tensor([3]), 5).shape == (1, 5)
    with pytest.raises(ValueError, match="too few"):
        sinusoids(torch.zeros(1), 2, freq_shift=1)


def test_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    for net in (UNet((16, 32), layers=1, groups=4, attention=(False, True)), DiT(8, 2, 32, 2, 4)):
        for p in net.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
        method = RectifiedFlow(net, (3, 8, 8))
        batch = {"image": torch.randn(8, 3, 8, 8), "noise": torch.randn(8, 3, 8, 8), "time": torch.rand(8)}
        with torch.autocast("cpu", torch.bfloat16):
            rough = method(batch)["loss"]
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, method(batch)["loss"], rtol=0.02, atol=0)
