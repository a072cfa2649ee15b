"""MAE of text against transformers' ViTMAEForPreTraining: a row of N = s * s tokens out of V is a picture of s x s patches of
one pixel with V channels, 1 in that of the token, so that a linear map of a patch is an embedding; its predictions are logits.
The positions are a table there, which gets the rows of ours; of its targets there is no use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.parts.positions.absolute import Sinusoidal
from sensorium.selfsup.mae_text.method import TextMAE

transformers = pytest.importorskip("transformers")

SIZES = [  # s, V, (width, depth, heads), decoder's, mask ratio
    (3, 11, (48, 3, 3), (32, 2, 2), 0.15),
    (4, 257, (40, 2, 4), (24, 1, 2), 0.6),
    (2, 3, (24, 2, 1), (16, 1, 1), 0.5),
]
TOP = {
    "backbone.cls_token": "vit.embeddings.cls_token",
    "backbone.patch_embed.weight": "vit.embeddings.patch_embeddings.projection.weight",
    "backbone.norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.qkv": "attention.{}_proj",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def renamed(theirs: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Tensors under our names, from transformers' names."""
    found = {}
    for name in wanted:
        if name in TOP:
            found[name] = theirs[TOP[name]]
            continue
        stem, kind = name.rsplit(".", 1)
        if "blocks." in stem:
            where, rest = stem.split("blocks.")
            index, part = rest.split(".", 1)
            source = {"backbone.": "vit.layers", "decoder_": "decoder.decoder_layers"}[where]
            source = f"{source}.{index}.{BLOCK[part]}"
        else:
            source = TOP[stem]
        source = f"{source}.{kind}"
        found[name] = torch.cat([theirs[source.format(x)] for x in "qkv"]) if "{}" in source else theirs[source]
    found["backbone.patch_embed.weight"] = found["backbone.patch_embed.weight"].flatten(1).T  # [D, V, 1, 1] -> [V, D]
    return found


def pair(s, vocab, encoder, decoder, ratio):
    (width, depth, heads), (decoder_width, decoder_depth, decoder_heads) = encoder, decoder
    config = transformers.ViTMAEConfig(
        image_size=s, patch_size=1, num_channels=vocab, hidden_size=width, num_hidden_layers=depth,
        num_attention_heads=heads, intermediate_size=4 * width, decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth, decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width, mask_ratio=ratio, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.ViTMAEForPreTraining(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        theirs.vit.embeddings.patch_embeddings.projection.bias.zero_()
        for table, size in (
            (theirs.vit.embeddings.position_embeddings, width), (theirs.decoder.decoder_pos_embed, decoder_width)
        ):  # fmt: skip
            table.copy_(F.pad(Sinusoidal(size).rows(torch.arange(s * s)), (0, 0, 1, 0))[None])
    ours = TextMAE(
        vocab, s * s, width, depth, heads, decoder_width=decoder_width, decoder_depth=decoder_depth,
        decoder_heads=decoder_heads, mask_ratio=ratio,
    )  # fmt: skip
    ours.load_state_dict(renamed(theirs.state_dict(), list(ours.state_dict())))
    return ours, theirs


@pytest.mark.parametrize("s, vocab, encoder, decoder, ratio", SIZES)
def test_loss_and_gradients(s, vocab, encoder, decoder, ratio):
    torch.manual_seed(0)
    ours, theirs = pair(s, vocab, encoder, decoder, ratio)
    tokens, noise = torch.randint(vocab, (5, s * s)), torch.rand(5, s * s)
    picture = F.one_hot(tokens, vocab).float().mT.unflatten(-1, (s, s))
    out = theirs(picture, noise=noise)
    masked = out.mask.bool()
    logits = out.logits[masked].view(5, -1, vocab)
    want = F.cross_entropy(logits.flatten(0, 1), tokens[masked])
    got = ours({"tokens": tokens, "noise": noise})
    torch.testing.assert_close(got["loss"], want, atol=1e-5, rtol=0)
    right = (logits.argmax(-1) == tokens[masked].view(5, -1)).float().mean()
    torch.testing.assert_close(got["right"], right, atol=1e-6, rtol=0)
    told = logits.log_softmax(-1).gather(-1, tokens[masked].view(5, -1, 1)).squeeze(-1)
    torch.testing.assert_close(ours.masked_log_prob(tokens, masked), told, atol=1e-5, rtol=0)

    got["loss"].backward()
    want.backward()
    theirs_grad = {n: q.grad if q.grad is not None else torch.zeros_like(q) for n, q in theirs.named_parameters()}
    mine = dict(ours.named_parameters())
    for name, gradient in renamed(theirs_grad, list(mine)).items():
        torch.testing.assert_close(mine[name].grad, gradient, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 0, name
