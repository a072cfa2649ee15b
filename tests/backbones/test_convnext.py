"""ConvNeXt: sizes, strides, small images, drop path, GRN, layers. Equality with others' code: tests/published."""

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.errors import SensoriumError
from sensorium.networks.convnext import CONVNEXT_SIZES, CONVNEXTV2_SIZES, ConvNeXt, GlobalResponseNorm, convnext
from sensorium.parts.drop import DropPath
from sensorium.recipe.backbone import CONVNEXTS, CONVNEXTV2S, NAMES
from sensorium.recipe.optim import undecayed


def tiny(**numbers):
    torch.manual_seed(0)
    net = ConvNeXt(**{"depths": (1, 1, 2), "widths": (8, 12, 16), "patch": 2, **numbers})
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


V2 = {"grn": True, "layer_scale": 0.0}


@pytest.mark.parametrize("version", [{}, V2, {"norm_first": True}], ids=["v1", "v2", "norm first"])
@pytest.mark.parametrize("height, width", [(32, 32), (33, 19), (7, 64), (1, 1)])
def test_maps_have_the_strides_and_channels_that_are_said(version, height, width):
    net = tiny(**version).eval()
    x = torch.randn(2, 3, height, width)
    maps = net.maps(x)
    assert (net.channels, net.strides, net.dim) == ((8, 12, 16), (2, 4, 8), 16)
    for m, c, s in zip(maps, net.channels, net.strides, strict=True):
        assert m.shape == (2, c, max(height, 8) // s, max(width, 8) // s)
        assert m.permute(0, 2, 3, 1).is_contiguous()
    assert net.features(x).shape == (2, net.dim)
    assert torch.equal(net(x), net.features(x))
    last = maps[-1].permute(0, 2, 3, 1)
    wanted = net.norm_pre(last).mean((1, 2)) if net.norm_first else net.norm(last.mean((1, 2)))
    assert torch.allclose(net.features(x), wanted, atol=1e-6)


def test_it_is_an_encoder_and_a_map_encoder_only():
    assert abilities_of(tiny()) == ("Encoder", "MapEncoder")


def test_images_below_the_last_stride_are_padded_and_incomplete_patches_left_out():
    net = tiny().eval()
    x = torch.randn(2, 3, 5, 11)
    padded = torch.zeros(2, 3, 8, 11)
    padded[..., :5, :] = x
    assert torch.equal(net.features(x), net.features(padded))
    y = torch.randn(2, 3, 17, 17)
    other = y.clone()
    other[..., 16, :] = 0
    assert torch.equal(net.features(y), net.features(other))


@pytest.mark.parametrize("version", [{}, V2], ids=["v1", "v2"])
def test_every_parameter_learns(version):
    net = tiny(**version).train()
    net.features(torch.randn(4, 3, 16, 16)).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_new_networks_have_the_initial_weights_of_the_papers():
    first, second = ConvNeXt((1, 1), (32, 64)), ConvNeXt((1, 1), (32, 64), **V2)
    assert torch.equal(first.state_dict()["stages.1.blocks.0.ls.gamma"], torch.full((64,), 1e-6))
    assert {n.rpartition(".")[0] for n in second.state_dict()} - {n.rpartition(".")[0] for n in first.state_dict()} == {
        f"stages.{s}.blocks.0.grn" for s in (0, 1)
    }
    x = torch.randn(2, 5, 5, 8)
    assert torch.equal(GlobalResponseNorm(8)(x), x)
    for module in second.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert module.bias is not None
            assert not module.bias.any()


def test_micro_begins_with_branches_that_count():
    net = convnext("micro", 32)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.std().item() == pytest.approx(module.weight[0].numel() ** -0.5, rel=0.15)
    assert torch.equal(net.state_dict()["stages.1.blocks.0.ls.gamma"], torch.ones(64))
    with pytest.raises(ValueError, match="init must be one of normal, lecun, got 'xavier'"):
        convnext("micro", 32, init="xavier")


def test_global_response_norm_is_its_definition_and_has_a_gradient_at_zero():
    torch.manual_seed(0)
    norm = GlobalResponseNorm(6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    norm = norm.double()
    length = x.flatten(1, 2).norm(dim=1)
    relative = length / (length.mean(dim=1, keepdim=True) + 1e-6)
    wanted = norm.weight * x * relative[:, None, None] + norm.bias + x
    assert (norm(x) - wanted).abs().max() <= 1e-12
    x[..., 2] = 0  # a channel that is nowhere
    x.requires_grad_()
    norm(x).square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_drop_path_rises_to_its_rate_and_is_off_in_evaluation():
    net = tiny(drop_path=0.3)
    rates = [part.rate for part in net.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    x = torch.randn(8, 3, 16, 16)
    assert torch.equal(net.eval().features(x), tiny().eval().features(x))
    torch.manual_seed(0)
    first, second = net.train().features(x), net.features(x)
    assert not torch.equal(first, second)


def test_layers_are_those_of_the_papers_fine_tuning():
    """12 for all but the tiny one, whose third stage has 9 blocks; groups of three (the authors' ``get_num_layer``)."""
    with torch.device("meta"):
        deep, shallow = convnext("base", 224), convnext("tiny", 224)
    for net, last in ((deep, 12), (shallow, 6)):
        layers = net.layers_for_decay()
        assert layers.keys() == dict(net.named_parameters()).keys()
        assert {layers[f"stem.{i}.weight"] for i in (0, 1)} == {0}
        assert (layers["stages.0.blocks.2.fc1.weight"], layers["stages.1.downsample.1.bias"]) == (1, 2)
        assert [layers[f"stages.2.blocks.{i}.ls.gamma"] for i in (0, 2, 3, 8)] == [3, 3, 4, 5]
        assert (
            layers["stages.3.downsample.0.bias"] == layers["stages.3.blocks.2.fc2.bias"] == layers["norm.bias"] == last
        )


def test_what_is_not_decayed():
    kept = undecayed(tiny(**V2)) | undecayed(tiny())
    assert {"stages.0.blocks.0.grn.weight", "stages.0.blocks.0.ls.gamma", "norm.weight", "stem.0.bias"} <= kept
    assert not {name for name in kept if name.endswith(("fc1.weight", "dwconv.weight", "stem.0.weight"))}


def test_named_sizes():
    assert set(CONVNEXTS + CONVNEXTV2S) < set(NAMES)
    for grn, sizes in ((False, CONVNEXT_SIZES), (True, CONVNEXTV2_SIZES)):
        for size in sizes:
            with torch.device("meta"):
                side = 32 if size == "micro" else 64
                small, large = convnext(size, side - 1, grn=grn), convnext(size, side, grn=grn)
            assert (small.patch, large.patch) == (2, 4)
            assert side // large.strides[-1] == 2
            assert small.grn == grn
            assert (small.layer_scale > 0) != grn
    with torch.device("meta"):  # of the papers' tables, in millions, without classifiers
        for size, grn, millions in (
            ("tiny", False, 27.8),
            ("xlarge", False, 348.1),
            ("atto", True, 3.4),
            ("huge", True, 657.5),
        ):
            count = sum(p.numel() for p in convnext(size, 224, grn=grn).parameters())
            assert count / 1e6 == pytest.approx(millions, abs=0.1), size


def test_mistakes_are_told():
    with pytest.raises(SensoriumError, match=r"no size 'tine'; did you mean 'tiny'\? choose one of micro, tiny"):
        convnext("tine", 32)
    with pytest.raises(ValueError, match="2 widths for stages of"):
        ConvNeXt((1,), (8, 8))
    with pytest.raises(TypeError, match="widht"):
        convnext("tiny", 32, widht=3)


@pytest.mark.parametrize("version", [{}, V2], ids=["v1", "v2"])
def test_other_precisions_stay_near_float32(version):
    net = tiny(**version).train()
    x = torch.randn(8, 3, 16, 16)
    want = net.features(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = net.features(x)
    assert (got.float() - want).abs().max() <= 0.05 * want.abs().max()
    assert (net.double().features(x.double()) - want).abs().max() <= 1e-5
