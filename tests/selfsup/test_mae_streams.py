"""MAE of streams by itself: what it masks, predicts and refuses, and that it learns."""

from __future__ import annotations

import pytest
import torch

from sensorium.abilities import Encoder, HasBackbone, Reconstructor, abilities_of
from sensorium.data.streams.prepare import StreamSituation
from sensorium.errors import SensoriumError
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.mae_streams.method import StreamMAE

PHONE = StreamSituation(3, ("nothing", "walk"), 1, 24, 0, 500, (0.0,) * 3, (1.0,) * 3)


def small(features=3, patch=2, **more) -> StreamMAE:
    torch.manual_seed(0)
    return StreamMAE(features, patch, 32, 2, 2, **{"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2} | more)


def plain(method: StreamMAE, frames, noise):
    """The paper's pseudocode, step by step: embed all, drop, encode, put mask tokens in place, predict all, mask the loss;
    which is of all patches if none are dropped."""
    B, N = noise.shape
    order = noise.argsort(1)
    keep, removed = order[:, : method.kept(N)], order[:, method.kept(N) :]
    whole = method.backbone.embed(frames)
    latent = method.decoder_embed(method.backbone.encode(torch.stack([whole[b, keep[b]] for b in range(B)])))
    full = method.mask_token.repeat(B, N, 1)
    full = torch.stack([full[b].index_copy(0, keep[b], latent[b, 1:]) for b in range(B)])
    x = torch.cat([latent[:, :1], full + method.decoder_positions.rows(torch.arange(N))], 1)
    for block in method.decoder_blocks:
        x = block(x)
    predicted = method.decoder_pred(method.decoder_norm(x))[:, 1:]
    k = method.backbone.patch
    target = torch.stack([frames[:, n * k : (n + 1) * k].flatten(1) for n in range(N)], 1)
    if method.normalize_targets:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    mask = torch.zeros(B, N).scatter(1, removed, 1.0) if removed.numel() else torch.ones(B, N)
    return (((predicted - target) ** 2).mean(-1) * mask).sum() / mask.sum()


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.0])
@pytest.mark.parametrize("length, features, patch", [(15, 3, 1), (22, 1, 2), (21, 7, 3), (5, 2, 1)])
def test_equals_the_plain_form(length, features, patch, ratio):
    method = small(features, patch, mask_ratio=ratio)
    x, noise = torch.randn(3, length, features), torch.rand(3, length // patch)
    got, wanted = method({"frames": x, "noise": noise})["loss"], plain(method, x, noise)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    parameters = list(method.parameters())
    for ours, theirs in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_it_is_an_encoder_of_streams_and_not_of_pictures():
    method = small()
    assert abilities_of(method) == ("StreamEncoder",)
    assert not isinstance(method, Encoder | Reconstructor | HasBackbone)  # what these are used for are pictures
    for length in (2, 8, 30):
        assert method.features(torch.randn(4, length, 3)).shape == (4, method.dim)


def test_what_was_removed_does_not_reach_the_prediction():
    method = small().eval()
    x = torch.randn(2, 20, 3)
    keep, removed = method.mask(x, torch.rand(2, 10))
    before = method.predict(x, keep, removed)
    y = x.clone()
    y[0, 2 * removed[0, 0] : 2 * removed[0, 0] + 2] += 9.0
    assert torch.equal(method.predict(y, keep, removed), before)
    y[0, 2 * keep[0, 0]] += 9.0
    assert (method.predict(y, keep, removed)[0] != before[0]).any()


def test_the_place_of_a_patch_in_time_matters():
    method = small(patch=1).eval()
    x = torch.randn(1, 6, 3)
    assert not torch.allclose(method.features(x), method.features(x.flip(1)), atol=1e-4)
    keep = torch.tensor([[4, 0, 2]])
    torch.testing.assert_close(method.backbone.embed(x, keep), method.backbone.embed(x)[:, [4, 0, 2]])


def test_entries_to_log_are_detached_scalars():
    out = small()({"frames": torch.randn(2, 20, 3)})
    assert set(out) == {"loss", "explained"}
    assert out["loss"].requires_grad
    assert not out["explained"].requires_grad
    assert all(value.isfinite() for value in small()({"frames": torch.zeros(2, 20, 3)}).values())


def test_it_learns_what_a_window_is_about():
    """Windows of one level each, which those that are left tell of those that were removed."""
    torch.manual_seed(0)
    method = small(2, 4, normalize_targets=False)
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    for _ in range(150):
        out = method({"frames": torch.randn(16, 1, 2).expand(-1, 32, -1)})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["explained"] > 0.6


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="patches of 2 do not divide a sequence of 7"):
        small()({"frames": torch.zeros(2, 7, 3)})
    with pytest.raises(ValueError, match=r"noise must be \[2, 4\]"):
        small()({"frames": torch.zeros(2, 8, 3), "noise": torch.rand(2, 5)})
    with pytest.raises(ValueError, match="patch and depth must be at least 1"):
        StreamMAE(3, 2, 32, 0, 2, decoder_width=16, decoder_depth=1, decoder_heads=2)
    for given, said in (
        ({"patch": 5}, "--patch 5: must divide the window of 24 frames"),
        ({"mask_ratio": 0.99}, "mae_streams: mask_ratio 0.99 keeps 0 of 24 patches"),
        ({"heads": 5}, "mae_streams: heads 5 must divide the width 128"),
    ):
        with pytest.raises(SensoriumError, match=said):
            make_recipe("mae_streams", PHONE, given)
    with pytest.raises(SensoriumError, match="a patch of one value can't be normalized: use --patch 2"):
        make_recipe("mae_streams", StreamSituation(1, ("a",), 1, 24, 0, 9, (0.0,), (1.0,)), {})


def test_data_prepared_otherwise_are_refused():
    with pytest.raises(ValueError, match="length 12, but the data were prepared with 24"):
        make_recipe("mae_streams", PHONE, {"length": 12})
