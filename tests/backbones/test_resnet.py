"""ResNet: stems, sizes, strides, memory format."""

import pytest
import torch

from sensorium.abilities import abilities_of
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import RESNET_SIZES, ResNet, resnet


def tiny(**numbers):
    torch.manual_seed(0)
    return ResNet(**{"layers": (1, 1, 2), "width": 8, "stem": "small", **numbers})


@pytest.mark.parametrize("stem", ["imagenet", "small", "patch"])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("height, width", [(32, 32), (33, 19), (7, 64), (1, 1)])
def test_maps_have_the_strides_and_channels_that_are_said(stem, bottleneck, height, width):
    net = tiny(stem=stem, bottleneck=bottleneck).eval()
    x = torch.randn(2, 3, height, width)
    maps = net.maps(x)
    assert len(maps) == len(net.channels) == len(net.strides) == 3
    for m, c, s in zip(maps, net.channels, net.strides, strict=True):
        assert m.shape == (2, c, -(-height // s), -(-width // s))
    assert net.features(x).shape == (2, net.dim)
    assert net.dim == net.channels[-1]
    assert torch.allclose(net.features(x), maps[-1].mean((2, 3)))
    assert torch.equal(net(x), net.features(x))


def test_it_is_an_encoder_and_a_map_encoder_only():
    assert abilities_of(tiny()) == ("Encoder", "MapEncoder")


def test_patch_stem_pads_with_zeros():
    net = tiny(stem="patch", patch=4).eval()
    x = torch.randn(2, 3, 30, 31)
    padded = torch.zeros(2, 3, 32, 32)
    padded[..., :30, :31] = x
    assert torch.equal(net.features(x), net.features(padded))


def test_every_parameter_learns():
    net = tiny(bottleneck=True).train()
    net.features(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_memory_of_the_input_changes_nothing_and_the_inside_is_channels_last():
    net = tiny().eval()
    x = torch.randn(4, 3, 16, 16)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(net.features(x), net.features(last))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in net.maps(x))
    weights = [p for p in net.parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert not all(w.is_contiguous() for w in weights)  # in the maps' order, not only where both are the same


def test_zero_init_makes_every_block_an_identity_at_the_start():
    net = tiny(layers=(3,), zero_init=True).eval()
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(net.maps(x)[0], net.relu(net.bn1(net.conv1(x))))
    assert not torch.equal(tiny(layers=(3,)).eval().maps(x)[0], net.relu(net.bn1(net.conv1(x))))


@pytest.mark.parametrize("size", RESNET_SIZES)
def test_named_sizes(size):
    with torch.device("meta"):
        small, large = resnet(size, 32), resnet(size, 224)
        other = resnet(size, 32, stem="imagenet", width=16)
    # "micro" begins at half the resolution and has three stages
    first, stem = (2, "half") if size == "micro" else (1, "small")
    assert (small.stem, large.stem, other.stem) == (stem, "imagenet", "imagenet")
    stages = len(RESNET_SIZES[size][0])
    assert small.strides == tuple(first * 2**i for i in range(stages))
    assert large.strides == (4, 8, 16, 32)[:stages]
    assert other.channels[0] in (16, 64)


def test_stem_follows_the_image_size_up_to_64():
    with torch.device("meta"):
        assert [resnet("10", n).stem for n in (28, 64, 65, 224)] == ["small", "small", "imagenet", "imagenet"]


def test_mistakes_are_told():
    with pytest.raises(SensoriumError, match=r"no size '181'; did you mean '18'\? choose one of micro, 10, 18"):
        resnet("181", 32)
    with pytest.raises(SensoriumError, match="no stem 'tiny'"):
        tiny(stem="tiny")
    with pytest.raises(TypeError, match="widht"):
        resnet("18", 32, widht=3)


def test_bfloat16_autocast_stays_near_float32():
    net = tiny().train()
    x = torch.randn(8, 3, 16, 16)
    want = net.features(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = net.features(x)
    assert (got.float() - want).abs().max() <= 0.05 * want.abs().max()
