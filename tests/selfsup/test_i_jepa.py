"""I-JEPA by itself: its masks, what it predicts from what, where its state changes, what it refuses; recipe and views."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from sensorium.abilities import Encoder, abilities_of
from sensorium.base.draw import Draw
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.vit import ViT
from sensorium.selfsup.i_jepa.masks import MultiBlock, block_at, block_size
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.i_jepa.predictor import Predictor
from sensorium.selfsup.i_jepa.recipe import i_jepa

ON = Situation(32, 400, (), (0.5,) * 3, (0.25,) * 3)
GRIDS = [(8, 8), (14, 14), (16, 16), (4, 4), (7, 7), (5, 9), (3, 3), (2, 2), (2, 12)]


def small(image=(12, 20), backbone=None, **numbers) -> IJEPA:
    torch.manual_seed(0)
    backbone = backbone or MeanViT(image, 4, 16, 2, 2, positions="sincos", init="xavier")
    return IJEPA(backbone, Predictor(16, backbone.grid, 8, 2, 2), **numbers)


def batch(count=4, image=(12, 20), seed=0):
    context, targets = MultiBlock((image[0] // 4, image[1] // 4))(Draw.seeded(seed, 0, count))
    pixels = torch.randn(count, 3, *image, generator=torch.Generator().manual_seed(seed))
    return {"image": pixels, "context": context, "targets": targets}


def at(fraction, step=0):
    return Progress(step, 0, fraction)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


# --- masks ---


@pytest.mark.parametrize("grid", GRIDS)
def test_contexts_lack_the_targets_and_sizes_are_in_their_ranges(grid):
    masks, patches = MultiBlock(grid), math.prod(grid)
    for seed in range(60):
        context, targets = masks(Draw.seeded(seed, 3, 24))
        assert targets.shape[:2] == (24, 4)
        assert context.dtype == targets.dtype == torch.int64
        for rows in (context, *targets.unbind(1)):
            assert (rows.diff(dim=1) > 0).all()
            assert 0 <= rows.min() <= rows.max() < patches
        for seen, hidden in zip(context.tolist(), targets.flatten(1).tolist(), strict=True):
            assert not set(seen) & set(hidden)
        places = torch.stack([targets // grid[1], targets % grid[1]])
        (height, width), *others = {
            tuple(extent.tolist()) for extent in (places.amax(-1) - places.amin(-1) + 1).flatten(1).T
        }
        assert not others  # one size for the batch
        assert height * width == targets.shape[-1]  # and all of the block
        off = max(0.15 * patches - height * width, height * width - 0.2 * patches)
        assert off <= height / 2 or height * width == 1
        assert context.shape[1] >= min(targets.shape[-1], patches - targets.shape[-1])


def test_blocks_reach_every_patch():
    """Also those of the last row and column, in targets and contexts."""
    masks = MultiBlock((8, 8))
    drawn = [masks(Draw.seeded(seed, 0, 32)) for seed in range(50)]
    for part in (0, 1):
        counts = torch.stack([pair[part].flatten().bincount(minlength=64) for pair in drawn]).sum(0)
        assert counts.min() > 0
    sizes = {pair[1].shape[-1] for pair in drawn}
    assert len(sizes) > 1
    assert {pair[0].shape[1] for pair in drawn} > {min(pair[0].shape[1] for pair in drawn)}


@pytest.mark.parametrize("grid", [(8, 8), (14, 14), (16, 16)])
def test_small_grids_keep_enough_of_the_context(grid):
    kept = [MultiBlock(grid)(Draw.seeded(seed, 0, 32))[0].shape[1] / math.prod(grid) for seed in range(100)]
    assert min(kept) >= 0.125
    assert 0.2 < sum(kept) / len(kept) < 0.45


def test_the_same_seed_gives_the_same_masks_and_processes_share_them():
    masks = MultiBlock((8, 8))
    first, again, other = (masks(Draw.seeded(seed, 5, 12)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[1].shape != other[1].shape or not torch.equal(first[1], other[1])
    for start, stop in ((0, 6), (6, 12), (3, 4)):
        part = masks(Draw.seeded(1, 5, 12, start, stop))
        assert all(torch.equal(a, b[start:stop]) for a, b in zip(part, first, strict=True))


@pytest.mark.parametrize("targets, grid", [(30, (2, 2)), (60, (4, 4)), (200, (8, 8))])
def test_targets_that_cover_everything_become_one(targets, grid):
    context, blocks = MultiBlock(grid, targets)(Draw.seeded(0, 0, 6))
    patches = math.prod(grid)
    assert context.shape[1] >= min(blocks.shape[-1], patches - blocks.shape[-1])
    assert blocks.shape[1] == targets
    assert (blocks == blocks[:, :1]).flatten(1).all(1).any()


def test_contexts_are_cut_to_the_smallest_from_the_lower_right():
    context, targets = MultiBlock((6, 6), 2, context_scale=(1.0, 1.0))(Draw.seeded(4, 0, 40))
    free = [[patch for patch in range(36) if patch not in hidden] for hidden in targets.flatten(1).tolist()]
    smallest = min(map(len, free))
    assert context.tolist() == [patches[:smallest] for patches in free]
    assert max(map(len, free)) > smallest


@pytest.mark.parametrize("scale, aspect", [(0.15, 0.75), (0.2, 1.5), (0.18, 1.0), (0.85, 1.0), (1.0, 1.0)])
def test_sizes_are_the_authors_but_for_rounding(scale, aspect):
    """Theirs: both sides rounded by themselves, and smaller than the grid."""
    for side in (14, 16, 28):
        area = int(side * side * scale)
        theirs = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        ours = block_size((side, side), scale, aspect)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_a_block_lies_where_its_number_says():
    corners = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24], [0.5, 0.0]])
    assert block_at(corners, (2, 3), (4, 5)).tolist() == [
        [0, 1, 2, 5, 6, 7],
        [12, 13, 14, 17, 18, 19],
        [5, 6, 7, 10, 11, 12],
    ]


@pytest.mark.parametrize(
    "numbers, said",
    [
        ({"grid": (1, 8)}, "at least 2x2 patches, the grid has 1x8"),
        ({"targets": 0}, "at least 1 target"),
        ({"target_scale": (0.3, 0.2)}, "from 0 to 0.5, got 0.3 to 0.2"),
        ({"target_scale": (0.3, 0.6)}, "from 0 to 0.5"),
        ({"context_scale": (0.4, 1.0)}, "from 0.5 to 1, got 0.4 to 1"),
    ],
)
def test_masks_that_leave_nothing_are_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        MultiBlock(**{"grid": (8, 8), **numbers})


# --- the method ---


def plain(method: IJEPA, given):
    """The paper's section 3, one image and one block at a time."""
    p, encoder, total = method.predictor, method.encoder, []
    for x, context, blocks in zip(given["image"].unsqueeze(1), given["context"], given["targets"], strict=True):
        whole = encoder.embed(x)[0]
        z = p.embed(encoder.encode(whole[None, context])[0, 1:]) + p.pos_embed[0, context]
        with torch.no_grad():
            s = method.target_encoder.tokens(x)[0, 1:]
        for block in blocks:
            tokens = torch.cat([z, p.mask_token[0] + p.pos_embed[0, block]])[None]
            for layer in p.blocks:
                tokens = layer(tokens)
            y = p.proj(p.norm(tokens[0, len(z) :]))
            total.append(F.smooth_l1_loss(y, F.layer_norm(s[block], (16,))))
    return torch.stack(total).mean()


