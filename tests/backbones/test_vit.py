"""ViT by itself: shapes, pooling, subsets of patches, other image sizes, names, layers, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.abilities import AttentionMaps, Encoder, MapEncoder, TokenEncoder
from sensorium.errors import SensoriumError
from sensorium.networks.vit import VIT_SIZES, ViT, auto_patch, layer_index, vit
from sensorium.parts.drop import DropPath
from sensorium.parts.moe.layer import update_biases
from sensorium.parts.patches import patchify, unpatchify
from sensorium.parts.positions.grid import resample, sincos_2d


def lively(*numbers, **more) -> ViT:
    """A ViT whose every parameter bears on the output."""
    torch.manual_seed(0)
    network = ViT(*numbers, **more)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@pytest.mark.parametrize("ability", [Encoder, TokenEncoder, MapEncoder, AttentionMaps])
def test_abilities(ability):
    assert isinstance(vit("micro", 32), ability)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("image, patch", [(28, 4), (30, 6), (33, 11), ((9, 15), 3), (6, 6)])
def test_shapes_and_pools(image, patch, registers):
    height, width = (image, image) if isinstance(image, int) else image
    h, w = height // patch, width // patch
    network = lively(image, patch, 24, 2, 3, registers=registers)
    x = torch.randn(2, 3, height, width)
    tokens = network.tokens(x)
    assert tokens.shape == (2, 1 + h * w, 24)
    torch.testing.assert_close(network.features(x), tokens[:, 0], atol=1e-5, rtol=0)
    network.pool = "mean"
    torch.testing.assert_close(network.features(x), tokens[:, 1:].mean(1), atol=1e-5, rtol=0)
    (maps,) = network.maps(x)
    assert maps.shape == (2, 24, h, w)
    torch.testing.assert_close(maps[:, :, -1, 0], tokens[:, 1 + (h - 1) * w], atol=0, rtol=0)
    looks = network.attention(x)
    assert looks.shape == (2, 3, h, w)
    assert (looks >= 0).all()
    assert (looks.sum((2, 3)) < 1).all()


def test_a_subset_is_embedded_as_in_the_whole():
    network = lively((9, 15), 3, 24, 1, 2)
    x = torch.randn(4, 3, 9, 15)
    keep = torch.rand(4, 15).argsort(1)[:, :6]
    whole = network.embed(x)
    wanted = torch.stack([row[index] for row, index in zip(whole, keep, strict=True)])
    torch.testing.assert_close(network.embed(x, keep), wanted, atol=1e-6, rtol=0)


def test_a_patch_sits_where_it_is_seen():
    """Patches are row-major: changing the pixels of one changes its embedding and no other's."""
    network = lively((8, 12), 4, 16, 1, 2)
    x = torch.zeros(1, 3, 8, 12)
    y = x.clone()
    y[0, :, 4:8, 8:12] = 1.0
    changed = (network.embed(x) != network.embed(y)).any(-1)[0]
    assert changed.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("how", ["bicubic", "antialias", "offset", "bilinear"])
def test_other_image_sizes(how):
    network = lively(32, 8, 16, 2, 2, resampling=how)
    for size in [(32, 32), (40, 24), (8, 8), (64, 48)]:
        assert network.tokens(torch.randn(1, 3, *size)).shape == (1, 1 + size[0] * size[1] // 64, 16)
    assert resample(network.pos_embed, (4, 4), (4, 4)) is network.pos_embed
    flat = torch.full((1, 17, 3), 2.5)
    torch.testing.assert_close(resample(flat, (4, 4), (7, 3), how), torch.full((1, 22, 3), 2.5))
    table = torch.randn(1, 16, 5)
    turned = resample(table.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2), (4, 4), (1, 7), how, first=0)
    torch.testing.assert_close(resample(table, (4, 4), (7, 1), how, first=0), turned, atol=1e-6, rtol=0)


