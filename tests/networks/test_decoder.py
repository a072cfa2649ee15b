"""What the decoder promises whatever its layers are: tokens or embeddings, layers that differ, memories, caches, order."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sensorium.networks.decoder import Cache, Decoder, GatedLayer, Layer
from sensorium.networks.mixing import CrossAttention, Latent, SoftmaxAttention, mixer
from sensorium.networks.text import TextTower
from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.attention.latent import LatentAttention
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import top_k
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import Learned
from sensorium.parts.positions.turning import Rotary

WIDTH, VOCAB, SEEN = 16, 40, 10
joint = partial(Residual, kind="rms")


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def layer(i: int) -> nn.Module:
    """No two alike: latents, softmax with a memory and experts, linear, a gated unit, sparse with a memory."""
    cross = CrossAttention(WIDTH, 2, memory=SEEN) if i in (1, 4) else None
    if i == 0:
        latent = Latent(LatentAttention(WIDTH, 2, latent=6, rotary=4, plain=5, value=7))
        return Layer(latent, FeedForward(WIDTH, 20), joint, WIDTH)
    if i == 3:
        return GatedLayer(nn.LayerNorm(WIDTH), GatedAttentionUnit(WIDTH, 30, shared=8))
    attention = mixer("linear" if i == 2 else "softmax", WIDTH, 4, 2, 4, length=30)
    feed = MoE(WIDTH, 12, 3, partial(top_k, k=2)) if i % 2 else FeedForward(WIDTH, 20, "gelu", bias=True)
    return Layer(attention, feed, joint, WIDTH, cross=cross)


def mixed(**numbers: Any) -> Decoder:
    torch.manual_seed(0)
    layers = [layer(i) for i in range(5)]
    model = Decoder(nn.Embedding(VOCAB, WIDTH), layers, nn.LayerNorm(WIDTH), positions=Rotary(), **numbers)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def given(rows: int = 2, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, a memory and which of it is there."""
    memory, there = torch.randn(rows, 6, SEEN, dtype=torch.float64), torch.ones(rows, 6, dtype=torch.bool)
    there[0, 4:] = False
    return torch.randint(VOCAB, (rows, length)), memory, there


def test_layers_that_differ_see_the_past_alone_and_their_caches_equal_the_whole() -> None:
    model = mixed()
    tokens, memory, there = given()
    whole, records = model.encode(tokens, memory=memory, memory_mask=there)
    assert len(records) == 1  # of the one layer of experts
    later = tokens.clone()
    later[:, 5:] = (later[:, 5:] + 1) % VOCAB
    near(model.encode(later, memory=memory, memory_mask=there)[0][:, :5], whole[:, :5])
    for pieces in ([9], [1] * 9, [4, 1, 3, 1]):
        cache = Cache(model, 2, 9, memory=memory, memory_mask=there)
        near(torch.cat([model.encode(part, cache=cache)[0] for part in tokens.split(pieces, 1)], 1), whole)
    with pytest.raises(ValueError, match="holds 9 tokens, not 10"):
        model(tokens[:, :1], cache=cache)


def test_several_rows_read_one_memory_and_go_on_from_each_other() -> None:
    model = mixed()
    tokens, memory, there = given(6)
    memory, there, order = memory[:2], there[:2], torch.tensor([2, 2, 0, 4, 3, 3])
    cache = Cache(model, 6, 9, memory=memory, memory_mask=there)
    model(tokens[:, :4], cache=cache)
    cache.reorder(order)
    rest = model(tokens[:, 4:], cache=cache)
    joined = torch.cat([tokens[order, :4], tokens[:, 4:]], 1)
    each = [memory.repeat_interleave(3, 0), there.repeat_interleave(3, 0)]
    near(rest, model(joined, memory=each[0], memory_mask=each[1])[:, 4:])
    near(model(joined, memory=memory, memory_mask=there)[:, 4:], rest)


def test_what_is_not_there_of_a_memory_is_not_read_and_all_that_is_there_is() -> None:
    model = mixed()
    tokens, memory, there = given()
    found = model(tokens, memory=memory, memory_mask=there)
    for i in range(6):
        other = memory.clone()
        other[0, i] += 1
        moved = (model(tokens, memory=other, memory_mask=there) - found).abs().amax(-1)
        assert bool((moved[0] > 1e-8).all()) == (i < 4)
        assert float(moved[1].max()) < 1e-12
    assert float((model(tokens) - found).abs().max()) > 1e-3  # without one none is read


