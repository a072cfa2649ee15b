"""MoCo v1 and v2: where the state changes, the queue, the groups of batch normalization, what is refused."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.info_nce import info_nce
from sensorium.selfsup.moco_v1.method import MoCo
from sensorium.selfsup.moco_v1.recipe import moco_v1, stepped
from sensorium.selfsup.moco_v2.recipe import moco_v2

ON = Situation(32, 4000, (), (0.5,) * 3, (0.25,) * 3)


def method(backbone=None, **numbers):
    torch.manual_seed(0)
    backbone = ResNet((1, 1), 8, stem="small") if backbone is None else backbone
    return MoCo(backbone, mlp_head(16, 6), **({"projection": 6, "queue": 20, "groups": 2} | numbers))


def vit():
    return ViT(8, 4, 16, 2, 2, drop_path=0.5)


def views(n=6, size=8):
    return {"views": [torch.randn(n, 3, size, size) for _ in range(2)]}


def at(step, fraction=0.0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_loss_is_equation_1():
    q, k, queue, tau = (
        F.normalize(torch.randn(4, 5)),
        F.normalize(torch.randn(4, 5)),
        F.normalize(torch.randn(7, 5)),
        0.3,
    )
    total = 0.0
    for i in range(4):
        positive = math.exp((q[i] @ k[i]).item() / tau)
        total -= math.log(positive / (positive + sum(math.exp((q[i] @ one).item() / tau) for one in queue)))
    out = info_nce(q, k, queue, tau)
    assert out["loss"].item() == pytest.approx(total / 4, rel=1e-5)
    assert out["alignment"].item() == pytest.approx((q * k).sum(1).mean().item(), rel=1e-5)


def test_collapse_scores_as_chance_and_finds_nothing():
    same = F.normalize(torch.ones(8, 4))
    out = info_nce(same, same, F.normalize(torch.ones(31, 4)), 0.2)
    assert out["loss"].item() == pytest.approx(math.log(32), rel=1e-5)
    assert out["contrast_top1"] == 0  # a tie is not found
    assert out["alignment"].item() == pytest.approx(1)


@pytest.mark.parametrize("make", [lambda: None, vit])
def test_a_forward_changes_no_state_but_running_statistics(make):
    model, batch = method(make()), views()
    before = snapshot(model)
    model(batch)
    names = changed(model, before)
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)
    assert bool(names) == isinstance(model.backbone, ResNet)
    model.eval()
    before = snapshot(model)
    assert model(batch)["loss"] == model(batch)["loss"]
    assert changed(model, before) == set()
    model.before_step(at(0))
    model.after_step(at(0))
    assert not model.queue.full  # forwards in evaluation mode push nothing
    assert int(model.queue.count) == 0


def test_the_queue_takes_the_keys_of_all_micro_batches_once():
    model = method(vit())
    batch = views(8)
    with torch.no_grad():
        keys = F.normalize(model.key["head"](model.key["backbone"].features(batch["views"][1])), dim=1)
    model.before_step(at(0))
    for rows in (slice(0, 4), slice(4, 8)):
        model({"views": [x[rows] for x in batch["views"]]})
    model.after_step(at(0))
    assert torch.allclose(model.queue.rows[:8], keys, atol=1e-6)
    assert (int(model.queue.at), int(model.queue.count)) == (8, 8)
    model.after_step(at(0))
    assert int(model.queue.at) == 8
    model(batch)
    model.before_step(at(1))  # what belonged to no step is forgotten
    model.after_step(at(1))
    assert int(model.queue.at) == 8


def test_the_key_encoder_is_the_moving_average_and_learns_nothing():
    model = method(momentum=0.9)
    old = copy.deepcopy(model.key)
    with torch.no_grad():
        for p in model.query.parameters():
            p.add_(torch.randn_like(p))
    model(views())["loss"].backward()
    model.after_step(at(3, 0.5))
    for k, o, q in zip(model.key.parameters(), old.parameters(), model.query.parameters(), strict=True):
        assert torch.allclose(k, 0.9 * o + 0.1 * q, atol=1e-6)
        assert k.grad is None
        assert not k.requires_grad
    assert all(p.grad is not None for p in model.query.parameters())


def test_keys_drop_nothing_and_the_evaluated_encoder_is_the_query():
    model = method(vit()).train()
    x = torch.randn(16, 3, 8, 8)
    assert torch.equal(model.key["backbone"].features(x), model.key["backbone"].features(x))
    assert not torch.equal(model.features(x), model.features(x))
    assert model.backbone is model.query["backbone"]
    assert abilities_of(model) == ("Encoder",)


# --- shuffled batch normalization ---


def test_groups_of_queries_and_keys_cross():
    """Each image is normalized with its group, and a query's group meets a key's in a G-th of its images."""
    model = method(groups=3).train()
    x_q, x_k = torch.randn(2, 18, 3, 8, 8).unbind()
    model({"views": [x_q, x_k]})
    seen = torch.cat(model._keys)
    twin = copy.deepcopy(model)
    group = torch.arange(18) // 3 % 3
    with torch.no_grad():
        for g in range(3):
            z = twin.key["head"](twin.key["backbone"].features(x_k[group == g]))
            assert torch.allclose(seen[group == g], F.normalize(z, dim=1), atol=1e-5)
    table = torch.zeros(3, 3).index_put((torch.arange(18) % 3, group), torch.ones(18), accumulate=True)
    assert torch.equal(table, torch.full((3, 3), 2.0))


def test_a_batch_too_small_for_groups_is_normalized_whole():
    many, one = method(groups=3).train(), method(groups=1).train()
    batch = views(8)
    assert torch.equal(many(batch)["loss"], one(batch)["loss"])
    batch = views(9)
    assert not torch.equal(many(batch)["loss"], one(batch)["loss"])
    assert method(vit(), groups=3).groups == 1  # nothing to normalize


def test_a_key_depends_on_the_images_of_its_group_alone():
    """With one group every key tells of the whole batch, whose images its query saw, and those in the queue don't."""
    x_q, x_k = torch.randn(2, 16, 3, 8, 8).unbind()
    other = x_k.clone()
    other[5] += 1  # of group 5 div 4 mod 4 = 1
    for groups, touched in ((4, [4, 5, 6, 7]), (1, list(range(16)))):
        model = method(groups=groups).train()
        model({"views": [x_q, x_k]})
        model({"views": [x_q, other]})
        one, two = model._keys
        assert (one != two).any(1).nonzero().flatten().tolist() == touched