def test_learned_positions_learn_at_other_sizes_and_sincos_stay():
    x = torch.randn(2, 3, 40, 24)
    for positions in ("learned", "sincos"):
        network = lively(32, 8, 16, 2, 2, positions=positions)
        network.features(x).square().sum().backward()
        gradient = network.pos_embed.grad
        assert (gradient is None) if positions == "sincos" else gradient.abs().sum() > 0
        assert network.state_dict()["pos_embed"].shape == (1, 17, 16)


def test_sincos_rows_differ():
    table = sincos_2d((3, 5), 16)
    assert table.shape == (1, 16, 16)
    assert not table[0, 0].any()
    assert len({tuple(row.tolist()) for row in table[0]}) == 16


@pytest.mark.parametrize(
    "image, patch, says",
    [(30, 4, "1, 2, 3, 5, 6, 10, 15, 30"), ((24, 36), 5, "1, 2, 3, 4, 6, 12"), (31, 4, "28x28 or 32x32")],
)
def test_an_illegal_patch_names_the_legal_ones(image, patch, says):
    with pytest.raises(SensoriumError, match=says):
        ViT(image, patch, 16, 1, 2)


def test_an_illegal_image_is_refused_when_seen():
    with pytest.raises(SensoriumError, match="patch_size 4 does not divide a 30x32 image"):
        lively(32, 4, 16, 1, 2).features(torch.zeros(1, 3, 30, 32))


@pytest.mark.parametrize(
    "more, says",
    [
        ({"pool": "max"}, "cls, mean"),
        ({"positions": "round"}, "learned, sincos, rope"),
        ({"init": "zero"}, "normal, xavier"),
    ],
)
def test_illegal_numbers(more, says):
    with pytest.raises(ValueError, match=says):
        ViT(8, 4, 16, 1, 2, **more)
    with pytest.raises(ValueError, match="heads 3"):
        ViT(8, 4, 16, 1, 3)
    with pytest.raises(TypeError):
        vit("micro", 32, widht=3)


@pytest.mark.parametrize(
    "size, patch", [(8, 2), (28, 4), (32, 4), (64, 8), (96, 12), (224, 16), (512, 16), (30, 3), ((32, 64), 4), (7, 1)]
)
def test_auto_patch(size, patch):
    assert auto_patch(size) == patch


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 600), st.integers(4, 600))
def test_auto_patch_divides_or_says_what_would(height, width):
    try:
        patch = auto_patch((height, width))
    except SensoriumError:
        with pytest.raises(SensoriumError, match="choose image_size"):
            auto_patch((height, width))
    else:
        assert height % patch == 0 == width % patch
        assert 1 <= patch <= 16
        assert height * width // patch**2 <= max(1024, height * width // 256)


def test_the_sizes_that_an_error_proposes_work():
    for size in [s for s in range(17, 400) if s % 8]:
        try:
            auto_patch(size)
        except SensoriumError as error:
            words = str(error).split("choose image_size ")[1].split(",")[0].split(" or ")
            assert all(auto_patch(int(word)) > 1 for word in words)


def test_named_sizes():
    for name, (width, depth, heads) in VIT_SIZES.items():
        assert width // heads in (64, 80)
        if width < 700:
            network = vit(name, 32)
            assert (network.dim, network.depth, network.patch_size, network.image_size) == (width, depth, 4, 32)
    with pytest.raises(SensoriumError, match="micro, tiny"):
        vit("giant", 32)