@pytest.mark.parametrize("class_token", [False, True])
def test_equals_the_plain_form(class_token):
    backbone = ViT((12, 20), 4, 16, 2, 2, positions="sincos", pool="mean") if class_token else None
    method, given = small(backbone=backbone), batch()
    with torch.no_grad():
        for p in method.target_encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    got, want = method(given)["loss"], plain(method, given)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for ours, theirs in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_what_the_context_lacks_does_not_reach_the_prediction():
    method, given = small().eval(), batch()
    before = method.predict(*given.values())
    seen = set(given["context"][0].tolist())
    y = given["image"].clone()
    for patch in set(range(15)) - seen:
        y[0, :, patch // 5 * 4 : patch // 5 * 4 + 4, patch % 5 * 4 : patch % 5 * 4 + 4] += 9.0
    assert torch.equal(method.predict(y, given["context"], given["targets"]), before)
    assert not torch.equal(method.normed_targets(y)[0], method.normed_targets(given["image"])[0])


def test_the_target_gets_no_gradient_and_a_forward_changes_nothing():
    method, given = small(), batch()
    before = snapshot(method)
    method(given)["loss"].backward()
    assert changed(method, before) == set()
    for name, p in method.named_parameters():
        learns = not name.startswith("target_encoder.") and "pos_embed" not in name
        assert (p.grad is not None) == p.requires_grad == learns, name
        assert not learns or p.grad.abs().max() > 0, name


@pytest.mark.parametrize("fraction, momentum", [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_the_momentum_rises_linearly_to_rest(fraction, momentum):
    method = small(momentum=0.9)
    old = copy.deepcopy(method.target_encoder)
    with torch.no_grad():
        for p in method.encoder.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    method.after_step(at(fraction))
    for new, was, source in zip(
        method.target_encoder.parameters(), old.parameters(), method.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, momentum * was + (1 - momentum) * source, atol=1e-6, rtol=0)
    if fraction == 1:
        assert all(torch.equal(a, b) for a, b in zip(method.target_encoder.parameters(), old.parameters(), strict=True))


def test_the_target_encoder_is_evaluated():
    method = small().eval()
    assert abilities_of(method) == ("Encoder",)
    x = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        method.encoder.norm.bias += 1
    assert method.backbone is method.target_encoder
    wanted = method.target_encoder.tokens(x)[:, 1:].mean(1)
    torch.testing.assert_close(method.features(x), wanted, atol=1e-6, rtol=0)
    assert (method.features(x) - method.encoder.features(x)).abs().max() > 0.5
    assert method.features(torch.randn(2, 3, 24, 8)).shape == (2, 16)


def test_images_of_another_size():
    method, given = small(), batch(image=(20, 16))
    assert method(given)["loss"].isfinite()


def test_experts_are_balanced_and_the_targets_are_those_of_the_encoder():
    method, given = small(backbone=MeanViT((12, 20), 4, 16, 1, 2, positions="sincos", parts=("experts",))), batch()
    method(given)["loss"].backward()
    method.after_step(at(0.0))
    bias = method.encoder.blocks[0].mlp.experts.bias
    assert bias.abs().max() > 0
    assert torch.equal(bias, method.target_encoder.blocks[0].mlp.experts.bias)


def test_entries_to_log_are_detached_scalars():
    out = small()(batch())
    assert set(out) == {"loss", "alignment", "output_spread"}
    assert out["loss"].requires_grad
    assert all(value.ndim == 0 and value.isfinite() for value in out.values())
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")
    same = batch()
    same["image"] = same["image"][:1].expand(4, -1, -1, -1)
    assert small()(same)["output_spread"] < 1e-4


def test_trained_weights_come_back():
    method, given = small(), batch()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other = small()
    other.load_state_dict(method.state_dict())
    assert torch.equal(other(given)["loss"], method(given)["loss"])


def test_what_cannot_work_is_refused():
    class Pooled(torch.nn.Module, Encoder):
        dim = 8

        def features(self, images):
            return images.mean((2, 3))

    with pytest.raises(TypeError, match="I-JEPA needs a backbone with TokenEncoder"):
        IJEPA(Pooled(), Predictor(8, (2, 2), 8, 1, 1))
    with pytest.raises(ValueError, match=r"momentum must be from 0 to 1, got 1\.1"):
        small(momentum=1.1)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        Predictor(8, (2, 2), 8, 0, 1)
    for settings, said in (
        ({"targets": 0}, "i_jepa: there must be at least 1 target, got 0"),
        ({"target_max": 0.7}, "targets must have a share of the picture from 0 to 0.5, got 0.15 to 0.7"),
        ({"predictor_width": 31}, "i_jepa: sincos positions need a width divisible by 4, got 31"),
        ({"momentum": -1.0}, "i_jepa: momentum must be from 0 to 1"),
        ({"backbone": "resnet-micro"}, "I-JEPA needs a backbone with TokenEncoder"),
        ({"backbone": "vit-micro+rope"}, "leave rope out"),
    ):
        with pytest.raises(SensoriumError, match=said):
            i_jepa(ON, **settings)


# --- the recipe ---


def test_the_recipe_builds_a_network_without_class_token():
    recipe = i_jepa(ON)
    method = recipe.method
    assert isinstance(method, IJEPA)
    assert type(method.encoder) is MeanViT
    assert (method.encoder.grid, method.encoder.pool, method.encoder.positions) == ((8, 8), "mean", "sincos")
    assert method.predictor.proj.in_features == 96
    assert len(method.predictor.blocks) == 2
    assert (method.momentum, recipe.batch_size) == (0.98, 32)
    gpu = i_jepa(Situation(224, 1_000_000, (), (0.5,) * 3, (0.25,) * 3, device="cuda"), backbone="vit-tiny").method
    assert isinstance(gpu, IJEPA)
    assert (gpu.momentum, gpu.predictor.proj.in_features, len(gpu.predictor.blocks)) == (0.996, 96, 6)


def test_views_crop_and_mask_and_processes_share_the_sizes():
    views = i_jepa(ON).views
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    whole = views({"image": images}, Draw.seeded(3, 0, 8))
    assert whole["image"].shape == (8, 3, 32, 32)
    assert whole["targets"].shape[:2] == (8, 4)
    for start in (0, 4):
        part = views({"image": images[start : start + 4]}, Draw.seeded(3, 0, 8, start, start + 4))
        assert part.keys() == whole.keys()
        for name, value in part.items():
            torch.testing.assert_close(value, whole[name][start : start + 4], atol=1e-6, rtol=0)


def test_learns_to_predict():
    torch.manual_seed(0)
    method = small((16, 16), momentum=0.95)
    ramp = torch.linspace(-1, 1, 16)
    waves = [
        (ramp[:, None] * a + ramp * b).sin()
        for a, b in ((3, 1), (1, 4), (-2, 3), (5, 0), (0, 5), (4, 4), (2, -5), (1, 1))
    ]
    images = torch.stack(waves)[:, None].expand(-1, 3, -1, -1).contiguous()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    aligned = []
    for step in range(60):
        context, targets = MultiBlock((4, 4))(Draw.seeded(0, step, 8))
        out = method({"image": images, "context": context, "targets": targets})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step(at(step / 60, step))
        aligned.append(out["alignment"].item())
    assert sum(aligned[-5:]) / 5 > max(0.6, aligned[0] + 0.2)
