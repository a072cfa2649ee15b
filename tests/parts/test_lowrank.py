"""LoRA: a plain reference, merging, and what is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.lowrank import LowRank, is_adapted, low_rank_, merged


def stirred(network: nn.Module) -> nn.Module:
    """With products that are not zero."""
    for module in network.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.b, std=0.1)
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inputs, outputs, rank, alpha", [(5, 7, 2, 4.0), (16, 3, 8, 1.0), (1, 1, 1, 16.0)])
def test_equal_to_the_two_paths_of_the_paper(inputs, outputs, rank, alpha, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, dtype=dtype)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    stirred(low_rank_(layer, rank, alpha))
    part = layer.parametrizations.weight[0]
    x = torch.randn(4, inputs, dtype=dtype, requires_grad=True)
    a, b = (p.detach().clone().requires_grad_(True) for p in (part.a, part.b))
    used = min(rank, inputs, outputs)
    want = F.linear(x, weight, bias) + alpha / used * F.linear(F.linear(x, a), b)  # h = W_0 x + (alpha / r) B A x
    up = torch.randn_like(want)
    gradients = torch.autograd.grad(want, (x, a, b), up)
    found = torch.autograd.grad(layer(x), (x, part.a, part.b), up)
    assert (layer(x) - want).abs().max() <= 1e-5
    assert max((one - other).abs().max() for one, other in zip(found, gradients, strict=True)) <= 1e-4


NETWORKS = {
    "vit": lambda: ViT(16, 4, 24, 2, 2),
    "vit, experts and rope": lambda: ViT(16, 4, 24, 2, 2, positions="rope", parts=("gau", "swiglu", "layerscale")),
    "resnet": lambda: ResNet((1, 1), 8, stem="small"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_equals_unmerged(name):
    torch.manual_seed(0)
    plain = NETWORKS[name]().eval()
    images = torch.randn(3, 3, 16, 16)
    before = plain.features(images)
    network = low_rank_(copy.deepcopy(plain), 4, 8.0)
    assert (network.features(images) - before).abs().max() <= 1e-6  # B is zero
    adapted = stirred(network).features(images)
    assert (adapted - before).abs().max() > 1e-3
    one = merged(network)
    assert (one.features(images) - adapted).abs().max() <= 1e-5
    assert set(one.state_dict()) == set(plain.state_dict())
    assert (network.features(images) - adapted).abs().max() == 0
    assert is_adapted(network)
    assert not is_adapted(one)
    assert merged(one) is one
    assert all(p.requires_grad for p in one.parameters())


def test_only_the_products_are_trained_and_a_copy_is_apart():
    network = low_rank_(ViT(16, 4, 24, 2, 2), 4, 8.0)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {
        f"{place}.parametrizations.weight.0.{one}"
        for place in [
            "patch_embed.proj",
            *(f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        ]
        for one in "ab"
    }
    other = copy.deepcopy(network)
    stirred(other)
    images = torch.randn(2, 3, 16, 16)
    assert (network.features(images) - other.features(images)).abs().max() > 1e-3


def test_a_rank_below_one_is_an_error():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        low_rank_(nn.Linear(3, 3), 0, 1.0)
