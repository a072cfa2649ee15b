"""MAE of text against two of transformers' EsmModel, which are pre-norm encoders with rotary positions: one encodes the tokens
that are left, in the order of time, the other all of them with a mask token in each gap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mae_peers import VIT_MAE, Peer, assert_same_gradients, shaken
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.positions.absolute import Sinusoidal
from sensorium.selfsup.mae_text.method import TextMAE

transformers = pytest.importorskip("transformers")

SIZES = [  # T, V, (width, depth, heads), decoder's, mask ratio
    (9, 11, (48, 3, 3), (32, 2, 2), 0.15),
    (16, 257, (40, 2, 4), (24, 1, 2), 0.6),
    (5, 3, (24, 2, 1), (16, 1, 1), 0.5),
]
ESM = Peer(
    top={
        "backbone.cls_token": "cls_token",
        "backbone.patch_embed": "words",
        "backbone.norm": "encoder.encoder.emb_layer_norm_after",
        "mask_token": "mask_token",
        "decoder_embed": "between",
        "decoder_norm": "decoder.encoder.emb_layer_norm_after",
        "decoder_pred": "head",
    },
    stacks={"backbone.": "encoder.encoder.layer", "decoder_": "decoder.encoder.layer"},
    block={
        "norm1": "attention.LayerNorm",
        "norm2": "LayerNorm",
        "attn.qkv": "attention.self.{}",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    qkv=("query", "key", "value"),
)


def esm(width: int, depth: int, heads: int) -> Any:
    config = transformers.EsmConfig(
        vocab_size=3, pad_token_id=1, mask_token_id=2, hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=4 * width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-6, position_embedding_type="rotary",
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.EsmModel(config, add_pooling_layer=False)


class Theirs(nn.Module):
    """Logits of all tokens [B, T, V], of which those in ``masked`` bool [B, T] are not seen."""

    def __init__(self, vocab: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> None:
        super().__init__()
        self.words, self.cls_token = nn.Embedding(vocab, encoder[0]), nn.Parameter(torch.zeros(1, 1, encoder[0]))
        self.encoder, self.decoder = esm(*encoder), esm(*decoder)
        self.between, self.head = nn.Linear(encoder[0], decoder[0]), nn.Linear(decoder[0], vocab)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder[0]))

    def forward(self, tokens: Tensor, masked: Tensor) -> Tensor:
        left = torch.stack([torch.arange(tokens.shape[1])[~row] for row in masked])
        words = self.words(tokens.gather(1, left))
        places = F.pad(left + 1, (1, 0))
        z = self.between(
            encoded(self.encoder, torch.cat([self.cls_token.expand(len(tokens), -1, -1), words], 1), places)
        )
        y = self.mask_token.repeat(len(tokens), 1 + tokens.shape[1], 1)
        y = torch.stack([row.index_copy(0, at, seen) for row, at, seen in zip(y, places, z, strict=True)])
        return self.head(encoded(self.decoder, y, torch.arange(y.shape[1]).expand(len(y), -1)))[:, 1:]


def encoded(model: Any, x: Tensor, places: Tensor) -> Tensor:
    """[B, n, D], each at its own place [B, n]."""
    return model.encoder(x, position_embeddings=model.rotary_embeddings(x, places)).last_hidden_state


def pair(vocab, length, encoder, decoder, ratio) -> tuple[TextMAE, Theirs]:
    theirs = shaken(Theirs(vocab, encoder, decoder))
    ours = TextMAE(
        vocab, length, *encoder, decoder_width=decoder[0], decoder_depth=decoder[1], decoder_heads=decoder[2],
        mask_ratio=ratio,
    )  # fmt: skip
    ours.load_state_dict(ESM.renamed(theirs.state_dict(), list(ours.state_dict())))
    return ours, theirs


@pytest.mark.parametrize("length, vocab, encoder, decoder, ratio", SIZES)
def test_loss_and_gradients(length, vocab, encoder, decoder, ratio):
    torch.manual_seed(0)
    ours, theirs = pair(vocab, length, encoder, decoder, ratio)
    tokens, noise = torch.randint(vocab, (5, length)), torch.rand(5, length)
    masked = noise.argsort(1).argsort(1) >= ours.kept(length)
    logits = theirs(tokens, masked)[masked].view(5, -1, vocab)
    want = F.cross_entropy(logits.flatten(0, 1), tokens[masked])
    got = ours({"tokens": tokens, "noise": noise})
    torch.testing.assert_close(got["loss"], want, atol=1e-5, rtol=0)
    right = (logits.argmax(-1) == tokens[masked].view(5, -1)).float().mean()
    torch.testing.assert_close(got["right"], right, atol=1e-6, rtol=0)
    told = logits.log_softmax(-1).gather(-1, tokens[masked].view(5, -1, 1)).squeeze(-1)
    torch.testing.assert_close(ours.masked_log_prob(tokens, masked), told, atol=1e-5, rtol=0)

    got["loss"].backward()
    want.backward()
    assert_same_gradients(ours, theirs, ESM.renamed)


@pytest.mark.parametrize("length, vocab, encoder, decoder, ratio", SIZES[:2])
def test_features_are_the_mean_of_its_encoded_tokens(length, vocab, encoder, decoder, ratio):
    torch.manual_seed(0)
    ours, theirs = pair(vocab, length, encoder, decoder, ratio)
    tokens = torch.randint(vocab, (3, length))
    with torch.no_grad():
        x = torch.cat([theirs.cls_token.expand(3, -1, -1), theirs.words(tokens)], 1)
        want = encoded(theirs.encoder, x, torch.arange(1 + length).expand(3, -1))[:, 1:].mean(1)
        torch.testing.assert_close(ours.features(tokens), want, atol=1e-5, rtol=0)


def vit_mae_renamed(theirs: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    found = VIT_MAE.renamed(theirs, wanted)
    found["backbone.patch_embed.weight"] = found["backbone.patch_embed.weight"].flatten(1).T  # [D, V, 1, 1] -> [V, D]
    return found


@pytest.mark.parametrize(
    "s, vocab, encoder, decoder, ratio",
    [
        (3, 11, (48, 3, 3), (32, 2, 2), 0.15),
        (4, 257, (40, 2, 4), (24, 1, 2), 0.6),
        (2, 3, (24, 2, 1), (16, 1, 1), 0.5),
    ],
)
def test_with_sinusoids_it_is_that_of_pictures(s, vocab, encoder, decoder, ratio):
    """A row of N = s * s tokens out of V is a picture of s x s patches of one pixel with V channels, 1 in that of the token, so
    that a linear map of a patch is an embedding. The positions are a table there, which gets the rows of ours."""
    torch.manual_seed(0)
    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads) = encoder, decoder
    config = transformers.ViTMAEConfig(
        image_size=s, patch_size=1, num_channels=vocab, hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=4 * width, decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width, mask_ratio=ratio, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = shaken(transformers.ViTMAEForPreTraining(config))
    with torch.no_grad():
        theirs.vit.embeddings.patch_embeddings.projection.bias.zero_()
        for table, size in (
            (theirs.vit.embeddings.position_embeddings, width), (theirs.decoder.decoder_pos_embed, decoder_width)
        ):  # fmt: skip
            table.copy_(F.pad(Sinusoidal(size).rows(torch.arange(s * s)), (0, 0, 1, 0))[None])
    ours = TextMAE(
        vocab, s * s, *encoder, positions="sinusoids", decoder_width=decoder_width, decoder_depth=decoder_depth,
        decoder_heads=decoder_heads, mask_ratio=ratio,
    )  # fmt: skip
    ours.load_state_dict(vit_mae_renamed(theirs.state_dict(), list(ours.state_dict())))
    tokens, noise = torch.randint(vocab, (5, s * s)), torch.rand(5, s * s)
    out = theirs(F.one_hot(tokens, vocab).float().mT.unflatten(-1, (s, s)), noise=noise)
    masked = out.mask.bool()
    want = F.cross_entropy(out.logits[masked], tokens[masked])
    got = ours({"tokens": tokens, "noise": noise})["loss"]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)

    got.backward()
    want.backward()
    assert_same_gradients(ours, theirs, vit_mae_renamed)
