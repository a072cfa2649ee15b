"""Kinds of attention as layers of a stack: what positions do to them, and what their caches keep."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from sensorium.networks.decoder import Cache, Decoder, Layer
from sensorium.networks.mixing import AttentionKind, LinearAttention, Seen, mixer
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.norms import Residual
from sensorium.parts.positions.turning import Rotary


@pytest.mark.parametrize("kind", ["linear", "relu", "cosformer"])
def test_scores_of_linear_attention_depend_on_distances_alone(kind: AttentionKind) -> None:
    """The same query and the same key at every place: what a token reads of another, over what it reads of itself."""
    torch.manual_seed(0)
    length, dim = 24, 8
    attention = cast(LinearAttention, mixer(kind, dim, 1, 1, dim, length=length))
    q, k = torch.randn(2, 1, 1, 1, dim, dtype=torch.float64).expand(2, 1, 1, length, dim)
    v = torch.eye(length, dtype=torch.float64)[None, None]  # what is read is the weight of each key
    given: Any = lambda x, seen, turn: (q, k, v)  # noqa: E731
    attention.project, attention.proj = given, cast(Any, nn.Identity())
    positions, at = Rotary(), torch.arange(length)
    decoder = Decoder(None, [], nn.Identity(), positions=positions, head=None)
    seen = Seen(positions, at, at, causal=True, turns=decoder.turns(at))
    weight = attention(q[:, 0], seen)[0].double()
    score = weight / weight.diagonal()[:, None]
    for away in range(length):
        each = score.diagonal(-away)
        torch.testing.assert_close(each, each[:1].expand_as(each), atol=1e-4, rtol=0)
    assert float((score[-1, :-1] - score[-1, -1]).abs().max()) > 0.1
    assert not bool(weight.triu(1).any())


def stack(kind: AttentionKind) -> Decoder:
    torch.manual_seed(0)
    layers = [
        Layer(mixer(kind, 16, 2, 1, 8, length=24), FeedForward(16, 20), lambda width: Residual(width, kind="rms"), 16)
        for _ in range(2)
    ]
    return Decoder(nn.Embedding(30, 16), layers, nn.LayerNorm(16), positions=Rotary()).double().eval()


@pytest.mark.parametrize("kind", ["softmax", "linear", "relu", "performer", "cosformer", "gau", "flash"])
def test_rows_of_a_cache_go_on_from_others(kind: AttentionKind) -> None:
    model, tokens, order = stack(kind), torch.randint(30, (4, 12)), torch.tensor([2, 2, 0, 3])
    cache = Cache(model, 4, 12)
    model(tokens[:, :7], cache=cache)
    cache.reorder(order)
    rest = model(tokens[:, 7:], cache=cache)
    joined = torch.cat([tokens[order, :7], tokens[:, 7:]], dim=1)
    torch.testing.assert_close(rest, model(joined)[:, 7:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["softmax", "linear", "relu", "performer", "cosformer"])
def test_padding_is_not_seen(kind: AttentionKind) -> None:
    """What stands in a padded place changes nothing at the places that are real, whole and behind a cache."""
    model, tokens = stack(kind), torch.randint(30, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :2], mask[1, 6:] = False, False
    other = torch.where(mask, tokens, (tokens + 1) % 30)
    found, changed = model(tokens, mask=mask), model(other, mask=mask)
    torch.testing.assert_close(found[mask], changed[mask], atol=1e-10, rtol=0)
    cache = Cache(model, 2, 9)
    pieces = [
        model(t, mask=m, cache=cache) for t, m in zip(tokens.split([5, 1, 3], 1), mask.split([5, 1, 3], 1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(pieces, 1)[mask], found[mask], atol=1e-10, rtol=0)


def test_gated_units_refuse_what_they_cannot_do() -> None:
    model, tokens = stack("gau"), torch.randint(30, (2, 5))
    with pytest.raises(ValueError, match="don't support padding"):
        model(tokens, mask=tokens > 3)
    model.causal = False
    with pytest.raises(ValueError, match="the stack is not causal"):
        model(tokens)
