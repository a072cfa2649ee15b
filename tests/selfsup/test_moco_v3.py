"""MoCo v3: where its state changes, what is frozen, what it offers, what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.schedules import cosine
from sensorium.selfsup.moco_v3.method import MoCoV3, contrast
from sensorium.selfsup.moco_v3.recipe import heads, moco_v3

ON = Situation(16, 400, (), (0.5,) * 3, (0.25,) * 3)


def vit(**numbers):
    torch.manual_seed(0)
    return ViT(8, 4, 16, 2, 2, **numbers)


def conv():
    torch.manual_seed(0)
    return ResNet((1, 1), 8, stem="small")


def method(backbone=None, **numbers):
    backbone = vit() if backbone is None else backbone
    return MoCoV3(backbone, *heads(16, 12, 6, vit=isinstance(backbone, ViT)), **numbers)


def views(n=6, size=8):
    return {"views": [torch.randn(n, 3, size, size) for _ in range(2)]}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_loss_is_algorithm_1():
    q, k, tau = torch.randn(4, 5), torch.randn(4, 5), 0.3
    unit_q, unit_k = (z / z.norm(dim=1, keepdim=True) for z in (q, k))
    total = 0.0
    for i in range(4):
        exps = [math.exp((unit_q[i] @ unit_k[j]).item() / tau) for j in range(4)]
        total -= math.log(exps[i] / sum(exps))
    out = contrast(q, k, tau)
    assert out["loss"].item() == pytest.approx(2 * tau * total / 4, rel=1e-5)
    assert out["alignment"].item() == pytest.approx((unit_q * unit_k).sum(1).mean().item(), rel=1e-5)
    assert contrast(k, k, tau)["contrast_top1"] == 1


def test_both_views_count_alike():
    model, batch = method(conv()).eval(), views()
    got, swapped = model(batch), model({"views": batch["views"][::-1]})
    assert all(torch.allclose(got[name], swapped[name], atol=1e-6) for name in got)
    assert set(got) == {"loss", "contrast_top1", "alignment", "information", "ceiling"}


@pytest.mark.parametrize("make", [vit, conv])
def test_a_forward_changes_no_state_but_running_statistics(make):
    model, batch = method(make()), views()
    before = snapshot(model)
    model(batch)
    assert all(n.endswith(("running_mean", "running_var", "num_batches_tracked")) for n in changed(model, before))
    model.eval()
    before = snapshot(model)
    assert model(batch)["loss"] == model(batch)["loss"]
    assert changed(model, before) == set()


def test_the_momentum_encoder_follows_on_a_cosine_to_rest():
    model = method(momentum=0.9)
    old = copy.deepcopy(model.teacher)
    with torch.no_grad():
        for p in model.base.parameters():
            p.add_(torch.randn_like(p))
    model.after_step(at(0.25))
    m = cosine(0.9, 1.0, 0.25)
    for t, o, b in zip(model.teacher.parameters(), old.parameters(), model.base.parameters(), strict=True):
        assert torch.allclose(t, m * o + (1 - m) * b, atol=1e-6)
        assert not t.requires_grad
    frozen = snapshot(model.teacher)
    model.after_step(at(1.0))
    assert changed(model.teacher, frozen) == set()


def test_the_momentum_encoder_normalizes_by_its_own_batch_and_drops_nothing():
    model = method(vit(drop_path=0.5)).train()
    x = torch.randn(8, 3, 8, 8)
    assert torch.equal(model.teacher["backbone"].features(x), model.teacher["backbone"].features(x))
    assert not torch.equal(model.features(x), model.features(x))
    norms = [m for m in model.teacher.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms
    assert all(m.training for m in norms)
    assert not any(m.training for m in model.eval().teacher.modules())


@pytest.mark.parametrize("freeze", [True, False])
def test_the_patch_projection_rests(freeze):
    model = method(vit(positions="sincos"), freeze_patches=freeze)
    model(views())["loss"].backward()
    for name, p in model.named_parameters():
        learns = not name.startswith("teacher.") and "pos_embed" not in name
        assert (p.grad is not None) == (learns and not (freeze and "patch_embed" in name)), name
    conv_model = method(conv(), freeze_patches=True)  # has no patches
    conv_model(views())["loss"].backward()
    assert all(p.grad is not None for n, p in conv_model.named_parameters() if not n.startswith("teacher."))


def test_the_base_encoder_is_evaluated():
    with_maps, without = method().eval(), method(conv()).eval()
    assert abilities_of(with_maps) == abilities_of(without) == ("Encoder", "AttentionMaps")
    x = torch.randn(2, 3, 8, 8)
    for model in (with_maps, without):
        nn.init.normal_(next(model.teacher.parameters()))
        assert torch.equal(model.features(x), model.base["backbone"].features(x))
    assert torch.equal(with_maps.attention(x), with_maps.base["backbone"].attention(x))
    assert without.attention(x) is None


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="MoCo v3 needs a backbone with Encoder"):
        MoCoV3(nn.Linear(3, 3), *heads(3, 4, 5, vit=False))
    for numbers, said in (({"momentum": 1.1}, "momentum"), ({"temperature": 0}, "temperature")):
        with pytest.raises(ValueError, match=said):
            method(**numbers)
    with pytest.raises(SensoriumError, match="--momentum -1: must be at least 0 and at most 1"):
        moco_v3(ON, momentum=-1.0)
    with pytest.raises(SensoriumError, match="--temperature 0: must be above 0"):
        moco_v3(ON, temperature=0.0)


def test_the_recipe_gives_each_backbone_its_heads_and_leaves_checkpoints_as_they_are(tmp_path):
    from sensorium.published import export

    names = [type(part).__name__ for part in moco_v3(ON, backbone="resnet-micro", hidden=8).method.predictor]
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    named = moco_v3(ON, backbone="vit-micro", hidden=8).method
    assert [type(part).__name__ for part in named.base["head"]].count("Linear") == 3
    assert type(named.predictor[-1]).__name__ == "BatchNorm1d"
    assert named.backbone.cls_token.abs().max() < 1e-4
    network = ViT(16, 4, 32, 1, 2)
    read = moco_v3(ON, backbone=str(export(network, "safetensors", tmp_path / "net")), hidden=8).method.backbone
    assert torch.equal(read.cls_token, network.cls_token)
    assert torch.equal(read.pos_embed, network.pos_embed)


def test_state_survives_the_round_trip():
    model = method(conv())
    for step in range(2):
        model.before_step(at(0.1 * step))
        model(views())
        model.after_step(at(0.1 * step))
    other = method(conv())
    other.load_state_dict(model.state_dict())
    batch = views()
    assert torch.equal(model.eval()(batch)["loss"], other.eval()(batch)["loss"])


def test_autocast_keeps_the_loss_in_float32():
    model, batch = method(conv()).eval(), views()
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)


def test_it_learns_to_find_images():
    torch.manual_seed(0)
    model = method(conv(), momentum=0.9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    found = []
    for step in range(40):
        now = at(step / 40, step)
        images = torch.randn(16, 3, 1, 1).expand(-1, -1, 8, 8)
        model.before_step(now)
        out = model({"views": [images + 0.1 * torch.randn(16, 3, 8, 8) for _ in range(2)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        model.after_step(now)
        found.append(out["contrast_top1"].item())
    assert sum(found[-10:]) / 10 > 5 / 16  # chance is 1 / 16
