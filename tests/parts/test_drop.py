"""Patch dropout: how many patches are kept, which, and by which networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.eva import EVA
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.siglip import SigLIPVision
from sensorium.networks.vit import ViT
from sensorium.parts.drop import PatchDropout, patch_dropout_

SHAPE = ((12, 20), 4, 24, 2, 3)  # 15 patches
NETWORKS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViT(*SHAPE, registers=2),
    "vit of means": lambda: ViT(*SHAPE, pool="mean", positions="sincos"),
    "vit with fc_norm": lambda: ViT(*SHAPE, pool="fc_norm", registers=1),
    "mean_vit": lambda: MeanViT(*SHAPE, registers=1),
    "clip": lambda: CLIPVision(*SHAPE),
    "siglip": lambda: SigLIPVision(*SHAPE),
    "eva without rotations": lambda: EVA(*SHAPE, reference=0),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Any:
    """Every parameter bears on the output."""
    torch.manual_seed(0)
    made = NETWORKS[request.param]().train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def kept(seed: int, count: int, patches: int, of: int) -> Tensor:
    """The patches that a network keeps after this seed: those of the smallest of as many draws."""
    torch.manual_seed(seed)
    return torch.rand(count, patches).argsort(1)[:, :of]


def seeded(network: Any, images: Tensor, seed: int = 5) -> Tensor:
    torch.manual_seed(seed)
    return network.features(images)


@given(st.integers(1, 40), st.floats(0, 0.99))
def test_how_many_patches_are_kept(patches: int, rate: float) -> None:
    drop = PatchDropout(rate)
    numbers = torch.arange(2 * patches, dtype=torch.float32).view(2, patches, 1)
    found = drop(numbers)
    assert found.shape == (2, max(1, int(patches * (1 - rate))) if rate else patches, 1)
    for one, own in zip(found, numbers, strict=True):  # each patch once, of its own picture
        assert len(set(one.flatten().tolist())) == len(one)
        assert set(one.flatten().tolist()) <= set(own.flatten().tolist())
    assert drop.eval()(numbers) is numbers


def test_every_patch_is_kept_as_often_as_others_and_each_picture_keeps_its_own() -> None:
    torch.manual_seed(0)
    numbers = torch.arange(10.0).expand(4000, 10)[..., None]
    found = PatchDropout(0.7)(numbers)[..., 0]
    counts = torch.bincount(found.flatten().long(), minlength=10)
    assert found.shape == (4000, 3)
    assert (counts - 1200).abs().max() < 5 * (4000 * 0.3 * 0.7) ** 0.5
    assert len({tuple(sorted(row.tolist())) for row in found[:50]}) > 20


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="patch dropout rate"):
        PatchDropout(rate)
    with pytest.raises(ValueError, match="patch dropout rate"):
        patch_dropout_(nn.Identity(), rate)


def test_at_a_rate_of_0_outputs_and_gradients_are_those_without(network: Any) -> None:
    found = []
    for part in (PatchDropout(0.0), nn.Identity()):
        network.patch_drop = part
        state = torch.get_rng_state()
        out = seeded(network, pictures())
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
        network.zero_grad()
        torch.set_rng_state(state)
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_features_are_those_of_the_kept_patches_alone(network: Any) -> None:
    """By the way that masking goes: ``embed`` with indices, then ``encode``; the class token takes part."""
    patch_dropout_(network, 0.6)
    images, keep = pictures(), kept(5, 3, 15, 6)
    encoded = network.encode(network.embed(images, keep))
    pooled = encoded[:, 0]
    if isinstance(network, ViT) and network.pool != "cls":
        pooled = encoded[:, 1:].mean(1)
    if getattr(network, "pool", "") == "fc_norm":
        pooled = network.norm(encoded[:, 1:].mean(1))
    torch.testing.assert_close(seeded(network, images), pooled, atol=1e-5, rtol=0)


def test_dropped_patches_change_nothing_and_kept_ones_do(network: Any) -> None:
    patch_dropout_(network, 0.6)
    images, keep = pictures(1), kept(5, 1, 15, 6)[0].tolist()
    before = seeded(network, images)
    for patch in range(15):
        changed = images.clone()
        row, column = 4 * (patch // 5), 4 * (patch % 5)
        changed[:, :, row : row + 4, column : column + 4] += 1
        assert torch.equal(seeded(network, changed), before) == (patch not in keep), patch


def test_gradients_reach_the_class_token_and_no_dropped_position(network: Any) -> None:
    patch_dropout_(network, 0.6)
    keep = set(kept(5, 1, 15, 6)[0].tolist())
    seeded(network, pictures(1)).square().sum().backward()
    if getattr(network, "cls_token", None) is not None and getattr(network, "pool", "cls") == "cls":
        assert network.cls_token.grad.abs().sum() > 0
    if network.pos_embed.requires_grad:
        moved = network.pos_embed.grad[0, -15:].abs().sum(1) > 0
        assert {i for i, one in enumerate(moved) if one} == keep


def test_while_judging_all_patches_are_seen(network: Any) -> None:
    images = pictures()
    whole = network.eval().features(images)
    patch_dropout_(network, 0.6)
    assert torch.equal(network.features(images), whole)
    assert not torch.allclose(network.train().features(images), whole)


def test_equal_seeds_keep_the_same_and_a_second_pass_others(network: Any) -> None:
    patch_dropout_(network, 0.6)
    images = pictures()
    first, second = seeded(network, images), network.features(images)
    assert torch.equal(seeded(network, images), first)
    assert not torch.allclose(first, second)


def test_other_sizes_keep_their_part(network: Any) -> None:
    patch_dropout_(network, 0.5)
    lengths: list[int] = []
    handle = network.blocks[0].register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    network.eval().features(torch.randn(2, 3, 8, 8))
    before = lengths.pop() - 4
    for side, patches in ((4, 1), (8, 4), (12, 9), (20, 25)):
        network.train().features(torch.randn(2, 3, side, side))
        assert lengths.pop() == before + max(1, patches // 2)
    handle.remove()


@pytest.mark.parametrize(
    "made",
    [lambda: ViT(*SHAPE, positions="rope"), lambda: ViT(*SHAPE, parts=("gau",)), lambda: EVA(*SHAPE)],
    ids=["rope", "gau", "eva"],
)
def test_networks_that_need_the_whole_grid_drop_nothing(made: Callable[[], Any]) -> None:
    network = made().train()
    patch_dropout_(network, 0.5)
    assert not [part for part in network.modules() if isinstance(part, PatchDropout)]
    assert torch.equal(network.features(pictures()), network.eval().features(pictures()))