# --- recipes ---


@pytest.mark.parametrize("recipe", [moco_v1, moco_v2])
def test_bad_settings_are_refused_in_one_line(recipe):
    for given, said in (
        ({"queue": 0}, "--queue 0: must be at least 1"),
        ({"momentum": 1.5}, "--momentum 1.5: must be at least 0 and at most 1"),
        ({"temperature": 0.0}, "--temperature 0: must be above 0"),
    ):
        with pytest.raises(SensoriumError, match=said):
            recipe(ON, **given)


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="MoCo needs a backbone with Encoder"):
        MoCo(nn.Linear(3, 3), mlp_head(3, 4))
    for numbers, said in (
        ({"momentum": -0.1}, "momentum"),
        ({"temperature": 0}, "temperature"),
        ({"groups": 0}, "groups"),
    ):
        with pytest.raises(ValueError, match=said):
            method(**numbers)
    with pytest.raises(ValueError, match="at least 1 entry"):
        method(queue=0)


def test_the_queue_is_shorter_than_the_data():
    sizes = [moco_v1(Situation(32, n, (), (0.5,) * 3, (0.25,) * 3)).settings["queue"].value for n in (40, 4000, 10**6)]
    assert sizes == [16, 512, 4096]


@pytest.mark.parametrize("batch, groups", [(8, 1), (16, 1), (64, 4), (100, 4), (256, 8), (1024, 8)])
def test_groups_of_batch_normalization_have_at_least_16_images(batch, groups):
    assert moco_v1(ON, batch_size=batch).method.groups == groups


def test_versions_differ_in_head_schedule_and_augmentation():
    one, two = moco_v1(ON), moco_v2(ON)
    assert [type(part).__name__ for part in one.method.query["head"]] == ["Linear"]
    assert [type(part).__name__ for part in two.method.query["head"]] == ["Linear", "ReLU", "Linear"]
    assert [stepped(f, 0.1) for f in (0, 0.05, 0.1, 0.59, 0.6, 0.8, 1)] == pytest.approx(
        [0.01, 0.505, 1, 1, 0.1, 0.01, 0.01]
    )
    assert one.schedule(0.5) == 1
    assert two.schedule(0.5) < 0.7
    assert (one.method.temperature, two.method.temperature) == (0.07, 0.2)


def test_state_survives_the_round_trip():
    model = method()
    for step in range(2):
        model.before_step(at(step))
        model(views())
        model.after_step(at(step))
    other = method()
    other.load_state_dict(model.state_dict())
    batch = views()
    assert torch.equal(model.eval()(batch)["loss"], other.eval()(batch)["loss"])
    assert int(other.queue.at) == 12


def test_autocast_keeps_loss_and_queue_in_float32():
    model, batch = method().eval(), views()
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
        model.train()(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)
    assert model._keys[0].dtype == torch.float32
    model.after_step(at(0))
    assert torch.allclose(model.queue.rows.norm(dim=1), torch.ones(20), atol=1e-5)


def test_it_learns_to_find_images():
    torch.manual_seed(0)
    model = method(momentum=0.9, temperature=0.1, queue=32)
    optimizer = torch.optim.AdamW(model.query.parameters(), 1e-2)
    found = []
    for step in range(60):
        now = at(step, step / 60)
        images = torch.randn(8, 3, 1, 1).expand(-1, -1, 8, 8)
        model.before_step(now)
        out = model({"views": [images + 0.1 * torch.randn(8, 3, 8, 8) for _ in range(2)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        model.after_step(now)
        found.append(out["contrast_top1"].item())
    assert sum(found[-10:]) / 10 > 5 / 33  # chance is 1 / 33
