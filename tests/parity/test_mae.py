"""MAE against transformers' ViTMAEForPreTraining: same weights and noise, same mask, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from mae_peers import VIT_MAE, assert_same_gradients, gradients, shaken

from sensorium.networks.vit import ViT
from sensorium.parts.positions.grid import sincos_2d
from sensorium.selfsup.mae.method import MAE

transformers = pytest.importorskip("transformers")

SIZES = [  # image, patch, (width, depth, heads), decoder's, mask ratio
    (32, 4, (48, 3, 3), (32, 2, 2), 0.75),
    (28, 4, (64, 2, 4), (24, 1, 2), 0.6),
    (30, 6, (36, 1, 2), (40, 2, 4), 0.75),
    (33, 11, (40, 2, 5), (32, 3, 1), 0.5),
    (21, 3, (24, 2, 1), (16, 1, 1), 0.9),
]


def pair(image, patch, encoder, decoder, ratio, normalize=True, eps=1e-12):
    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads) = encoder, decoder
    config = transformers.ViTMAEConfig(
        image_size=image, patch_size=patch, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, decoder_hidden_size=decoder_width, decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads, decoder_intermediate_size=3 * decoder_width, mask_ratio=ratio,
        norm_pix_loss=normalize, layer_norm_eps=eps,
    )  # fmt: skip
    theirs = shaken(transformers.ViTMAEForPreTraining(config))  # the fixed positions too, which begin as zeros there
    ours = MAE(
        ViT(image, patch, width, depth, heads, eps=eps, positions="sincos"),
        decoder_width=decoder_width, decoder_depth=decoder_depth, decoder_heads=decoder_heads, decoder_mlp_ratio=3.0,
        mask_ratio=ratio, normalize_targets=normalize, eps=eps,
    )  # fmt: skip
    ours.load_state_dict(VIT_MAE.renamed(theirs.state_dict(), list(ours.state_dict())))
    return ours, theirs


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("image, patch, encoder, decoder, ratio", SIZES)
def test_mask_loss_and_gradients(image, patch, encoder, decoder, ratio, normalize):
    torch.manual_seed(0)
    ours, theirs = pair(image, patch, encoder, decoder, ratio, normalize)
    x, noise = torch.randn(4, 3, image, image), torch.rand(4, (image // patch) ** 2)
    got, wanted = ours({"image": x, "noise": noise}), theirs(x, noise=noise)

    keep, removed = ours.mask(x, noise)
    mask = torch.zeros_like(noise).scatter(1, removed, 1.0)
    assert torch.equal(mask, wanted.mask)
    assert keep.shape[1] + removed.shape[1] == noise.shape[1]
    assert torch.equal(torch.argsort(torch.cat([keep, removed], 1), 1), wanted.ids_restore)
    torch.testing.assert_close(got["loss"], wanted.loss, atol=1e-5, rtol=0)
    predicted = wanted.logits.gather(1, removed.unsqueeze(-1).expand(-1, -1, patch * patch * 3))
    torch.testing.assert_close(ours.predict(x, keep, removed), predicted, atol=1e-5, rtol=0)

    got["loss"].backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs, VIT_MAE.renamed)


@pytest.mark.parametrize("image, patch, encoder, decoder, ratio", SIZES[:3])
def test_predictions_without_a_mask(image, patch, encoder, decoder, ratio):
    """Their loss is of no patch then, and not a number; their predictions are of all patches."""
    torch.manual_seed(0)
    ours, theirs = pair(image, patch, encoder, decoder, 0.0)
    x, noise = torch.randn(4, 3, image, image), torch.rand(4, (image // patch) ** 2)
    keep, removed = ours.mask(x, noise)
    wanted = theirs(x, noise=noise).logits.gather(1, keep.unsqueeze(-1).expand(-1, -1, patch * patch * 3))
    torch.testing.assert_close(ours.predict(x, keep, removed), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width, grid", [(48, (8, 8)), (64, (5, 3)), (16, (2, 7))])
def test_positions_are_those_of_the_published_checkpoints(width, grid):
    """transformers notes that published weights have the two halves of the canonical table swapped."""
    build = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae").build_2d_sinusoidal_position_embedding
    wanted = build(*grid, width, cls_token=True).roll(width // 2, dims=-1)
    torch.testing.assert_close(sincos_2d(grid, width)[0], wanted, atol=1e-6, rtol=0)


def test_bfloat16_autocast():
    """bf16 keeps 8 bits: the loss differs by at most 2 %, gradients point the same way (cosine above 0.99)."""
    torch.manual_seed(1)
    ours, theirs = pair(*SIZES[0])
    x, noise = torch.randn(4, 3, 32, 32), torch.rand(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = ours({"image": x, "noise": noise})["loss"], theirs(x, noise=noise).loss
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted.float(), atol=0, rtol=0.02)
    got.backward()
    wanted.backward()
    trainable = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    flat = [torch.cat([g.flatten().float() for g in side]) for side in (
        [p.grad for p in trainable.values()], VIT_MAE.renamed(gradients(theirs), list(trainable)).values()
    )]  # fmt: skip
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.99