def test_layers_for_decay():
    network = ViT(8, 4, 16, 3, 2, registers=1)
    layers = network.layers_for_decay()
    assert set(layers) == set(dict(network.named_parameters()))
    assert {layers[n] for n in ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight")} == {0}
    assert [layers[f"blocks.{i}.mlp.fc1.bias"] for i in range(3)] == [1, 2, 3]
    assert layers["norm.weight"] == layer_index("head.weight", 3) == 4
    assert layer_index("backbone.blocks.1.norm1.weight", 3) == 2
    assert layer_index("decoder_blocks.1.norm1.weight", 3) == layer_index("decoder_pos_embed", 3) == 4


def test_drop_path_is_unbiased_and_silent_when_judged():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(20000, 2, 1)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert (y[:, 0] == y[:, 1]).all()
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drop.eval()(x) is x
    rates = [block.drop_path.rate for block in ViT(8, 4, 16, 3, 2, drop_path=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_patches_and_back(batch, h, w, patch):
    images = torch.randn(batch, 3, h * patch, w * patch)
    patches = patchify(images, patch)
    assert torch.equal(unpatchify(patches, (h, w), patch), images)
    assert torch.equal(patches[:, -1, -3:], images[:, :, -1, -1])  # (row, column, channel)


PARTS = [
    ("rope", ()),
    ("learned", ("gau",)),
    ("rope", ("gau", "experts")),
    ("sincos", ("geglu",)),
    ("rope", ("relu2",)),
    ("learned", ("swiglu", "layerscale")),
]


@pytest.mark.parametrize("positions, parts", PARTS, ids=str)
def test_other_parts_are_an_encoder_too(positions, parts):
    network = lively((9, 15), 3, 24, 2, 3, positions=positions, parts=parts, registers=2).double().eval()
    x = torch.randn(2, 3, 9, 15, dtype=torch.float64)
    tokens = network.tokens(x)
    torch.testing.assert_close(network.features(x), tokens[:, 0])
    network.pool = "mean"
    torch.testing.assert_close(network.features(x), tokens[:, 1:].mean(1))
    looks = network.attention(x)
    assert looks.shape == (2, 1 if "gau" in parts else 3, 3, 5)
    assert (looks >= 0).all()
    assert (looks.sum((2, 3)) < 1).all()
    network.train().features(x).square().sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("parts", [(), ("gau",)], ids=str)
def test_rotary_pictures_depend_on_distances_alone(parts):
    """A picture moved within a larger one: only distances enter, so that tokens of the same neighbors are the same."""
    network = lively(12, 3, 24, 2, 3, positions="rope", parts=parts).double()
    patches = torch.randn(1, 16, 24, dtype=torch.float64)
    at = torch.cartesian_prod(torch.arange(4), torch.arange(4))

    def block_of(places):
        x, angles = patches, network.rope.angles(places, network.blocks[0].attn.head_dim)
        for block in network.blocks:
            x = block(x, None, angles)
        return x

    torch.testing.assert_close(block_of(at), block_of(at + torch.tensor([5, 9])), atol=1e-5, rtol=0)
    assert (block_of(at) - block_of(at.flip(1))).abs().max() > 1e-4


def test_rotary_positions_want_their_grid():
    network = lively(12, 3, 24, 1, 3, positions="rope")
    with pytest.raises(ValueError, match="give the angles of their grid"):
        network.encode(torch.randn(1, 4, 24))
    assert network.tokens(torch.randn(1, 3, 6, 18)).shape == (1, 13, 24)  # another size needs no resampling


def test_biases_of_experts_move_between_steps_and_micro_batches_are_one_batch():
    x = torch.randn(4, 3, 12, 12)

    def moved(*parts: torch.Tensor) -> torch.Tensor:
        network = lively(12, 3, 24, 1, 3, parts=("experts",))
        experts = network.blocks[0].mlp.experts
        network.eval().features(x)
        update_biases(network)
        assert not experts.bias.any()  # nothing was learned
        network.train()
        for part in parts:
            network.features(part)
            assert not experts.bias.any()
        update_biases(network)
        assert (experts.bias.abs() < 1e-3 + 1e-6).all()
        assert experts.bias.any()
        kept = experts.bias.clone()
        update_biases(network)
        assert torch.equal(experts.bias, kept)
        return kept

    assert torch.equal(moved(x), moved(x[:1], x[1:]))


@pytest.mark.parametrize("parts, said", [(("flashy",), "unknown part 'flashy'"), (("geglu", "experts"), "one mlp")])
def test_parts_that_cannot_be(parts, said):
    with pytest.raises(ValueError, match=said):
        ViT(12, 3, 24, 1, 3, parts=parts)
