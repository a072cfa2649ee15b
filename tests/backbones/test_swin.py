"""Swin and Swin V2: sizes, windows and shifts, odd images, drop path, layers. Equality with others' code: tests/published."""

import math

import pytest
import torch
from torch import nn

from sensorium.abilities import abilities_of
from sensorium.errors import SensoriumError
from sensorium.networks.swin import SWIN_SIZES, Swin, clipped, neighbors, swin
from sensorium.networks.swinv2 import SWINV2_SIZES, PostNormBlock, SwinV2, swinv2
from sensorium.parts.attention.window import log_distances
from sensorium.parts.drop import DropPath
from sensorium.recipe.backbone import NAMES, SWINS, SWINV2S
from sensorium.recipe.optim import depths, undecayed

BOTH = pytest.mark.parametrize("kind", [Swin, SwinV2])


def tiny(kind=Swin, **numbers):
    torch.manual_seed(0)
    net = kind(**{"depths": (2, 2, 1), "embed_dim": 8, "heads": (1, 2, 4), "windows": (3, 3, 2), "patch": 2, **numbers})
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


@BOTH
@pytest.mark.parametrize("height, width", [(32, 32), (33, 19), (7, 64), (1, 1)])
def test_maps_have_the_strides_and_channels_that_are_said(kind, height, width):
    net = tiny(kind).eval()
    x = torch.randn(2, 3, height, width)
    maps = net.maps(x)
    assert (net.channels, net.strides, net.dim) == ((8, 16, 32), (2, 4, 8), 32)
    for m, c, s in zip(maps, net.channels, net.strides, strict=True):
        assert m.shape == (2, c, math.ceil(height / s), math.ceil(width / s))
    assert torch.equal(net(x), net.features(x))
    assert torch.allclose(net.features(x), net.norm(maps[-1].permute(0, 2, 3, 1)).mean((1, 2)), atol=1e-6)


@BOTH
def test_it_encodes_images_their_maps_and_masked_ones_only(kind):
    assert abilities_of(tiny(kind)) == ("Encoder", "MapEncoder", "MaskedEncoder")


@BOTH
def test_an_incomplete_patch_is_padded_with_zeros(kind):
    net = tiny(kind).eval()
    x = torch.randn(2, 3, 17, 22)
    padded = torch.zeros(2, 3, 18, 22)
    padded[..., :17, :] = x
    assert torch.equal(net.features(x), net.features(padded))


@BOTH
def test_a_pixel_is_seen_through_shifted_windows_only_and_seams_are_masked(kind):
    """One stage, 6x6 tokens in windows of 3: the second block joins what the first kept apart, but not across the edge."""
    for depth, far, seam in ((1, False, False), (2, True, False)):
        net = tiny(kind, depths=(depth,), heads=(1,), windows=(3,)).eval()
        x = torch.randn(1, 3, 12, 12, requires_grad=True)
        net.maps(x)[0][0, :, 2, 2].sum().backward()
        assert x.grad is not None
        seen = x.grad[0].abs().sum(0).unflatten(0, (6, 2)).unflatten(2, (6, 2)).sum((1, 3)) > 0  # tokens [6, 6]
        assert bool(seen[0, 0])
        assert bool(seen[3, 3]) == far
        net.zero_grad()
        x.grad = None
        net.maps(x)[0][0, :, 0, 0].sum().backward()
        assert bool((x.grad[0, :, -2:, -2:] != 0).any()) == seam


@BOTH
def test_every_parameter_learns(kind):
    net = tiny(kind).train()
    net.features(torch.randn(4, 3, 16, 16)).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_merging_takes_neighbors_column_by_column():
    x = torch.arange(6.0).view(1, 2, 3, 1)
    assert torch.equal(neighbors(x)[0], torch.tensor([[[0.0, 3, 1, 4], [2, 5, 0, 0]]]))


def test_a_new_network_of_the_second_version_is_its_merging():
    net = SwinV2((1, 1), 8, (1, 1), (2, 2))
    for block in (one for one in net.modules() if isinstance(one, PostNormBlock)):
        x = torch.randn(1, 4, 4, block.norm1.normalized_shape[0])
        assert torch.equal(block(x), x)
    micro = swinv2("micro", 32)
    assert all(bool((one.norm1.weight == 1).all()) for one in micro.modules() if isinstance(one, PostNormBlock))


