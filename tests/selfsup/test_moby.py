"""MoBY: where its state changes, what it logs and refuses, drop path on one side, resuming; recipe."""

import copy
import math

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.swin import Swin
from sensorium.parts.drop import DropPath, rising_
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.info_nce import info_nce
from sensorium.selfsup.moby.method import MoBY


def method(backbone=None, **numbers):
    torch.manual_seed(0)
    backbone = backbone or ResNet((1, 1), 8, stem="small")
    heads = mlp_head(backbone.dim, 12, 8, bias=True), mlp_head(8, 12, 8, bias=True)
    return MoBY(backbone, *heads, **{"dim_keys": 8, "negatives": 16, **numbers})


def swin():
    return Swin((2, 2), 8, (1, 2), (2, 2), patch=2)


def views(n=6, size=8, seed=0):
    made = torch.Generator().manual_seed(seed)
    return {"views": [torch.randn(n, 3, size, size, generator=made) for _ in range(2)]}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_a_forward_changes_running_statistics_and_nothing_else():
    model = method()
    before = snapshot(model)
    model(views())
    names = changed(model, before)
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)
    assert {name.partition(".")[0] for name in names} == {"backbone", "projector", "predictor", "teacher"}
    still = method(swin()).eval()
    before = snapshot(still)
    still(views())
    still.before_step(at(0.5))
    still.after_step(at(0.5))
    assert not changed(still, before)  # keys of an evaluation are not pushed, and the teacher equals what it averages


def test_the_queue_takes_the_keys_of_a_step_after_it():
    model = method()
    batch, rows = views(), model.queue.rows.clone()
    model.before_step(at(0))
    model(batch)
    model(views(seed=1))  # a second micro-batch
    assert torch.equal(model.queue.rows, rows)
    model.after_step(at(0))
    assert torch.equal(model.queue.rows[12:], rows[12:])
    assert not torch.equal(model.queue.rows[:12], rows[:12])
    assert int(model.queue.at) == int(model.queue.count) == 12
    for half in model.queue.rows.chunk(2, dim=1):
        assert torch.allclose(half.norm(dim=1), torch.ones(16), atol=1e-6)
    model.after_step(at(0))
    assert int(model.queue.at) == 12  # pushed once


def test_the_moving_average_is_taken_before_a_step_and_ends_at_rest():
    model = method(momentum=0.5)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p += 1
    old = copy.deepcopy(model.teacher)
    model.before_step(at(0.0))
    pairs = zip(old["backbone"].parameters(), model.teacher["backbone"].parameters(), strict=True)
    assert all(torch.allclose(new, was + 0.5, atol=1e-6) for was, new in pairs)
    before = snapshot(model)
    model.before_step(at(1.0))
    assert not changed(model, before)
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_only_the_network_that_learns_drops_paths():
    model = method(swin())
    rising_(model.backbone, 0.6)
    assert [part.rate for part in model.backbone.modules() if isinstance(part, DropPath)] == pytest.approx(
        [0, 0.2, 0.4, 0.6]
    )
    model.train()
    x = views(16)["views"][0]
    assert not torch.equal(model.features(x), model.features(x))
    keys = [model._key(x) for _ in range(2)]
    assert torch.equal(*keys)
    assert not any(part.rate for part in model.teacher.modules() if isinstance(part, DropPath))
    with pytest.raises(ValueError, match=r"drop-path rate must be in \[0, 1\), got 1"):
        rising_(nn.Linear(2, 2), 1)


def test_collapse_and_success_are_seen():
    queue = torch.eye(8, 16)
    same = info_nce(queue[:4], queue[:4], queue[:1].expand(5, -1), 0.2)
    assert same["alignment"].item() == pytest.approx(1)
    apart = info_nce(queue[:4], queue[:4], torch.eye(16)[8:], 0.1)
    assert apart["contrast_top1"] == 1
    assert apart["loss"].item() == pytest.approx(math.log(1 + 8 * math.exp(-10)), abs=1e-6)
    ones = torch.ones(4, 16) / 4
    collapsed = info_nce(ones, ones, ones, 0.2)
    assert (collapsed["contrast_top1"], collapsed["alignment"].item()) == (0, pytest.approx(1))
    assert collapsed["loss"].item() == pytest.approx(math.log(5), abs=1e-5)
    assert not apart["alignment"].requires_grad


def test_lengths_of_queries_and_keys_change_nothing():
    torch.manual_seed(0)
    q, k, queue = torch.randn(3, 5, 8).unbind()
    queue = nn.functional.normalize(queue, dim=1)
    want = info_nce(q, k, queue, 0.2)
    got = info_nce(7 * q, 0.1 * k, queue, 0.2)
    assert all(torch.allclose(got[name], want[name], atol=1e-5) for name in want)


def test_half_precision_is_only_in_the_networks():
    model = method(swin())
    want = model(views(16))["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        got = model(views(16))["loss"]
        q, k = torch.randn(4, 8).bfloat16(), torch.randn(4, 8).bfloat16()
        exact = info_nce(q, k, model.queue.rows[:, :8], 0.2)["loss"]
    assert got.dtype == torch.float32
    assert (got - want).abs() <= 0.1
    assert torch.equal(exact, info_nce(q, k, model.queue.rows[:, :8], 0.2)["loss"])


def test_what_it_offers_and_refuses():
    model = method()
    assert abilities_of(model) == ("Encoder",)
    assert model.features(views()["views"][0]).shape == (6, model.dim)
    with pytest.raises(ValueError, match="temperature 0: must be greater than 0"):
        method(temperature=0)
    with pytest.raises(ValueError, match=r"momentum 1\.5: must be at least 0 and at most 1"):
        method(momentum=1.5)
    with pytest.raises(ValueError, match="a queue has at least 1 entry, got 0"):
        method(negatives=0)
    with pytest.raises(TypeError, match="MoBY"):
        MoBY(nn.Identity(), nn.Identity(), nn.Identity())


def test_it_resumes_where_it_was():
    def steps(model, first, last):
        for step in range(first, last):
            model.before_step(at(step / 6, step))
            model.zero_grad()
            model(views(seed=step))["loss"].backward()
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= 0.1 * p.grad
            model.after_step(at(step / 6, step))
        return model

    even = steps(method(), 0, 6)
    again = method()
    again.load_state_dict(snapshot(steps(method(), 0, 3)))
    assert not changed(steps(again, 3, 6), snapshot(even))


def test_bad_settings_are_refused_in_one_line(tmp_path):
    import sensorium

    for settings, why in (
        ({"negatives": 0}, "moby: a queue has at least 1 entry, got 0"),
        ({"temperature": -1.0}, r"moby: temperature -1\.0: must be greater than 0"),
        ({"drop_path": 1.0}, r"moby: drop-path rate must be in \[0, 1\), got 1\.0"),
    ):
        with pytest.raises(SensoriumError, match=why):
            sensorium.train(
                "moby", data="digits", limit=64, budget="1steps", out=tmp_path / "run", progress=False, **settings
            )
