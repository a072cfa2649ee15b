"""SwAV: what the codes are, where its state changes, how the queue is used, what it offers and refuses."""

import copy

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.multicrop import across_crops, by_size
from sensorium.parts.learning.sinkhorn import sinkhorn
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.swav.method import SwAV, swav_loss

ON = Situation(32, 4000, (), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1))


def vit():
    torch.manual_seed(0)
    return ViT(8, 4, 16, 2, 2)


def conv():
    torch.manual_seed(0)
    return ResNet((1, 1), 8, stem="small")


def method(backbone=None, *, norm=True, **numbers):
    backbone = vit() if backbone is None else backbone
    return SwAV(backbone, mlp_head(backbone.dim, 16, 8, bias=True, norm=norm), nn.Linear(8, 23, bias=False), **numbers)


def crops(n=6, sizes=(8, 8, 4, 4)):
    return {"crops": [torch.randn(n, 3, size, size) for size in sizes]}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# --- the codes ---


@pytest.mark.parametrize("samples, prototypes", [(40, 5), (8, 8), (6, 31)])
def test_codes_use_the_prototypes_equally(samples, prototypes):
    torch.manual_seed(0)
    q = sinkhorn(torch.rand(samples, prototypes) * 2 - 1, 0.2, iterations=400)
    torch.testing.assert_close(q.sum(1), torch.ones(samples))
    torch.testing.assert_close(q.sum(0), torch.full((prototypes,), samples / prototypes), atol=1e-4, rtol=1e-3)


def test_codes_are_those_of_the_largest_sum():
    """No other matrix with the same sums has a larger objective (eq. 3)."""
    torch.manual_seed(0)
    scores, epsilon = torch.rand(6, 4).double() * 2 - 1, 0.3

    def objective(q):
        return (q * scores).sum() + epsilon * torch.special.entr(q).sum()

    q = sinkhorn(scores, epsilon, iterations=2000)
    best = objective(q)
    for _ in range(50):
        way = torch.randn(6, 4).double()
        way = way - way.mean(0) - way.mean(1, keepdim=True) + way.mean()
        other = q + 0.5 * float(q.min() / way.abs().max()) * way
        assert objective(other) < best


def test_all_alike_share_all_prototypes():
    """Where features collapse, a softmax would give each sample the same prototype."""
    torch.manual_seed(0)
    scores = torch.randn(1, 16).repeat(32, 1)
    q = sinkhorn(scores)
    torch.testing.assert_close(q, torch.full_like(q, 1 / 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-4, 0.001, 0.05, 10.0])
def test_codes_are_finite_at_any_epsilon(dtype, epsilon):
    torch.manual_seed(0)
    scores = (torch.rand(9, 7) * 2 - 1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        q = sinkhorn(scores, epsilon)
    assert q.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(q.sum(1), torch.ones(9, dtype=q.dtype))


def test_a_constant_added_to_all_scores_or_to_a_prototypes_changes_nothing():
    torch.manual_seed(0)
    scores = torch.rand(9, 7)
    torch.testing.assert_close(sinkhorn(scores + 3), sinkhorn(scores), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sinkhorn(scores + torch.rand(7)), sinkhorn(scores), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("numbers", [{"epsilon": 0.0}, {"iterations": 0}])
def test_codes_of_nothing_are_refused(numbers):
    with pytest.raises(ValueError, match="epsilon must be above 0 and iterations at least 1"):
        sinkhorn(torch.rand(3, 2), **numbers)


# --- the loss ---


def test_loss_is_equation_2():
    torch.manual_seed(0)
    s, q = torch.randn(4, 3, 5), torch.rand(2, 3, 5).softmax(-1)
    log_p = (s / 0.2).log_softmax(-1)
    pairs = [-(q[g] * log_p[v]).sum(-1).mean() for g in range(2) for v in range(4) if v != g]
    out = swav_loss(s, q, 0.2)
    assert out["loss"].item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-6)
    assert out["entropy"].item() == pytest.approx(torch.distributions.Categorical(q).entropy().mean().item(), rel=1e-5)
    assert out["kl"].item() == pytest.approx((out["loss"] - out["entropy"]).item(), rel=1e-6)


def test_collapse_shows_in_the_prototypes_in_use():
    torch.manual_seed(0)
    q = torch.full((2, 8, 16), 1 / 16)
    spread, alone = torch.eye(16).view(2, 8, 16), torch.eye(16)[3].expand(2, 8, 16)
    assert swav_loss(spread, q)["in_use"] == 1
    assert swav_loss(alone, q)["in_use"] == pytest.approx(1 / 16)
    few = torch.eye(64)[:8].view(2, 4, 64)  # no more than there are crops
    assert swav_loss(few, torch.full((2, 4, 64), 1 / 64))["in_use"] == 1


def test_crops_of_one_size_share_a_pass():
    seen = []

    def encode(x):
        seen.append(x.shape)
        return x.mean((2, 3))

    batch = crops(3, (8, 8, 4, 8))["crops"]
    torch.testing.assert_close(by_size(encode, batch), torch.cat([x.mean((2, 3)) for x in batch]))
    assert [tuple(shape) for shape in seen] == [(6, 3, 8, 8), (3, 3, 4, 4), (3, 3, 8, 8)]


def test_a_crop_predicts_nothing_of_itself():
    target, log_p = torch.eye(4)[:1, None], torch.zeros(2, 1, 4)
    log_p[0] = 7.0
    assert across_crops(target, log_p).item() == 0


# --- hooks ---


@pytest.mark.parametrize("make", [vit, conv])
def test_a_forward_changes_no_state_but_running_statistics(make):
    model, batch = method(make(), queue=6, queue_start=0.0), crops()
    before = snapshot(model)
    model(batch)
    model(batch)
    names = changed(model, before)
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)
    model.eval()
    before = snapshot(model)
    assert model(batch)["loss"] == model(batch)["loss"]
    assert changed(model, before) == set()