def test_micro_begins_with_branches_that_count():
    for module in swin("micro", 32).modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(module.in_features**-0.5, rel=0.15)
    for module in Swin((1,), 64, (2,), (4,)).modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_distances_on_a_logarithmic_scale_go_to_eight_at_the_windows_edge():
    ends = log_distances((5, 5), (5, 5))
    assert ends.shape == (81, 2)
    assert torch.allclose(ends[-1], torch.full((2,), math.log2(9) / 3))
    assert torch.equal(ends[0], -ends[-1])
    assert torch.equal(ends[40], torch.zeros(2))
    assert torch.allclose(log_distances((5, 5), (3, 3))[-1], torch.full((2,), math.log2(17) / 3))
    assert torch.isfinite(log_distances((1, 1), (1, 1))).all()


def test_drop_path_rises_to_its_rate_and_is_off_in_evaluation():
    net = tiny(drop_path=0.4)
    rates = [part.rate for part in net.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    x = torch.randn(8, 3, 16, 16)
    assert torch.equal(net.eval().features(x), tiny().eval().features(x))
    torch.manual_seed(0)
    assert not torch.equal(net.train().features(x), net.features(x))


def authors_layer(name: str, stages: tuple[int, ...]) -> int:
    """``get_swin_layer`` of the authors' optimizer.py, for their names."""
    if name.startswith("patch_embed"):
        return 0
    if name.startswith("layers"):
        _, layer, _, block = name.split(".")[:4]
        if block in ("reduction", "norm"):
            return sum(stages[: int(layer) + 1])
        return sum(stages[: int(layer)]) + int(block) + 1
    return sum(stages) + 1


@BOTH
def test_layers_are_those_of_the_authors_fine_tuning(kind):
    from sensorium.networks.formats import swin as first
    from sensorium.networks.formats import swinv2 as second

    net = tiny(kind)
    layers, form = net.layers_for_decay(), (second if kind is SwinV2 else first).AUTHORS
    assert layers.keys() == dict(net.named_parameters()).keys()
    for name, layer in layers.items():
        assert layer == authors_layer(form.theirs(name, net)[0], net.depths), name
    assert depths(net)["head"] == layers["norm.weight"] == 6


def test_what_is_not_decayed():
    first, second = undecayed(tiny()), undecayed(tiny(SwinV2))
    assert "stages.0.blocks.0.attn.bias_table" in first
    assert {
        f"stages.0.blocks.0.attn.{name}" for name in ("logit_scale", "mlp.0.weight", "mlp.2.weight", "q_bias")
    } < second
    assert not {name for name in first | second if name.endswith(("fc1.weight", "qkv.weight", "reduction.weight"))}


def test_named_sizes():
    assert set(SWINS + SWINV2S) < set(NAMES)
    assert (swin("micro", 32).patch, swin("micro", 32).windows) == (2, (4, 4, 4))
    with torch.device("meta"):
        for make, sizes in ((swin, SWIN_SIZES), (swinv2, SWINV2_SIZES)):
            for size in sizes:
                for side in (8, 28, 32, 33, 64, 224, 256):
                    net = make(size, side)
                    assert all(w <= math.ceil(side / s) for w, s in zip(net.windows, net.strides, strict=True))
        tiny_, large = swin("tiny", 224), swin("large", 224)
        assert (tiny_.patch, tiny_.windows, tiny_.heads) == (4, (7, 7, 7, 7), (3, 6, 12, 24))
        assert swin("base", 224).heads == (4, 8, 16, 32)
        assert swinv2("tiny", 256).windows == (8, 8, 8, 8)
        # of the papers' tables, in millions, without classifiers
        for net, millions in ((tiny_, 27.5), (swin("small", 224), 48.8), (swin("base", 224), 86.7), (large, 195.0)):
            assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert clipped(192, 4, 12, 4) == (12, 12, 12, 6)


def test_mistakes_are_told():
    with pytest.raises(SensoriumError, match=r"no size 'tine'; did you mean 'tiny'\? choose one of micro, tiny"):
        swin("tine", 32)
    with pytest.raises(ValueError, match=r"2 heads and windows of \(3, 3, 2\) for stages of \(2, 2, 1\)"):
        tiny(heads=(1, 2))
    with pytest.raises(ValueError, match="at most 64 tokens"):
        tiny(windows=(3, 65, 2))
    with pytest.raises(ValueError, match=r"references of \(3,\) for windows of"):
        tiny(SwinV2, references=(3, 3, 2)[:1])
    with pytest.raises(ValueError, match="init must be one of normal, lecun, got 'xavier'"):
        swin("micro", 32, init="xavier")


@BOTH
def test_other_precisions_stay_near_float32(kind):
    net = tiny(kind).train()
    x = torch.randn(8, 3, 16, 16)
    want = net.features(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = net.features(x)
    assert (got.float() - want).abs().max() <= 0.05 * want.abs().max()
    assert (net.double().features(x.double()) - want).abs().max() <= 1e-5
