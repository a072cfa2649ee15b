"""MAE of streams against transformers' ViTMAEForPreTraining: same weights and noise, same mask, loss and gradients.

A window of N = s * s patches of k = p * p frames with C channels is a picture of s x s patches of p x p pixels with C
channels: a frame is a pixel. Only the positions differ, which are a table there: it gets the rows of ours.
"""

from __future__ import annotations

import pytest
import torch
from mae_peers import VIT_MAE, assert_same_gradients, shaken
from torch import Tensor
from torch.nn import functional as F

from sensorium.parts.patches import unpatchify
from sensorium.parts.positions.absolute import Sinusoidal
from sensorium.selfsup.mae_streams.method import StreamMAE

transformers = pytest.importorskip("transformers")

SIZES = [  # s, p, C, (width, depth, heads), decoder's, mask ratio
    (3, 2, 3, (48, 3, 3), (32, 2, 2), 0.75),
    (4, 1, 5, (40, 2, 4), (24, 1, 2), 0.6),
    (5, 3, 1, (36, 1, 2), (40, 2, 4), 0.75),
    (2, 2, 7, (24, 2, 1), (16, 1, 1), 0.5),
]


def renamed(theirs: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Tensors under our names, from transformers' names."""
    found = VIT_MAE.renamed(theirs, wanted)
    convolution = found["backbone.patch_embed.weight"]  # [D, C, p, p], and ours is [D, (frame, channel)]
    found["backbone.patch_embed.weight"] = convolution.permute(0, 2, 3, 1).flatten(1)
    return found


def pair(s, p, channels, encoder, decoder, ratio, normalize=True, eps=1e-12):
    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads) = encoder, decoder
    config = transformers.ViTMAEConfig(
        image_size=s * p, patch_size=p, num_channels=channels, hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=4 * width, decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=3 * decoder_width, mask_ratio=ratio, norm_pix_loss=normalize, layer_norm_eps=eps,
    )  # fmt: skip
    theirs = shaken(transformers.ViTMAEForPreTraining(config))
    with torch.no_grad():
        for table, size in (
            (theirs.vit.embeddings.position_embeddings, width), (theirs.decoder.decoder_pos_embed, decoder_width)
        ):  # fmt: skip
            table.copy_(F.pad(Sinusoidal(size).rows(torch.arange(s * s)), (0, 0, 1, 0))[None])
    ours = StreamMAE(
        channels, p * p, width, depth, heads,
        decoder_width=decoder_width, decoder_depth=decoder_depth, decoder_heads=decoder_heads, decoder_mlp_ratio=3.0,
        mask_ratio=ratio, normalize_targets=normalize, eps=eps,
    )  # fmt: skip
    ours.load_state_dict(renamed(theirs.state_dict(), list(ours.state_dict())))
    return ours, theirs


def as_pictures(frames: Tensor, s: int, p: int) -> Tensor:
    return unpatchify(frames.reshape(len(frames), s * s, -1), (s, s), p)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("s, p, channels, encoder, decoder, ratio", SIZES)
def test_mask_loss_and_gradients(s, p, channels, encoder, decoder, ratio, normalize):
    torch.manual_seed(0)
    ours, theirs = pair(s, p, channels, encoder, decoder, ratio, normalize)
    x, noise = torch.randn(4, s * s * p * p, channels), torch.rand(4, s * s)
    got, wanted = ours({"frames": x, "noise": noise}), theirs(as_pictures(x, s, p), noise=noise)

    keep, removed = ours.mask(x, noise)
    assert torch.equal(torch.zeros_like(noise).scatter(1, removed, 1.0), wanted.mask)
    torch.testing.assert_close(got["loss"], wanted.loss, atol=1e-5, rtol=0)
    predicted = wanted.logits.gather(1, removed.unsqueeze(-1).expand(-1, -1, p * p * channels))
    torch.testing.assert_close(ours.predict(x, keep, removed), predicted, atol=1e-5, rtol=0)

    got["loss"].backward()
    wanted.loss.backward()
    assert_same_gradients(ours, theirs, renamed)


@pytest.mark.parametrize("s, p, channels, encoder, decoder, ratio", SIZES[:2])
def test_features_are_the_mean_of_its_encoded_patches(s, p, channels, encoder, decoder, ratio):
    torch.manual_seed(0)
    ours, theirs = pair(s, p, channels, encoder, decoder, 0.0)
    x = torch.randn(3, s * s * p * p, channels)
    with torch.no_grad():
        wanted = theirs.vit(as_pictures(x, s, p), noise=torch.rand(3, s * s)).last_hidden_state[:, 1:].mean(1)
        torch.testing.assert_close(ours.features(x), wanted, atol=1e-5, rtol=0)
