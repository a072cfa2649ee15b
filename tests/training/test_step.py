"""One update by hand: rates, hooks, micro-batches, clipping, phases, the moving average."""

import copy
import os
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_cases import (
    BOTH,
    curve,
    make_adversarial,
    make_method,
    plain_views,
    run,
    same_weights,
    table,
    views,
    weights,
)

from sensorium.method import Method, Progress
from sensorium.parts.ema import EMA
from sensorium.training.step import Step


class Line(Method):
    """Two weights, at different rates; the larger gradient is halved by its hook."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([-1.0]))
        self.order = []

    def forward(self, batch):
        self.order.append("forward")
        y = self.a * batch["x"] + self.b
        return {"loss": (y - batch["y"]).square().mean(), "y": y.mean().detach()}

    def before_step(self, at):
        self.order.append(("before", at))

    def before_update(self, at):
        self.order.append(("update", at))
        self.a.grad /= 2

    def after_step(self, at):
        assert not torch.is_grad_enabled()
        self.order.append(("after", at))


def builder(method):
    return torch.optim.SGD([{"params": [method.a], "lr_scale": 0.1}, {"params": [method.b]}], lr=0.5)


def data(n=8):
    drawn = torch.Generator().manual_seed(0)
    return {"x": torch.randn(n, generator=drawn), "y": torch.randn(n, generator=drawn)}


def gradients(a, b, batch):
    off = a * batch["x"] + b - batch["y"]
    return float(2 * (off * batch["x"]).mean()), float(2 * off.mean()), float(off.square().mean())


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_a_step_by_hand(pieces):
    method, whole = Line(), data()
    step = Step(method, builder, lambda f: 1 - f, accumulate=pieces)
    a, b = 2.0, -1.0
    for k, fraction in enumerate((0.0, 0.25, 0.5)):
        at = Progress(k, 0, fraction)
        method.order.clear()
        scalars = step([{n: x.chunk(pieces)[i] for n, x in whole.items()} for i in range(pieces)], at)
        da, db, loss = gradients(a, b, whole)
        assert float(scalars["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(scalars["y"]) == pytest.approx(float((a * whole["x"] + b).mean()), abs=1e-6)
        a, b = a - 0.05 * (1 - fraction) * da / 2, b - 0.5 * (1 - fraction) * db
        assert (float(method.a), float(method.b)) == pytest.approx((a, b), rel=1e-5)
        assert method.order == [("before", at), *["forward"] * pieces, ("update", at), ("after", at)]
        assert step.lr == pytest.approx(0.05 * (1 - fraction))
        assert method.a.grad is method.b.grad is None


def test_clipping_is_of_what_the_hook_left():
    method, batch = Line(), data()
    Step(method, builder, lambda f: 1.0, clip=0.1)([batch], Progress(0, 0, 0.0))
    da, db, _ = gradients(2.0, -1.0, batch)
    norm = ((da / 2) ** 2 + db**2) ** 0.5
    assert norm > 0.1
    assert float(method.a) == pytest.approx(2 - 0.05 * da / 2 * 0.1 / norm, rel=1e-4)
    assert float(method.b) == pytest.approx(-1 - 0.5 * db * 0.1 / norm, rel=1e-4)


def test_each_phase_trains_its_own_and_the_second_sees_what_the_first_changed():
    method, batch = make_adversarial(), {"image": torch.randn(6, 3, 6, 6)}
    twin = copy.deepcopy(method)
    step = Step(method, BOTH, lambda f: 1.0)
    optimizers = {phase: build(twin) for phase, build in BOTH.items()}
    for k in range(3):
        method.calls.clear()
        scalars = step(iter([batch]), Progress(k, 0, 0.0))
        assert method.calls == [
            *("before", "generator", ["inner", "last", "scale"]),
            *("discriminator", ["judge"], "after"),
        ]
        assert all(p.requires_grad and p.grad is None for p in method.parameters())
        losses = {}
        for phase, optimizer in optimizers.items():
            twin.zero_grad()
            losses[phase] = twin(batch, phase)["loss"]
            losses[phase].backward()
            optimizer.step()
        assert list(scalars) == [
            "loss",
            "generator/loss",
            "generator/close",
            "discriminator/loss",
            "discriminator/real",
        ]
        for phase, loss in losses.items():
            assert float(scalars[f"{phase}/loss"]) == pytest.approx(float(loss), rel=1e-6)
        assert float(scalars["loss"]) == pytest.approx(sum(float(x) for x in losses.values()), rel=1e-6)
    trained = dict(twin.named_parameters())
    for name, p in method.named_parameters():
        torch.testing.assert_close(p, trained[name], atol=1e-7, rtol=1e-6)


def test_phases_in_micro_batches_are_those_of_the_whole():
    images, ended = torch.randn(8, 3, 6, 6), []
    for pieces in (1, 4):
        method = make_adversarial()
        step = Step(method, BOTH, lambda f: 1.0, accumulate=pieces)
        for k in range(4):
            scalars = step(({"image": x, "plain": True} for x in images.chunk(pieces)), Progress(k, 0, 0.0))
        ended.append([*method.parameters(), *scalars.values()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*ended, strict=True))


def test_a_builder_for_each_phase():
    with pytest.raises(ValueError, match="generator, discriminator"):
        Step(make_adversarial(), BOTH["generator"], lambda f: 1.0)
    with pytest.raises(ValueError, match="phases train"):
        Step(Line(), {"generator": builder}, lambda f: 1.0)


def test_a_frozen_parameter_stays_frozen():
    method = make_adversarial()
    method.judge[1].requires_grad_(False)
    before = method.judge[1].weight.clone()
    Step(method, BOTH, lambda f: 1.0)([{"image": torch.randn(4, 3, 6, 6)}], Progress(0, 0, 0.0))
    assert torch.equal(method.judge[1].weight, before)
    assert not method.judge[1].weight.requires_grad


def test_the_average_by_hand():
    method, batch = Line(), data()
    step = Step(method, builder, lambda f: 1.0, average=EMA(0.5))
    mean, early = float(method.a), []
    for k in range(12):
        step([batch], Progress(k, 0, 0.0))
        momentum = min(0.5, (1 + k) / (10 + k))
        early.append(momentum)
        mean = momentum * mean + (1 - momentum) * float(method.a)
    assert early[0] == 0.1
    assert early[-1] == 0.5
    assert float(step.average["a"]) == pytest.approx(mean, rel=1e-5)
    own = float(method.a)
    with step.averaged():
        assert float(method.a) == pytest.approx(mean, rel=1e-5)
        assert method.a.requires_grad
    assert float(method.a) == own
    other = Step(Line(), builder, lambda f: 1.0, average=EMA(0.5))
    other.load_state_dict(step.state_dict())
    assert other.average["a"] == step.average["a"]
    with pytest.raises(ValueError, match="decay 1"):
        EMA(1.0)


def test_an_average_in_half_precision_does_not_lose_its_small_steps():
    net = nn.Linear(4, 4).to(torch.bfloat16)
    method = type("Half", (Method,), {"forward": lambda self, b: {"loss": self.net(b).float().square().mean()}})()
    method.net = net
    step = Step(method, lambda m: torch.optim.SGD(m.parameters(), 1e-2), lambda f: 1.0, average=EMA(0.99))
    assert {x.dtype for x in step.average.values()} == {torch.float32}
    for k in range(3):
        step([torch.ones(2, 4, dtype=torch.bfloat16)], Progress(1000 + k, 0, 0.0))
    assert {x.dtype for x in step.average.values()} == {torch.float32}
    with step.averaged():
        assert net.weight.dtype == torch.bfloat16


# -- in a run --


def adversarial(out, **changes):
    how = {"optimizer": BOTH, "budget": "10steps", "average": EMA(0.8), "views": plain_views, **changes}
    return run(out, make_adversarial(), **how)


def close(one, two):
    for a, b in zip(curve(one), curve(two), strict=True):
        for name in a:
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-6), (a["step"], name)
    a, b = weights(one), weights(two)
    assert max(float((a[name].double() - b[name].double()).abs().max()) for name in a) <= 1e-6


def stop_at(count, views):
    made = iter(range(10**9))

    def stopping(*given):
        if next(made) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return views(*given)

    return stopping


def test_a_run_of_two_phases_in_pieces_and_interrupted(tmp_path):
    adversarial(tmp_path / "whole")
    rows = table(tmp_path / "whole" / "metrics.csv")
    assert list(rows[0])[3:] == [
        *("loss", "lr", "generator/loss", "generator/close", "discriminator/loss", "discriminator/real"),
    ]
    assert float(rows[-1]["generator/close"]) < float(rows[0]["generator/close"])
    adversarial(tmp_path / "pieces", accumulate=3)
    close(tmp_path / "whole", tmp_path / "pieces")
    stopped = adversarial(tmp_path / "cut", views=stop_at(4, plain_views))
    assert (stopped.status, stopped.steps) == ("interrupted", 5)
    adversarial(tmp_path / "cut")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    assert weights(tmp_path / "cut")["steps"] == 10


def test_only_a_loss_that_should_fall_is_said_not_to(tmp_path):
    still = {"schedule": lambda f: 0.0, "budget": "30steps"}
    assert "did not fall" in " ".join(run(tmp_path / "alone", **still).notes)
    assert not adversarial(tmp_path / "against", **still).notes


def test_what_is_averaged_is_judged_and_kept(tmp_path):
    judged = []

    def online(method):
        judged.append(method.head.weight.detach().clone())
        return {"x": 1.0}

    method = make_method()
    run(tmp_path / "a", method, budget="8steps", average=EMA(0.9), online=online, online_every="50%")
    run(tmp_path / "b", budget="8steps")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    kept = weights(tmp_path / "a")["head.weight"]
    assert torch.equal(kept, judged[-1])
    assert torch.equal(kept, method.head.weight)
    own = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["state_dict"]["head.weight"]
    assert torch.equal(own, weights(tmp_path / "b")["head.weight"])
    assert not torch.equal(own, kept)
    run(tmp_path / "c", budget="8steps", average=EMA(0.9), views=stop_at(3, views))
    run(tmp_path / "c", budget="8steps", average=EMA(0.9))
    assert same_weights(tmp_path / "c", tmp_path / "a")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_launches")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_phases_in_two_processes_equal_one_and_resume(strategy, tmp_path):
    adversarial(tmp_path / "one")
    adversarial(tmp_path / "two", devices=2, strategy=strategy, accumulate=2)
    close(tmp_path / "one", tmp_path / "two")
    adversarial(tmp_path / "cut", devices=2, strategy=strategy, accumulate=2, views=stop_at(7, plain_views))
    assert len(table(tmp_path / "cut" / "metrics.csv")) == 4
    adversarial(tmp_path / "cut", devices=2, strategy=strategy, accumulate=2)
    assert curve(tmp_path / "cut") == curve(tmp_path / "two")
    assert same_weights(tmp_path / "cut", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_launches")
def test_sharded_weights_equal_whole_ones(tmp_path):
    """Batch normalization, a teacher that a hook moves, looks; and a checkpoint that goes on without shards."""
    how = {"optimizer": lambda m: torch.optim.AdamW(m.backbone.parameters(), 0.01, eps=0.1, fused=True)}
    how |= {"budget": "8steps", "online": judged, "online_every": "50%"}
    for name, more in {"one": {}, "two": {"devices": 2, "strategy": "fsdp"}}.items():
        run(tmp_path / name, make_method(dropout=0.0), **how, **more)
    close(tmp_path / "one", tmp_path / "two")
    looks = [table(tmp_path / name / "online.csv") for name in ("one", "two")]
    for a, b in zip(*looks, strict=True):
        assert float(a["mean"]) == pytest.approx(float(b["mean"]), abs=1e-6)
    more = {"devices": 2, "strategy": "fsdp", "views": stop_at(3, views)}
    run(tmp_path / "cut", make_method(dropout=0.0), **{**how, **more})
    run(tmp_path / "cut", make_method(dropout=0.0), **how)
    close(tmp_path / "one", tmp_path / "cut")


def judged(method):
    with torch.no_grad():
        images = torch.linspace(-1, 1, 216).view(2, 3, 6, 6)
        return {"mean": float(method.features(images).mean()), "loss": float(F.softplus(method.head.weight).sum())}


def test_a_group_that_is_not_scheduled_keeps_its_rate():
    def build(method):
        return torch.optim.SGD(
            [{"params": [method.a], "scheduled": False, "lr_scale": 0.1}, {"params": [method.b]}], lr=0.5
        )

    method, batch = Line(), data()
    step = Step(method, build, lambda f: 1 - f)
    a, b = 2.0, -1.0
    for k, fraction in enumerate((0.0, 0.5, 1.0)):
        step([batch], Progress(k, 0, fraction))
        da, db, _ = gradients(a, b, batch)
        a, b = a - 0.05 * da / 2, b - 0.5 * (1 - fraction) * db
        assert (float(method.a.detach()), float(method.b.detach())) == pytest.approx((a, b), rel=1e-5)
