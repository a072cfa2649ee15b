"""airbench's network: whitening of natural pictures, the identity at first, sizes, layers, our own files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium import load
from sensorium.abilities import abilities_of
from sensorium.errors import SensoriumError
from sensorium.networks.airbench import AIRBENCH_SIZES, Airbench, Group, Whiten, airbench
from sensorium.use import export

CIFAR = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "cifar10" / "test.npz"


@pytest.mark.parametrize("height, width", [(32, 32), (33, 19), (9, 64), (5, 1)])
def test_maps_have_the_sizes_and_channels_that_are_said(height, width):
    net = Airbench((8, 12, 16)).eval()
    x = torch.randn(2, 3, height, width)
    assert (net.channels, net.strides, net.dim) == ((8, 12, 16), (2, 4, 8), 16)
    for m, c, s in zip(net.maps(x), net.channels, net.strides, strict=True):
        assert m.shape == (2, c, (max(height, 9) - 1) // s, (max(width, 9) - 1) // s)
    assert net.rows(height) == tuple(m.shape[2] for m in net.maps(x))
    assert torch.equal(net.features(x), net.maps(x)[-1].amax((2, 3)))
    assert torch.equal(net(x), net.features(x))
    assert abilities_of(net) == ("Encoder", "MapEncoder")


def test_it_is_the_plain_composition():
    torch.manual_seed(0)
    net = Airbench((5, 7)).double()
    x = torch.randn(3, 3, 11, 8, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, net.whiten.filters)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    y = F.gelu(torch.cat([y, -y], 1) + net.whiten.bias[None, :, None, None])
    for group in net.groups:
        for k, conv in enumerate((group.conv1, group.conv2)):
            y = F.conv2d(y, conv.weight, padding=1)
            y = F.max_pool2d(y, 2) if k == 0 else y
            y = F.gelu(
                (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            )
    want = y.flatten(2).max(2).values
    got = net.features(x)
    assert (got - want).abs().max() <= 1e-12
    weight = torch.randn_like(got)
    first, second = (torch.autograd.grad((z * weight).sum(), x, retain_graph=True)[0] for z in (got, want))
    assert (first - second).abs().max() <= 1e-10


def test_the_first_filters_are_orthonormal_and_frozen():
    net = Whiten()
    flat = net.filters.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(12), atol=1e-6)
    assert [name for name, _ in net.named_parameters()] == ["bias"]


@pytest.mark.skipif(not CIFAR.is_file(), reason="no CIFAR-10 in $SENSORIUM_DATA")
def test_natural_pictures_are_whitened():
    images = torch.from_numpy(np.load(CIFAR)["images"][:500]).permute(0, 3, 1, 2).float() / 255
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    net = Whiten().train()
    outputs = net.norm(F.conv2d(images, net.filters)).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(outputs)
    assert outputs.var(1).sub(1).abs().max() < 0.1
    assert (correlation - torch.eye(12)).abs().max() < 0.5  # brightness and color, of grass and sky
    assert (correlation - torch.eye(12)).abs().mean() < 0.05
    raw = torch.corrcoef(images.unfold(2, 2, 2).unfold(3, 2, 2).permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(0, 2))
    assert (raw - torch.eye(12)).abs().mean() > 0.7


def test_a_new_group_passes_its_input_on():
    group = Group(4, 6)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(group.conv1(x)[:, :4], x)
    y = torch.randn(2, 6, 8, 8)
    assert torch.equal(group.conv2(y), y)


def test_every_parameter_learns():
    net = Airbench((8, 12)).train()
    net.features(torch.randn(4, 3, 16, 16)).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_layers_for_decay():
    found = Airbench((8, 12)).layers_for_decay()
    assert found == {name: 0 if name == "whiten.bias" else int(name[7]) + 1 for name in found}
    assert set(found.values()) == {0, 1, 2}


def test_named_sizes():
    for size, widths in AIRBENCH_SIZES.items():
        assert airbench(size).channels == widths
    with pytest.raises(SensoriumError, match="did you mean 'micro'"):
        airbench("mikro")
    with pytest.raises(ValueError, match="at least one positive"):
        Airbench(())


def test_our_own_files(tmp_path):
    torch.manual_seed(0)
    net = Airbench((8, 12))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    x = torch.randn(2, 3, 17, 20)
    read = load(export(net.eval(), "safetensors", tmp_path / "out")).eval()
    assert torch.equal(read.features(x), net.features(x))
    config = tmp_path / "out" / "config.json"
    told = json.loads(config.read_text())
    told["numbers"]["widths"] = [8, 12, 16]
    config.write_text(json.dumps(told))
    with pytest.raises(SensoriumError, match="widths"):
        load(tmp_path / "out")


@pytest.mark.parametrize("widths, sides", [((8, 12), (17, 20)), ((5,), (1, 2)), ((6, 8, 10), (9, 33))])
def test_hugging_face_opens_its_directory(widths, sides, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the other side is transformers")
    torch.manual_seed(0)
    net = Airbench(widths)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_()
    out = export(net.eval(), "hf", tmp_path / "out")
    theirs = transformers.AutoModel.from_pretrained(out, trust_remote_code=True).eval()
    x, y = (torch.randn(2, 3, *sides).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    ours, found = net.features(x), theirs(y)
    assert (found.pooler_output - ours).abs().max() <= 1e-5
    assert (found.last_hidden_state - net.maps(x)[-1]).abs().max() <= 1e-5
    found.pooler_output.pow(2).sum().backward()
    ours.pow(2).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert (x.grad - y.grad).abs().max() <= 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert isinstance(again, Airbench)
    assert torch.equal(again.eval().features(x), ours)


def test_a_library_without_it_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"no format 'timm' .*--backbone resnet-micro.*Use --to"):
        export(Airbench((8, 12)), "timm", tmp_path / "out")


def test_color_is_left_out_where_the_training_pictures_had_none():
    """Or a difference of one gray level between the channels would count more than the picture."""
    torch.manual_seed(0)
    net = Airbench((8, 12, 16))
    with torch.no_grad():
        for _ in range(200):
            net(torch.rand(8, 1, 12, 12).expand(-1, 3, -1, -1) * 4 - 2)
    net.eval()
    gray = torch.rand(4, 1, 12, 12).expand(-1, 3, -1, -1) * 4 - 2
    tinted = gray + torch.tensor([0.02, -0.01, -0.01]).view(3, 1, 1)  # as bright
    assert float(net(gray).detach().std()) > 0.1
    torch.testing.assert_close(net(tinted), net(gray), atol=1e-3, rtol=1e-3)


def test_color_counts_where_the_training_pictures_had_some():
    torch.manual_seed(0)
    net = Airbench((8, 12, 16))
    with torch.no_grad():
        for _ in range(200):
            net(torch.rand(8, 1, 12, 12).expand(-1, 3, -1, -1) * 4 - 2 + 0.1 * torch.randn(8, 3, 12, 12))
    net.eval()
    gray = torch.rand(4, 1, 12, 12).expand(-1, 3, -1, -1) * 4 - 2
    assert float((net(gray + torch.tensor([0.1, -0.05, -0.05]).view(3, 1, 1)) - net(gray)).abs().max()) > 0.05