def test_embeddings_stand_for_tokens() -> None:
    model = mixed(gain=3.0)
    tokens, *_ = given()
    near(model(3.0 * model.embed(tokens)), model(tokens))  # pyright: ignore[reportOptionalCall]
    both = torch.cat([3.0 * model.embed(tokens[:, :4]), torch.randn(2, 3, WIDTH).double()], 1)  # pyright: ignore[reportOptionalCall]
    near(model(both)[:, :4], model(tokens[:, :4]))


def test_heads_are_tied_own_or_none() -> None:
    tokens, *_ = given()
    model = mixed()
    stream, _ = model.encode(tokens)
    near(model(tokens), stream @ model.embed.weight.mT)  # pyright: ignore[reportOptionalMemberAccess]
    assert mixed(head=nn.Linear(WIDTH, 7))(tokens).shape == (2, 9, 7)
    assert mixed(head=None)(tokens).shape == (2, 9, WIDTH)


def plain(causal: bool, positions: Positions | None = None) -> Decoder:
    torch.manual_seed(0)
    layers = [
        Layer(SoftmaxAttention(WIDTH, 2, 2, 8, bias=True), FeedForward(WIDTH, 24, "gelu", bias=True), Residual, WIDTH)
        for _ in range(2)
    ]
    return Decoder(
        nn.Embedding(VOCAB, WIDTH), layers, nn.LayerNorm(WIDTH), positions=positions, head=None, causal=causal
    )


def test_without_causal_order_every_token_sees_every_other() -> None:
    model, (tokens, *_) = plain(False).double(), given()
    whole = model(tokens)
    for i in range(9):
        other = tokens.clone()
        other[:, i] = (other[:, i] + 1) % VOCAB
        assert bool(((model(other) - whole).abs().amax(-1) > 1e-9).all())
    turned = torch.randperm(9)
    near(model(tokens[:, turned]), whole[:, turned])  # without positions there is no order at all
    with pytest.raises(ValueError, match="only a causal decoder"):
        Cache(model, 2, 9)


def test_documents_in_one_row_do_not_meet() -> None:
    model = plain(True, Rotary()).double()
    tokens, *_ = given()
    documents = (torch.arange(9) >= 4).long().expand(2, -1)
    apart = torch.cat([model(tokens[:, :4]), model(tokens[:, 4:])], 1)
    torch.testing.assert_close(model(tokens, documents=documents), apart, atol=1e-6, rtol=0)  # angles are float32


def test_the_text_tower_of_clip_is_one() -> None:
    tower, model = TextTower(VOCAB, 12, WIDTH, 2, 2, hidden=24, activation="gelu"), plain(True, Learned(WIDTH, 12))
    names = {"token_embed": "embed", "pos_embed": "positions.table", "blocks": "layers"}
    inside = {
        ".norm1.": ".norm1.norm.",
        ".norm2.": ".norm2.norm.",
        ".mlp.fc1.": ".ffn.gate_up.",
        ".mlp.fc2.": ".ffn.down.",
    }
    state = {}
    for name, weight in tower.state_dict().items():
        for mine, other in (names | inside).items():
            name = name.replace(mine, other)
        state[name] = weight
    model.load_state_dict(state)
    tokens, *_ = given(3, 12)
    torch.testing.assert_close(model(tokens), tower.encode(tokens), atol=1e-6, rtol=0)


def test_what_cannot_be_is_said() -> None:
    tokens, memory, _ = given()
    for arguments, said in (
        ({"memory": memory}, "no layer has cross-attention"),
        ({"documents": tokens, "cache": Cache(plain(True), 2, 9)}, "documents can't be separated behind a cache"),
    ):
        with pytest.raises(ValueError, match=said):
            plain(True)(tokens, **arguments)
    with pytest.raises(ValueError, match="the memory is the cache's own behind a cache"):
        mixed()(tokens, memory=memory, cache=Cache(mixed(), 2, 9))
    with pytest.raises(ValueError, match="no embedding"):
        Decoder(None, [], nn.Identity(), head=None)(tokens)
    with pytest.raises(ValueError, match="a tied head shares"):
        Decoder(None, [], nn.Identity())
    for positions, kind in ((Rotary(interleaved=True), "latent"), (Positions(), "gated|latent")):
        with pytest.raises(ValueError, match=f"not with ({kind}) attention"):
            Decoder(None, [layer(0), layer(3)], nn.Identity(), head=None, positions=positions)
    batch = [Layer(SoftmaxAttention(8, 1, 1, 8), FeedForward(8, 8), partial(Residual, kind="batch"), 8)]
    with pytest.raises(ValueError, match="choose norm layer, rms, scale or none"):
        Decoder(None, batch, nn.Identity(), head=None)
    assert Decoder(None, batch, nn.Identity(), head=None, causal=False)(torch.randn(2, 3, 8)).shape == (2, 3, 8)
