"""SimCLR v2: which layers belong to the features, its memory, what it offers, and what fine-tuning starts from."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sensorium
from sensorium.abilities import abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.seen import inner
from sensorium.networks.vit import ViT
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.learning.nt_xent import nt_xent
from sensorium.recipe.optim import depths
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.simclr_v2.method import Extended, SimCLRv2

ON = Situation(32, 4000, (), (0.2, 0.3, 0.4), (0.3, 0.2, 0.1))
FEW: dict[str, Any] = {
    "data": "digits",
    "limit": 64,
    "batch_size": 8,
    "budget": "2steps",
    "progress": False,
    "threads": 1,
}


def conv():
    return ResNet((1, 1), 8, stem="small")


def method(backbone=None, *, kept=1, **numbers):
    torch.manual_seed(0)
    body = conv() if backbone is None else backbone
    return SimCLRv2(Extended(body, kept), ProjectionHead(body.dim, body.dim, 8, layers=3 - kept), **numbers)


def views(n=6, size=8):
    return {"views": [torch.randn(n, 3, size, size) for _ in range(2)]}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_features_are_those_of_the_first_layer():
    model = method().eval()
    assert abilities_of(model) == ("Encoder",)
    x = torch.randn(3, 3, 8, 8)
    linear, norm, relu = model.backbone.layers
    assert torch.equal(model.features(x), relu(norm(linear(model.backbone.body.features(x)))))
    assert (model.features(x) >= 0).all()
    assert model.dim == model.features(x).shape[1] == model.backbone.body.dim


def test_both_views_share_their_batch_statistics():
    model, batch = method(temperature=0.5), views()
    z1, z2 = model.head(model.features(torch.cat(batch["views"]))).chunk(2)
    assert torch.allclose(model(batch)["loss"], nt_xent(z1, z2, 0.5)["loss"], atol=1e-6)


@pytest.mark.parametrize("memory", [0, 6])
def test_a_forward_changes_running_statistics_and_nothing_else(memory):
    model, batch = method(memory=memory), views()
    before = snapshot(model)
    model(batch)
    names = changed(model, before)
    assert names
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in names)
    model.eval()
    before = snapshot(model)
    assert model(batch)["loss"] == model(batch)["loss"]
    assert changed(model, before) == set()


def step(model, batch, fraction=0.0):
    model.before_step(at(fraction))
    out = model(batch)
    model.after_step(at(fraction))
    return out


def test_the_memory_is_used_when_it_is_full():
    model, plain = method(memory=12), method()
    plain.load_state_dict(model.state_dict(), strict=False)
    for count in (6, 12):
        batch = views()
        assert step(model, batch)["loss"] == step(plain, batch)["loss"]
        assert int(model.memory.count) == count
    batch = views()
    assert step(model, batch)["loss"] > step(plain, batch)["loss"]  # more negatives


def test_the_memory_network_is_the_moving_average():
    model = method(memory=6, momentum=0.9)
    old = copy.deepcopy(model.memory_network)
    with torch.no_grad():
        for p in (*model.backbone.parameters(), *model.head.parameters()):
            p.add_(torch.randn_like(p))
    own = {name: value.clone() for name, value in model.memory_network.named_buffers()}
    model.after_step(at(0))
    online = [*model.backbone.parameters(), *model.head.parameters()]
    for t, o, s in zip(model.memory_network.parameters(), old.parameters(), online, strict=True):
        assert torch.allclose(t, 0.9 * o + 0.1 * s, atol=1e-6)
        assert not t.requires_grad
    assert all(torch.equal(value, own[name]) for name, value in model.memory_network.named_buffers())
    norms = [m for m in model.memory_network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert all(m.training for m in norms)
    model.eval()
    assert not any(m.training for m in norms)


def test_forwards_that_belong_to_no_step_leave_the_memory_alone():
    model = method(memory=6)
    model.eval()
    model(views())
    model.train()
    model(views())
    model.before_step(at(0))
    model.after_step(at(0))
    assert int(model.memory.count) == 0


def test_loss_stays_in_float32_under_autocast():
    model, batch = method(memory=6), views()
    step(model, batch)
    model.before_step(at(0))
    want = copy.deepcopy(model)(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.1)
    assert model.memory.rows.dtype == torch.float32


def test_layers_of_the_head_are_the_last_of_the_network():
    extended = Extended(ViT(8, 4, 16, 2, 2), 2)
    found = extended.layers_for_decay()
    assert found.keys() == {name for name, _ in extended.named_parameters()}
    inside = extended.body.layers_for_decay()
    assert all(found[f"body.{name}"] == depth for name, depth in inside.items())
    assert {depth for name, depth in found.items() if name.startswith("layers")} == {max(inside.values()) + 1}
    assert inner(extended) is extended.body
    assert depths(extended)["head"] == max(found.values())


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="SimCLR v2 needs a backbone with Encoder; Linear is none"):
        Extended(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="SimCLR v2 needs a backbone with Encoder; Linear is none"):
        SimCLRv2(nn.Linear(3, 3), ProjectionHead(3, 3))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"kept_layers": 3}, "--kept-layers 3: must be at least 0 and less than --head-layers 3"),
        ({"kept_layers": -1}, "--kept-layers -1"),
        ({"memory": -1}, "--memory -1: must not be negative"),
        ({"temperature": 0.0}, "simclr_v2: temperature 0 must be above 0"),
        ({"momentum": 1.5}, "simclr_v2: momentum 1.5 must be from 0 to 1"),
    ],
)
def test_settings_that_do_not_fit(given, said):
    with pytest.raises(SensoriumError, match=said) as caught:
        make_recipe("simclr_v2", ON, given)
    assert "\n" not in str(caught.value)


def test_without_kept_layers_the_backbone_is_the_network_alone():
    recipe = make_recipe("simclr_v2", ON, {"kept_layers": 0, "backbone": "resnet-micro"})
    assert type(recipe.method.backbone) is ResNet
    assert sum(isinstance(part, nn.Linear) for part in recipe.method.head.modules()) == 3


def test_fine_tuning_starts_from_the_layer_too_and_files_hold_the_network(tmp_path: Path):
    run = sensorium.train("simclr_v2", **FEW, out=tmp_path / "v2", memory=8, backbone="resnet-micro")
    assert type(run.backbone) is Extended
    tuned = sensorium.train("supervised", **FEW, start=str(tmp_path / "v2"), out=tmp_path / "tuned")
    assert type(tuned.method.backbone) is Extended
    assert tuned.method.head.in_features == run.method.dim
    bare = sensorium.load(tmp_path / "v2" / "backbone")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(bare.features(x), run.method.backbone.body.features(x))
    written = sensorium.export(run, "timm", tmp_path / "timm")
    assert torch.equal(sensorium.load(written).features(x), bare.features(x))


def test_it_learns_to_tell_images_apart():
    model = method(temperature=0.2, memory=32, momentum=0.9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    torch.manual_seed(1)
    images = torch.randn(16, 3, 8, 8)
    for k in range(25):
        model.before_step(at(k / 25, k))
        out = model({"views": [images + 0.3 * torch.randn_like(images) for _ in range(2)]})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        model.after_step(at(k / 25, k))
    z = nn.functional.normalize(model.eval().features(images), dim=1)
    noisy = nn.functional.normalize(model.features(images + 0.3 * torch.randn_like(images)), dim=1)
    assert ((z @ noisy.T).argmax(1) == torch.arange(16)).float().mean() > 0.9
