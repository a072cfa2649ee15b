"""MAE by itself: what it masks, predicts, shows and refuses."""

from __future__ import annotations

import pytest
import torch

from sensorium.abilities import Encoder, Reconstructor
from sensorium.base.draw import Draw
from sensorium.networks.vit import ViT
from sensorium.parts.masking import highest, ranks
from sensorium.parts.patches import patchify
from sensorium.selfsup.mae.method import MAE


def small(image=(12, 20), patch=4, **more) -> MAE:
    torch.manual_seed(0)
    backbone = ViT(image, patch, 32, 2, 2, positions="sincos", pool="mean")
    return MAE(backbone, decoder_width=16, decoder_depth=2, decoder_heads=2, **more)


def plain(method: MAE, images, noise):
    """The paper's pseudocode, step by step: embed all, drop, encode, put mask tokens in place, predict all, mask the loss;
    which is of all patches if none are dropped."""
    B, N = noise.shape
    order = noise.argsort(1)
    keep, removed = order[:, : method.kept(N)], order[:, method.kept(N) :]
    whole = method.backbone.embed(images)
    latent = method.decoder_embed(method.backbone.encode(torch.stack([whole[b, keep[b]] for b in range(B)])))
    full = method.mask_token.repeat(B, N, 1)
    full = torch.stack([full[b].index_copy(0, keep[b], latent[b, 1:]) for b in range(B)])
    x = torch.cat([latent[:, :1], full], 1) + method.decoder_pos_embed
    for block in method.decoder_blocks:
        x = block(x)
    predicted = method.decoder_pred(method.decoder_norm(x))[:, 1:]
    target = patchify(images, method.patch_size)
    if method.normalize_targets:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    mask = torch.zeros(B, N).scatter(1, removed, 1.0) if removed.numel() else torch.ones(B, N)
    return (((predicted - target) ** 2).mean(-1) * mask).sum() / mask.sum()


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.9, 0.0])
@pytest.mark.parametrize("image, patch", [((12, 20), 4), (30, 6), ((33, 22), 11), (5, 1)])
def test_equals_the_plain_form(image, patch, ratio):
    if patch == 11 and ratio == 0.9:
        ratio = 0.8  # of 6 patches, 0.9 keeps none
    method = small(image, patch, mask_ratio=ratio)
    height, width = (image, image) if isinstance(image, int) else image
    x, noise = torch.randn(3, 3, height, width), torch.rand(3, method.grid[0] * method.grid[1])
    got = method({"image": x, "noise": noise})
    wanted = plain(method, x, noise)
    torch.testing.assert_close(got["loss"], wanted, atol=1e-5, rtol=0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(got["loss"], parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_mask_keeps_the_smallest_noise():
    method = small()
    noise = torch.rand(4, 15)
    keep, removed = method.mask(torch.zeros(4, 3, 12, 20), noise)
    assert keep.shape == (4, 3)
    assert (noise.gather(1, keep).amax(1) < noise.gather(1, removed).amin(1)).all()
    assert torch.equal(torch.cat([keep, removed], 1).sort(1).values, torch.arange(15).expand(4, -1))


def test_without_a_mask_all_patches_are_encoded_and_predicted():
    method = small(mask_ratio=0.0)
    x, noise = torch.randn(2, 3, 12, 20), torch.rand(2, 15)
    keep, removed = method.mask(x, noise)
    assert (keep.shape, removed.shape) == ((2, 15), (2, 0))
    assert method.predict(x, keep, removed).shape == (2, 15, 48)
    loss = method({"image": x, "noise": noise})["loss"]
    torch.testing.assert_close(method({"image": x, "noise": 1 - noise})["loss"], loss)  # their order does not matter
    loss.backward()
    assert method.mask_token.grad is not None  # so that every process has the same gradients to average
    assert not method.mask_token.grad.any()
    image, visible, filled = method.reconstruct(x, noise=noise).split(20, dim=-1)
    assert torch.equal(visible, image)
    assert (filled != image).any(1).all()


@pytest.mark.parametrize("masking", ["block", "grid"])
def test_pictures_are_masked_as_in_training(masking):
    method = small((16, 16), 2, masking=masking, mask_ratio=0.75).eval()
    _, visible, _ = method.reconstruct(torch.rand(2, 3, 16, 16) + 1, seed=5).split(16, dim=-1)
    wanted = highest(ranks(masking, Draw.seeded(5, 0, 2), (8, 8), 48), 48)
    assert torch.equal((visible == 0).all(1)[:, ::2, ::2].flatten(1), wanted)


def test_an_unknown_kind_of_mask_is_refused():
    with pytest.raises(ValueError, match="one of random, block, grid"):
        small(masking="stripes")


def test_what_was_removed_does_not_reach_the_prediction():
    method = small().eval()
    x = torch.randn(2, 3, 12, 20)
    keep, removed = method.mask(x, torch.rand(2, 15))
    before = method.predict(x, keep, removed)
    where = removed[0, 0].item()
    y = x.clone()
    y[0, :, where // 5 * 4 : where // 5 * 4 + 4, where % 5 * 4 : where % 5 * 4 + 4] += 9.0
    assert torch.equal(method.predict(y, keep, removed), before)
    seen = keep[0, 0].item()
    y[0, :, seen // 5 * 4 : seen // 5 * 4 + 4, seen % 5 * 4 : seen % 5 * 4 + 4] += 9.0
    assert (method.predict(y, keep, removed)[0] != before[0]).any()


def test_entries_to_log_are_detached_scalars():
    method = small()
    x = torch.randn(2, 3, 12, 20)
    first, second = method({"image": x}), method({"image": x})
    assert first["loss"] != second["loss"]  # drawn anew where no noise is given
    assert first["loss"].requires_grad
    assert first["explained"].ndim == 0
    assert not first["explained"].requires_grad
    flat = method({"image": torch.zeros(2, 3, 12, 20)})
    assert all(value.isfinite() for value in flat.values())


def test_other_image_sizes_and_features():
    method = small()
    assert isinstance(method, Encoder)
    assert isinstance(method, Reconstructor)
    for height, width in [(12, 20), (24, 24), (8, 40)]:
        x = torch.randn(2, 3, height, width)
        assert method({"image": x})["loss"].isfinite()
        assert method.features(x).shape == (2, method.dim)
        assert method.reconstruct(x).shape == (2, 3, height, 3 * width)


@pytest.mark.parametrize("normalize", [True, False])
def test_pictures_show_truth_gaps_and_prediction(normalize):
    method = small(normalize_targets=normalize).eval()
    x, noise = torch.rand(2, 3, 12, 20) + 3, torch.rand(2, 15)
    shown = method.reconstruct(x, noise=noise)
    assert not shown.requires_grad
    image, masked, filled = shown.split(20, dim=-1)
    assert torch.equal(image, x)
    keep, removed = method.mask(x, noise)
    truth, gaps, painted = (patchify(part, 4) for part in (image, masked, filled))
    for b in range(2):
        assert torch.equal(gaps[b, keep[b]], truth[b, keep[b]])
        assert torch.equal(painted[b, keep[b]], truth[b, keep[b]])
        assert not gaps[b, removed[b]].any()
        predicted = method.predict(x, keep, removed)[b]
        if normalize:
            own = truth[b, removed[b]]
            predicted = predicted * (own.var(-1, keepdim=True) + 1e-6).sqrt() + own.mean(-1, keepdim=True)
        torch.testing.assert_close(painted[b, removed[b]], predicted, atol=1e-5, rtol=0)


def test_learns_to_paint_one_image():
    torch.manual_seed(0)
    method = small((8, 8), 2, normalize_targets=False)
    ramp = torch.linspace(-1, 1, 8)
    x = (ramp[:, None] * ramp).expand(4, 3, 8, 8).contiguous()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for _ in range(100):
        out = method({"image": x})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["explained"] > 0.6


@pytest.mark.parametrize("noise", [torch.rand(2, 14), torch.rand(1, 15), torch.rand(15)])
def test_noise_of_another_shape_is_refused(noise):
    with pytest.raises(ValueError, match=r"noise must be \[2, 15\]"):
        small()({"image": torch.zeros(2, 3, 12, 20), "noise": noise})


@pytest.mark.parametrize("ratio", [-0.2, 0.99, 1.0])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio"):
        small(mask_ratio=ratio)


def test_a_backbone_without_tokens_is_refused():
    class Pooled(torch.nn.Module, Encoder):
        dim = 8

        def features(self, images):
            return images.mean((2, 3))

    with pytest.raises(TypeError, match="Choose a ViT"):
        MAE(Pooled(), decoder_width=16, decoder_depth=1, decoder_heads=2)


def test_trained_weights_come_back():
    method, other = small(), small()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    other.load_state_dict(method.state_dict())
    x, noise = torch.randn(2, 3, 12, 20), torch.rand(2, 15)
    assert other({"image": x, "noise": noise})["loss"] == method({"image": x, "noise": noise})["loss"]