def test_prototypes_are_normalized_before_a_step():
    model = method()
    model.prototypes.weight.data.mul_(torch.rand(23, 1) * 5 + 0.1)
    ways = nn.functional.normalize(model.prototypes.weight, dim=1)
    model.before_step(at(0))
    torch.testing.assert_close(model.prototypes.weight, ways)
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(23))


def test_the_prototypes_rest_at_first():
    model = method(freeze=0.1)
    for fraction, learns in ((0.0, False), (0.09, False), (0.1, True)):
        model.zero_grad()
        model(crops())["loss"].backward()
        model.before_update(at(fraction))
        assert (model.prototypes.weight.grad is not None) == learns
        others = [p for n, p in model.named_parameters() if not n.startswith("prototypes")]
        assert all(p.grad is not None for p in others)


def step(model, batch, fraction):
    model.before_step(at(fraction))
    out = model(batch)
    model.after_step(at(fraction))
    return out


def test_the_queue_is_filled_from_its_start_and_used_when_full():
    torch.manual_seed(0)
    model, plain = method(queue=12, queue_start=0.2, norm=False).train(), method(norm=False).train()
    plain.load_state_dict(model.state_dict(), strict=False)
    for k, (fraction, count) in enumerate(((0.0, 0), (0.2, 6), (0.3, 12))):
        batch = crops()
        with_queue, without = step(model, batch, fraction), step(plain, batch, fraction)
        assert with_queue["loss"] == without["loss"], k
        assert [int(queue.count) for queue in model.queues] == [count, count]
    assert not torch.equal(model.queues[0].rows, model.queues[1].rows)
    batch = crops()
    assert step(model, batch, 0.4)["loss"] != step(plain, batch, 0.4)["loss"]
    z = nn.functional.normalize(model.head(model.backbone.features(batch["crops"][1])), dim=1)
    newest = model.queues[1].rows[(int(model.queues[1].at) - 6) % 12 :][:6]
    torch.testing.assert_close(newest, z.detach(), atol=1e-5, rtol=0)


