"""DINO: where its state changes, crops of several sizes, what it offers; and the parts it is made of."""

import copy
import math

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.ema import ema_, frozen_copy
from sensorium.parts.heads import DINOHead
from sensorium.parts.schedules import cosine, linear, warmup_cosine
from sensorium.selfsup.dino.method import DINO, dino_loss


def vit(**numbers):
    torch.manual_seed(0)
    return ViT(8, 4, 16, 2, 2, **numbers)


def conv():
    torch.manual_seed(0)
    return ResNet((1, 1), 8, stem="small")


def method(backbone=None, *, norm=False, **numbers):
    backbone = vit() if backbone is None else backbone
    head = DINOHead(backbone.dim, 23, hidden=16, bottleneck=8, norm=norm)
    nn.init.normal_(head.mlp[-1].bias)
    return DINO(backbone, head, **numbers)


def crops(n=6, sizes=(8, 8, 4, 4)):
    return {"crops": [torch.randn(n, 3, size, size) for size in sizes]}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_loss_is_equation_3():
    torch.manual_seed(0)
    t, s, c = torch.randn(2, 3, 5), torch.randn(4, 3, 5), torch.randn(5)
    p_t, log_s = ((t - c) / 0.1).softmax(-1), (s / 0.2).log_softmax(-1)
    pairs = [-(p_t[g] * log_s[v]).sum(-1).mean() for g in range(2) for v in range(4) if v != g]
    out = dino_loss(t, s, c, tau_t=0.1, tau_s=0.2)
    assert out["loss"].item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-6)
    assert out["entropy"].item() == pytest.approx(
        torch.distributions.Categorical(p_t).entropy().mean().item(), rel=1e-5
    )
    assert out["kl"].item() == pytest.approx((out["loss"] - out["entropy"]).item(), rel=1e-6)


def test_collapses_show_in_the_entropy():
    flat = torch.zeros(2, 4, 16)
    sharp = torch.zeros(2, 4, 16)
    sharp[..., 3] = 9
    entropies = [dino_loss(t, t, torch.zeros(16), tau_t=0.1, tau_s=0.1)["entropy"].item() for t in (flat, sharp)]
    assert entropies == pytest.approx([math.log(16), 0], abs=1e-5)


@pytest.mark.parametrize("make", [vit, conv])
def test_a_forward_changes_no_state_but_running_statistics(make):
    model, batch = method(make()), crops()
    before = snapshot(model)
    model(batch)
    model(batch)
    names = changed(model, before)
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)
    assert bool(names) == (make is conv)
    model.eval()
    before = snapshot(model)
    assert model(batch)["loss"] == model(batch)["loss"]
    assert changed(model, before) == set()


def test_the_centre_is_exact_under_gradient_accumulation():
    whole, parts = method(), method()
    batch = crops(8)
    for step in range(2):
        for model in (whole, parts):
            model.before_step(at(0.1 * step))
        loss = whole(batch)["loss"]
        pieces = [[crop[i : i + 2] for crop in batch["crops"]] for i in range(0, 8, 2)]
        mean = sum(parts({"crops": piece})["loss"] for piece in pieces) / 4
        assert torch.allclose(loss, mean, atol=1e-6)
        for model in (whole, parts):
            model.after_step(at(0.1 * step))
        assert whole.center.abs().max() > 0
        assert torch.allclose(whole.center, parts.center, atol=1e-7)
    want = whole.teacher["head"](whole.teacher["backbone"].features(torch.cat(batch["crops"][:2]))).mean(0)
    assert torch.allclose(whole.center, want * (1 - 0.9**2), atol=1e-6)


def test_forwards_that_belong_to_no_step_leave_the_centre_alone():
    model = method()
    model.eval()
    model(crops())
    model.train()
    model.after_step(at(0))
    assert model.center.abs().max() == 0
    model(crops())
    model.before_step(at(0))
    model.after_step(at(0))
    assert model.center.abs().max() == 0


