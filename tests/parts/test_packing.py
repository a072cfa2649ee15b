"""Packed images: each as if it were alone, whatever stands beside it, and the same numbers as timm and transformers give."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.parts.attention.exact import naive
from sensorium.parts.block import Block
from sensorium.parts.packing import (
    Factorised,
    Packed,
    PackedViT,
    Resampled,
    drop,
    first_fit,
    images_of,
    pack,
    packed_block,
    pool,
    unpack,
)
from sensorium.parts.patches import PatchEmbed, patchify
from sensorium.parts.positions.turning import Rotary2D

WIDTH, HEADS, P = 24, 3, 3
GRIDS = ((2, 3), (1, 1), (5, 2), (4, 4), (1, 7))
POSITIONS: dict[str, Callable[[], dict]] = {
    "none": dict,
    "resampled": lambda: {"absolute": Resampled(WIDTH, (4, 3), std=1.0)},
    "antialiased": lambda: {"absolute": Resampled(WIDTH, (4, 4), antialias=True, std=1.0)},
    "factorised": lambda: {"absolute": Factorised(WIDTH, (5, 7), std=1.0)},
    "fractional": lambda: {"absolute": Factorised(WIDTH, (4, 3), fractional=True, std=1.0)},
    "rotary": lambda: {"rotary": Rotary2D(100.0)},
    "moonvit": lambda: {"absolute": Resampled(WIDTH, (3, 3), std=1.0), "rotary": Rotary2D()},
}


def spread(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def model(positions: str, **more) -> PackedViT:
    torch.manual_seed(0)
    made = PackedViT(P, WIDTH, 2, HEADS, **POSITIONS[positions](), **more)
    spread(made)
    return made


def pictures(grids=GRIDS, seed: int = 1) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(3, h * P, w * P, generator=make) for h, w in grids]


def close(found, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_patches_and_positions() -> None:
    images = pictures()
    packed = pack(images, P)
    assert packed.lengths == tuple(h * w for h, w in GRIDS)
    assert packed.grids == GRIDS
    assert packed.at[:6].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    embed = PatchEmbed(P, WIDTH)
    for image, patches in zip(images, unpack(packed.patches, packed.lengths), strict=True):
        expected = patchify(image[None], P)[0].unflatten(1, (P * P, 3)).mT.flatten(1)
        torch.testing.assert_close(patches, expected, atol=0, rtol=0)
        close(F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias), embed(image[None])[0])
    for back, image in zip(images_of(packed, P), images, strict=True):
        assert torch.equal(back, image)


def test_an_image_that_does_not_fit_is_named() -> None:
    with pytest.raises(SensoriumError, match=r"image 2: patch_size 3 does not divide a 7x9 image"):
        pack([*pictures()[:2], torch.zeros(3, 7, 9)], P)
    with pytest.raises(ValueError, match="no image"):
        pack([], P)
    with pytest.raises(SensoriumError, match="image 4 has 1x7 patches, but positions cover 5x6"):
        Factorised(WIDTH, (5, 6))(pack(pictures(), P))


@pytest.mark.parametrize("most", [16, 17, 40])
def test_first_fit(most: int) -> None:
    lengths = torch.randint(1, 17, (50,), generator=torch.Generator().manual_seed(most)).tolist()
    rows = first_fit(lengths, most)
    assert sorted(i for row in rows for i in row) == list(range(50))
    assert all(sum(lengths[i] for i in row) <= most for row in rows)
    assert all(a < b for row in rows for a, b in pairwise(row))
    for number, row in enumerate(rows):
        for i in row:  # no earlier row had room when the image came
            for earlier in rows[:number]:
                assert sum(lengths[j] for j in earlier if j < i) + lengths[i] > most
    with pytest.raises(SensoriumError, match="image 1 has 9 patches, but a row holds 8"):
        first_fit([8, 9], 8)


@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_is_each_alone(positions: str) -> None:
    net = model(positions)
    images = [image.requires_grad_() for image in pictures()]
    weights = list(torch.randn(len(GRIDS), WIDTH, generator=torch.Generator().manual_seed(2)))
    wanted = [*images, *net.parameters()]

    packed = pack(images, P)
    tokens = net(packed)
    pooled = net.features(images)
    found = torch.autograd.grad((pooled * torch.stack(weights)).sum(), wanted)
    alone = [net(pack([image], P)) for image in images]
    features = [net.features([image])[0] for image in images]
    expected = torch.autograd.grad((torch.stack(features) * torch.stack(weights)).sum(), wanted)

    close(tokens, torch.cat(alone, dim=1))
    close(pooled, torch.stack(features))
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-4)
    same_size = net.features(torch.stack([images[0], images[0].flip(2)]))
    close(same_size[0], features[0])


@pytest.mark.parametrize("positions", ["resampled", "factorised", "moonvit"])
def test_order_does_not_matter(positions: str) -> None:
    net, images, order = model(positions), pictures(), [3, 0, 4, 2, 1]
    close(net.features([images[i] for i in order]), net.features(images)[order])


def test_no_patch_sees_another_image() -> None:
    net, packed = model("moonvit"), pack(pictures(GRIDS[:3]), P)
    of = torch.arange(3).repeat_interleave(torch.tensor(packed.lengths))
    jacobian = torch.autograd.functional.jacobian(lambda patches: net(packed._replace(patches=patches)), packed.patches)
    seen = jacobian[0, :, :, 0].abs().amax(dim=(1, 3))  # type: ignore[index]
    assert torch.equal(seen > 0, of[:, None] == of)


def test_a_block_is_one_behind_a_block_diagonal_mask() -> None:
    torch.manual_seed(3)
    block, lengths = Block(WIDTH, HEADS), (4, 1, 6)
    spread(block)
    x = torch.randn(1, 11, WIDTH)
    of = torch.arange(3).repeat_interleave(torch.tensor(lengths))

    def masked(q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
        return naive(q, k, v, mask=of[:, None] == of)

    found = packed_block(block, x, lengths)
    close(found, packed_block(block, x, lengths, attend=masked))
    close(torch.cat([block(part[None]) for part in unpack(x, lengths)], dim=1), found)


def test_stochastic_depth_leaves_out_whole_images() -> None:
    torch.manual_seed(4)
    block, lengths = Block(WIDTH, HEADS, drop_path=0.5), (4, 1, 6, 2, 3, 2, 5, 1, 1, 3, 2, 4)
    spread(block)
    nn.init.zeros_(block.mlp.fc2.weight)  # what is left to see is attention's branch
    nn.init.zeros_(block.mlp.fc2.bias)
    x = torch.randn(1, sum(lengths), WIDTH)
    whole, thinned = (unpack(packed_block(block.train(how), x, lengths) - x, lengths) for how in (False, True))
    left_out = [not part.any() for part in thinned]
    assert 0 < sum(left_out) < len(lengths)
    for part, every, out in zip(thinned, whole, left_out, strict=True):
        close(part, every * (0 if out else 2))


@pytest.mark.parametrize("positions", ["resampled", "factorised", "fractional", "moonvit"])
def test_dropping_keeps_positions(positions: str) -> None:
    net, images, shares = model(positions), pictures(), (0.5, 1.0, 0.3, 0.0, 1.0)
    packed = pack(images, P)
    fewer = drop(packed, shares, torch.Generator().manual_seed(5))
    assert fewer.lengths == (3, 1, 7, 16, 1)
    again = drop(packed, shares, torch.Generator().manual_seed(5))
    assert torch.equal(fewer.at, again.at)
    if net.absolute is not None:
        every = unpack(net.absolute(packed)[None], packed.lengths)
        some = unpack(net.absolute(fewer)[None], fewer.lengths)
    for i, ((_, width), at) in enumerate(fewer.each()):
        index = at[:, 0] * width + at[:, 1]
        assert torch.equal(index, index.unique())  # sorted, each once
        whole = unpack(packed.patches, packed.lengths)[i]
        assert torch.equal(unpack(fewer.patches, fewer.lengths)[i], whole[index])
        if net.absolute is not None:
            assert torch.equal(some[i], every[i][index])
        alone = Packed(whole[None, index], at, (len(at),), (fewer.grids[i],))
        close(unpack(net(fewer), fewer.lengths)[i], net(alone)[0])
    black = images_of(fewer, P)[0].unfold(1, P, P).unfold(2, P, P).abs().amax(dim=(0, 3, 4))
    assert (black == 0).sum() == 3
    with pytest.raises(ValueError, match="5 fractions from 0 to 1"):
        drop(packed, (0.5,))


def test_pooling_in_bfloat16() -> None:
    x = torch.randn(1, 600, 4) + 3
    found = pool(x.bfloat16(), (512, 88))
    expected = torch.stack([part.mean(0) for part in x.bfloat16().float()[0].split([512, 88])]).bfloat16()
    assert torch.equal(found, expected)
    net = model("moonvit")
    exact = net.features(pictures())
    rough = net.bfloat16().features([image.bfloat16() for image in pictures()])
    close(rough.float(), exact, 0.15)


def test_resampling_a_table_to_its_own_grid_gives_the_table() -> None:
    learned = Resampled(WIDTH, (4, 4), std=1.0)
    assert torch.equal(learned(pack(pictures([(4, 4)]), P)), learned.table.flatten(0, 1))
    stretched = Factorised(WIDTH, (4, 4), fractional=True, std=1.0)
    packed = pack(pictures([(4, 4)]), P)
    close(stretched(packed), (stretched.rows[:, None] + stretched.columns).flatten(0, 1))


@pytest.mark.parametrize("kind", ["learned", "factorized"])
def test_equals_timms_naflexvit(kind: str) -> None:
    naflex = pytest.importorskip("timm.models.naflexvit")
    torch.manual_seed(6)
    cfg = naflex.NaFlexVitCfg(
        patch_size=P, embed_dim=WIDTH, depth=2, num_heads=HEADS, pos_embed=kind, pos_embed_grid_size=(4, 3),
        global_pool="avg", fc_norm=False,
    )  # fmt: skip
    theirs = naflex.NaFlexVit(cfg, num_classes=0).eval()
    spread(theirs)
    weights = dict(theirs.named_parameters())
    absolute = (
        Resampled(WIDTH, (4, 3), antialias=True) if kind == "learned" else Factorised(WIDTH, (4, 3), fractional=True)
    )
    ours = PackedViT(P, WIDTH, 2, HEADS, absolute=absolute)
    proj = weights["embeds.proj.weight"].unflatten(1, (P, P, 3)).permute(0, 3, 1, 2)
    names = {"patch_embed.proj.weight": proj, "patch_embed.proj.bias": weights["embeds.proj.bias"]}
    if kind == "learned":
        names["absolute.table"] = weights["embeds.pos_embed"][0]
    else:
        names |= {
            "absolute.rows": weights["embeds.pos_embed_y"][0],
            "absolute.columns": weights["embeds.pos_embed_x"][0],
        }
    names |= {n: v for n, v in weights.items() if n.startswith(("blocks.", "norm."))}
    ours.load_state_dict({name: value.detach() for name, value in names.items()})

    images = [image.requires_grad_() for image in pictures()]
    longest = max(h * w for h, w in GRIDS)
    patches = [patchify(image[None], P)[0] for image in images]
    patches = [F.pad(one, (0, 0, 0, longest - len(one))) for one in patches]
    packed = pack(images, P)
    at = [F.pad(one, (0, 0, 0, longest - len(one))) for one in packed.at.split(packed.lengths)]
    valid = torch.stack([torch.arange(longest) < h * w for h, w in GRIDS])
    given = {"patches": torch.stack(patches), "patch_coord": torch.stack(at), "patch_valid": valid}
    expected = theirs(given)
    found = ours.features(images)
    close(found, expected)
    weight = torch.randn(found.shape)
    asked = [*images, weights["blocks.0.attn.qkv.weight"], weights["embeds.pos_embed" + "_y" * (kind != "learned")]]
    place = absolute.table if isinstance(absolute, Resampled) else absolute.rows
    mine = [*images, dict(ours.named_parameters())["blocks.0.attn.qkv.weight"], place]
    for a, b in zip(
        torch.autograd.grad(found, mine, weight), torch.autograd.grad(expected, asked, weight), strict=True
    ):
        close(a, b.reshape(a.shape), 1e-4)


def test_equals_transformers_moonvit() -> None:
    """Its rotary pairs are half a head apart, columns and rows in turn; ours a quarter apart, rows first."""
    module = pytest.importorskip("transformers.models.kimi_k25.modeling_kimi_k25")
    torch.manual_seed(7)
    d = WIDTH // 2
    config = module.Kimi_K25VisionConfig(
        patch_size=P, pos_emb_height=4, pos_emb_width=4, num_attention_heads=2, num_hidden_layers=2, hidden_size=WIDTH,
        intermediate_size=2 * WIDTH, hidden_act="gelu", merge_kernel_size=(1, 1),
    )  # fmt: skip
    theirs = module.Kimi_K25VisionModel(config).eval()
    spread(theirs)
    j = torch.arange(d // 4)
    order = torch.cat([2 * j + 1, 2 * j + 1 + d // 2, 2 * j, 2 * j + d // 2])
    state = dict(theirs.named_parameters())
    names: dict[str, Tensor] = {"absolute.table": state.pop("patch_embed.pos_emb.position_embeddings")}
    for name, value in state.items():
        layer, _, part = name.partition(".q_proj.")
        if part:
            q, k = (state[f"{layer}.{one}_proj.{part}"].unflatten(0, (2, d))[:, order].flatten(0, 1) for one in "qk")
            value = torch.cat([q, k, state[f"{layer}.v_proj.{part}"]])
            name = f"{layer}.qkv.{part}"
        if "k_proj" not in name and "v_proj" not in name:
            names[name.replace("layers.", "blocks.").replace("final_layernorm", "norm")] = value
    ours = PackedViT(
        P, WIDTH, 2, 2, absolute=Resampled(WIDTH, (4, 4)), rotary=Rotary2D(config.rope_parameters["rope_theta"]),
        mlp_ratio=2, eps=1e-5,
    )  # fmt: skip
    ours.load_state_dict({name: value.detach() for name, value in names.items()})

    packed = pack([image.requires_grad_() for image in pictures()], P)
    patches = packed.patches.detach().requires_grad_()
    sizes = torch.tensor([[1, h, w] for h, w in GRIDS])
    expected = theirs(patches[0].unflatten(1, (3, P, P)), grid_thw=sizes).last_hidden_state
    found = ours(packed._replace(patches=patches))[0]
    close(found, expected)
    weight = torch.randn(found.shape)
    table = theirs.patch_embed.pos_emb.position_embeddings
    assert isinstance(ours.absolute, Resampled)
    asked = [patches, ours.absolute.table, ours.patch_embed.proj.weight]
    wanted = [patches, table, theirs.patch_embed.proj.weight]
    for a, b in zip(
        torch.autograd.grad(found, asked, weight), torch.autograd.grad(expected, wanted, weight), strict=True
    ):
        close(a, b, 1e-4)