def test_the_queue_holds_each_image_once_under_gradient_accumulation():
    whole, parts = (method(queue=8, queue_start=0.0, norm=False) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    batch = crops(8)
    whole.before_step(at(0))
    parts.before_step(at(0))
    whole(batch)
    for i in range(0, 8, 2):
        parts({"crops": [crop[i : i + 2] for crop in batch["crops"]]})
    whole.after_step(at(0))
    parts.after_step(at(0))
    torch.testing.assert_close(whole.queues[0].rows, parts.queues[0].rows, atol=1e-6, rtol=0)
    assert all(int(queue.count) == 8 for queue in parts.queues)


def test_forwards_that_belong_to_no_step_leave_the_queue_alone():
    model = method(queue=6, queue_start=0.0)
    model.eval()
    model(crops())
    model.train()
    model.after_step(at(0))
    model(crops())
    model.before_step(at(0))
    model.after_step(at(0))
    assert all(int(queue.count) == 0 for queue in model.queues)


def test_no_gradient_reaches_the_codes():
    model = method().eval()
    scores = torch.randn(2, 3, 23, requires_grad=True)
    out = swav_loss(scores, torch.stack([model._codes(g, scores[g].detach()) for g in range(2)]))
    (gradient,) = torch.autograd.grad(out["loss"], scores)
    log_p = (scores / 0.1).log_softmax(-1)
    codes = torch.stack([sinkhorn(scores[1 - g]) for g in range(2)])
    (want,) = torch.autograd.grad(-(codes * log_p).sum(-1).mean(), scores)
    torch.testing.assert_close(gradient, want, atol=1e-6, rtol=1e-4)


def test_state_survives_the_round_trip():
    model = method(conv(), queue=12, queue_start=0.0)
    for k in range(3):
        step(model, crops(), 0.1 * k)
    other = method(conv(), queue=12, queue_start=0.0)
    other.load_state_dict(model.state_dict())
    batch = crops()
    losses = []
    for one in (model, other):
        one.before_step(at(0.4))
        losses.append(copy.deepcopy(one).eval()(batch)["loss"])
    assert model._queued
    assert torch.equal(*losses)


def test_autocast_keeps_scores_codes_and_loss_in_float32():
    model, batch = method(queue=6, queue_start=0.0).eval(), crops()
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
        step(model.train(), batch, 0.0)
    assert {value.dtype for value in out.values()} == {torch.float32}
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.05)
    assert model.queues[0].rows.dtype == torch.float32
    torch.testing.assert_close(model.queues[0].rows.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_precision(dtype):
    model = method(queue=6, queue_start=0.0).to(dtype)
    for k in range(2):
        out = step(model, {"crops": [crop.to(dtype) for crop in crops()["crops"]]}, 0.1 * k)
    assert out["loss"].dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(out["loss"])


# --- what it offers and refuses ---


def test_it_is_an_encoder_of_its_backbone():
    model = method(conv()).eval()
    assert abilities_of(model) == ("Encoder",)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(model.features(x), model.backbone.features(x))


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="SwAV needs a backbone with Encoder; Linear is none"):
        SwAV(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 4, bias=False))
    with pytest.raises(ValueError, match="the prototypes are directions"):
        SwAV(vit(), nn.Identity(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="got 1 crops"):
        method()(crops(2, (8,)))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"temperature": 0.0}, "swav: temperature 0 and epsilon 0.05 must be above 0"),
        ({"epsilon": -1.0}, "swav: temperature 0.1 and epsilon -1 must be above 0"),
        ({"prototypes": 1}, "--prototypes 1: must be at least 2"),
        ({"queue": -1}, "--queue -1: must not be negative"),
        ({"local_crops": -2}, "--local-crops -2: must not be negative"),
    ],
)
def test_settings_that_do_not_fit(given, said):
    with pytest.raises(SensoriumError, match=said) as caught:
        make_recipe("swav", ON, given)
    assert "\n" not in str(caught.value)


def test_defaults_follow_from_data_and_machine():
    from dataclasses import replace

    small = make_recipe("swav", ON, {}).settings
    assert small["local_crops"].value == 0
    large = make_recipe("swav", replace(ON, device="cuda", image_size=224, images=1_281_167), {"backbone": "resnet-18"})
    kept = {
        name: large.settings[name].value
        for name in ("batch_size", "prototypes", "queue", "local_crops", "crop_min", "local_size")
    }
    assert kept == {
        "batch_size": 256,
        "prototypes": 3000,
        "queue": 3840,
        "local_crops": 6,
        "crop_min": 0.14,
        "local_size": 96,
    }
    assert make_recipe("swav", replace(ON, device="cuda"), {"batch_size": 4096}).settings["queue"].value == 0


def test_it_learns_to_tell_kinds_of_images_apart():
    torch.manual_seed(0)
    model = SwAV(conv(), mlp_head(16, 32, 8, bias=True), nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    kinds = torch.randn(4, 3, 8, 8)
    images = kinds.repeat(8, 1, 1, 1)
    for k in range(40):
        now = at(k / 40, k)
        model.before_step(now)
        out = model({"crops": [images + 0.3 * torch.randn_like(images) for _ in range(3)]})
        optimizer.zero_grad()
        out["loss"].backward()
        model.before_update(now)
        optimizer.step()
        model.after_step(now)
    z = nn.functional.normalize(model.head(model.eval().backbone.features(images)), dim=1)
    alike, apart = (z[:4] @ z[4:8].T).diag().min(), (z[:4] @ z[:4].T - 2 * torch.eye(4)).max()
    assert alike > 0.9
    assert apart < 0.7