def test_the_teacher_is_the_moving_average():
    model = method(momentum=0.9)
    old = copy.deepcopy(model.teacher)
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(torch.randn_like(p))
    model.after_step(at(0.25))
    m = cosine(0.9, 1.0, 0.25)
    for t, o, s in zip(model.teacher.parameters(), old.parameters(), model.student.parameters(), strict=True):
        assert torch.allclose(t, m * o + (1 - m) * s, atol=1e-6)
        assert not t.requires_grad
    frozen = snapshot(model.teacher)
    model.after_step(at(1.0))
    assert changed(model.teacher, frozen) == set()


def test_the_teacher_drops_nothing_and_normalises_by_its_own_batch():
    model = method(vit(drop_path=0.5)).train()
    x = torch.randn(16, 3, 8, 8)
    assert torch.equal(model.features(x), model.features(x))
    student = model.student["backbone"]
    assert not torch.equal(student.features(x), student.features(x))

    model = method(conv(), norm=True).train()
    norms = [m for m in model.teacher.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert norms
    assert all(m.training for m in norms)
    model(crops())
    own = snapshot(model.teacher)
    model.after_step(at(0))
    assert not any("running" in name for name in changed(model.teacher, own))
    assert not any(m.training for m in model.eval().teacher.modules())


def test_the_teachers_temperature_warms_up():
    model = method(tau_t=(0.04, 0.08), tau_warmup=0.5)
    seen = []
    for fraction in (0, 0.25, 0.5, 1):
        model.before_step(at(fraction))
        seen.append(model.tau_t.item())
    assert seen == pytest.approx([0.04, 0.06, 0.08, 0.08])
    steady = method(tau_t=(0.04, 0.08), tau_warmup=0.0)
    steady.before_step(at(0))
    assert steady.tau_t.item() == pytest.approx(0.08)


def test_the_prototypes_rest_at_first():
    model = method(freeze_last=0.1)
    last = model.student["head"].last_layer
    for fraction, learns in ((0.0, False), (0.09, False), (0.1, True)):
        model.zero_grad()
        model(crops())["loss"].backward()
        model.before_update(at(fraction))
        assert (last.weight_v.grad is not None) == learns
        assert last.weight_g.grad is None
        others = [p for n, p in model.student.named_parameters() if "last_layer" not in n]
        assert all(p.grad is not None for p in others)
    assert all(p.grad is None for p in model.teacher.parameters())


def test_sinkhorn_spreads_whatever_all_images_have_in_common():
    torch.manual_seed(0)
    t, s, common = torch.randn(2, 8, 5) / 10, torch.randn(3, 8, 5) / 10, torch.randn(5)
    plain, shifted = (dino_loss(x, s, None, tau_t=0.1, tau_s=0.2) for x in (t, t + common))
    assert all(torch.allclose(plain[name], shifted[name], atol=1e-5) for name in plain)
    # and one that a center would not undo: all images at one prototype, by different amounts
    one = torch.zeros(2, 8, 5)
    one[..., 3] = torch.rand(2, 8)
    assert dino_loss(one, s, None, tau_t=0.1, tau_s=0.2)["entropy"] > 1.0
    assert dino_loss(one, s, torch.zeros(5), tau_t=0.1, tau_s=0.2)["entropy"] < 0.8


def test_the_method_spreads_by_sinkhorn():
    model, batch = method(sinkhorn=True).train(), crops()
    head, backbone = model.student["head"], model.student["backbone"]
    s = torch.stack([head(backbone.features(x)) for x in batch["crops"]])
    t = torch.stack([head(backbone.features(x)) for x in batch["crops"][:2]])
    model.center.fill_(3.0)  # is not looked at
    got, want = model(batch)["loss"], dino_loss(t, s, None, tau_t=model.tau_t, tau_s=model.tau_s)["loss"]
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("make", [vit, conv])
@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 4), (12, 12, 8, 8, 4)])
def test_crops_of_any_sizes(make, sizes):
    model = method(make()).eval()
    batch = crops(3, sizes)
    torch.manual_seed(2)
    nn.init.normal_(model.center, std=0.1)
    head, backbone = model.student["head"], model.student["backbone"]
    s = torch.stack([head(backbone.features(x)) for x in batch["crops"]])
    t = torch.stack([head(backbone.features(x)) for x in batch["crops"][:2]])
    want = dino_loss(t, s, model.center, tau_t=0.04, tau_s=0.1)
    got = model(batch)
    assert all(torch.allclose(got[name], want[name], atol=1e-5) for name in ("loss", "entropy", "kl"))


def test_what_it_offers_follows_from_the_backbone():
    with_maps, without = method().eval(), method(conv()).eval()
    assert abilities_of(with_maps) == abilities_of(without) == ("Encoder", "AttentionMaps")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(with_maps.attention(x), with_maps.backbone.attention(x))
    assert without.attention(x) is None
    assert torch.equal(without.features(x), without.teacher["backbone"].features(x))
    other = copy.deepcopy(with_maps)
    nn.init.normal_(next(other.teacher.parameters()))
    assert torch.equal(other.attention(x), other.backbone.attention(x))


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="DINO needs a backbone with Encoder"):
        DINO(nn.Linear(3, 3), DINOHead(3, 4))
    with pytest.raises(ValueError, match="the head takes 7 features, the backbone gives 16"):
        DINO(vit(), DINOHead(7, 4))
    with pytest.raises(ValueError, match="got 1 crops"):
        method()(crops(2, (8,)))


def test_state_survives_the_round_trip():
    model = method(conv(), norm=True)
    for step in range(2):
        model.before_step(at(0.1 * step))
        model(crops())
        model.after_step(at(0.1 * step))
    other = method(conv(), norm=True)
    other.load_state_dict(model.state_dict())
    batch = crops()
    assert torch.equal(model.eval()(batch)["loss"], other.eval()(batch)["loss"])


def test_autocast_keeps_the_loss_in_float32():
    model, batch = method().eval(), crops()
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
        model.train()(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)
    narrow = model.teacher["head"](model.features(torch.cat(batch["crops"][:2]))).mean(0)
    model.after_step(at(0))
    assert model.center.dtype == torch.float32
    assert torch.allclose(model.center, 0.1 * narrow, atol=2e-3)


def test_it_learns_to_agree_without_collapsing():
    torch.manual_seed(0)
    model = DINO(conv(), DINOHead(16, 23, hidden=32, bottleneck=16), momentum=0.9, tau_t=(0.04, 0.04))
    optimizer = torch.optim.AdamW(model.student.parameters(), 1e-2)
    # Two kinds of images: smooth ones and rough ones.
    kinds = torch.randn(2, 3, 8, 8) * torch.tensor([0.2, 2.0]).view(2, 1, 1, 1)
    images = kinds.repeat(8, 1, 1, 1)
    for step in range(40):
        now = at(step / 40, step)
        model.before_step(now)
        out = model({"crops": [images + 0.1 * torch.randn_like(images) for _ in range(3)]})
        optimizer.zero_grad()
        out["loss"].backward()
        model.before_update(now)
        optimizer.step()
        model.after_step(now)
    prototypes = (model.teacher["head"](model.eval().features(images)) - model.center).argmax(1)
    smooth, rough = set(prototypes[0::2].tolist()), set(prototypes[1::2].tolist())
    assert smooth.isdisjoint(rough)
    assert len(smooth | rough) < 5


def test_moving_average_of_buffers():
    source, target = nn.BatchNorm1d(3), frozen_copy(nn.BatchNorm1d(3))
    source(torch.randn(5, 3))
    ema_(target, source, 0.5, buffers=False)
    assert target.num_batches_tracked == 0
    ema_(target, source, 0.5)
    assert torch.equal(target.running_mean, source.running_mean)
    assert target.num_batches_tracked == 1
    nn.init.constant_(source.weight, 3.0)
    ema_(target, source, 0.0)
    assert torch.equal(target.weight, source.weight)
    assert not target.weight.requires_grad
    assert not target.training
    with pytest.raises(ValueError, match="same architecture"):
        ema_(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5)


def test_schedules():
    assert [cosine(1, 3, f) for f in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 2, 3, 3])
    assert [linear(1, 3, f) for f in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 2, 3, 3])
    got = [warmup_cosine(f, 0.1, 0.2) for f in (0, 0.05, 0.1, 0.55, 1, 1.5)]
    assert got == pytest.approx([0.01, 0.505, 1, 0.6, 0.2, 0.2])
    assert [warmup_cosine(f, 0.0) for f in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [warmup_cosine(f, 1.0) for f in (0, 0.5, 1)] == pytest.approx([0.01, 0.505, 1])
