"""The Transformer against torch's: same weights, same outputs and gradients, with padding of sources and targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.language.transformer import Transformer, smoothed
from sensorium.networks.decoder import Layer
from sensorium.parts.norms import Residual
from sensorium.parts.positions.absolute import Sinusoidal

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
OUTPUTS, GRADIENTS, VOCAB = 1e-5, 1e-4, 19
SIZES: list[tuple[int, tuple[int, int], int, int, int, int, int]] = [  # D, depths, heads, hidden, B, S, T
    (16, (1, 1), 2, 24, 2, 5, 7),
    (30, (2, 3), 3, 41, 3, 9, 4),
    (8, (3, 1), 1, 8, 1, 1, 2),
]


def pair(size: tuple, pre: bool, gelu: bool) -> tuple[Transformer, nn.Transformer]:
    """Ours with random weights, and torch's."""
    torch.manual_seed(0)
    width, depths, heads, hidden, *_ = size
    ours = Transformer(
        VOCAB,
        width,
        depths,
        heads,
        hidden=hidden,
        dropout=0.0,
        ffn="gelu" if gelu else "relu",
        joint=partial(Residual, placement="pre" if pre else "post"),
        final_norms=True,
        attention_bias=True,
    )
    more: dict[str, Any] = {"activation": "gelu" if gelu else "relu", "norm_first": pre, "batch_first": True}
    theirs = nn.Transformer(width, heads, depths[0], depths[1], hidden, dropout=0.0, **more)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    load(ours, theirs)
    return ours, theirs


def names(ours: Transformer, theirs: nn.Transformer) -> list[tuple[nn.Parameter, nn.Parameter, slice]]:
    """Every parameter of ours beside the one of torch's of which it is these rows."""
    found: list[tuple[nn.Parameter, nn.Parameter, slice]] = []

    def beside(mine: nn.Module, other: Any, rows: slice = slice(None)) -> None:
        found.extend((one, its, rows) for one, its in zip(mine.parameters(), other, strict=True))

    stacks: Any = ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder))
    for mine, other in stacks:
        beside(mine.norm, other.norm.parameters())
        for a, b in zip(mine.layers, other.layers, strict=True):
            assert isinstance(a, Layer)
            beside(a.attn, b.self_attn.parameters())
            beside(a.norm1.norm, b.norm1.parameters())
            beside(a.ffn.gate_up, b.linear1.parameters())
            beside(a.ffn.down, b.linear2.parameters())
            beside(a.norm2.norm, (b.norm3 if a.reads else b.norm2).parameters())
            if a.reads:
                joined = (b.multihead_attn.in_proj_weight, b.multihead_attn.in_proj_bias)
                beside(a.cross.q, joined, slice(ours.width))
                beside(a.cross.kv, joined, slice(ours.width, None))
                beside(a.cross.proj, b.multihead_attn.out_proj.parameters())
                beside(a.norm_cross.norm, b.norm2.parameters())
    return found


@torch.no_grad()
def load(ours: Transformer, theirs: nn.Transformer) -> None:
    for mine, other, rows in names(ours, theirs):
        mine.copy_(other[rows])


def texts(size: tuple) -> tuple[Tensor, Tensor]:
    """Sources [B, S] and targets [B, T + 1] of several lengths, with padding (0) behind them."""
    *_, batch, s, t = size
    source, target = torch.randint(1, VOCAB, (batch, s)), torch.randint(1, VOCAB, (batch, t + 1))
    for i in range(1, batch):
        source[i, max(1, s - 2 * i) :] = 0
        target[i, max(2, t - i) :] = 0
    return source, target


def their_logits(theirs: nn.Transformer, embed: Tensor, source: Tensor, target: Tensor) -> Tensor:
    def embedded(tokens: Tensor) -> Tensor:
        width = embed.shape[1]
        return embed[tokens] * width**0.5 + Sinusoidal(width).rows(torch.arange(tokens.shape[1]))

    T = target.shape[1]
    hidden = theirs(
        embedded(source),
        embedded(target),
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        src_key_padding_mask=source == 0,
        tgt_key_padding_mask=target == 0,
        memory_key_padding_mask=source == 0,
    )
    return hidden @ embed.mT


@pytest.mark.parametrize("pre", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("gelu", [False, True], ids=["relu", "gelu"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_loss_and_gradients_equal_those_of_torch(size: tuple, pre: bool, gelu: bool) -> None:
    ours, theirs = pair(size, pre, gelu)
    source, target = texts(size)
    embed = ours.embed.weight.detach().clone().requires_grad_(True)
    expected = their_logits(theirs, embed, source, target[:, :-1])
    torch.testing.assert_close(ours.logits(source, target[:, :-1]), expected, atol=OUTPUTS, rtol=0)
    loss = F.cross_entropy(expected.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0, label_smoothing=0.1)
    found = ours({"source": source, "target": target})["loss"]
    torch.testing.assert_close(found, loss, atol=OUTPUTS, rtol=0)
    found.backward()
    loss.backward()
    embedding = (ours.embed.weight, embed, slice(None))
    pairs = [*names(ours, theirs), embedding]
    assert {id(mine) for mine, *_ in pairs} == {id(one) for one in ours.parameters()}
    assert sum(mine.numel() for mine, *_ in pairs) == sum(one.numel() for one in [*theirs.parameters(), embed])
    for mine, other, rows in pairs:
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad[rows], atol=GRADIENTS, rtol=0)
    assert max(float(mine.grad.abs().max()) for mine, *_ in pairs if mine.grad is not None) > 0.01


def test_bfloat16_stays_near() -> None:
    """Logits of about one, through eight attentions: within 0.03 of float32's, a few of bfloat16's steps at one."""
    ours, _ = pair(SIZES[1], False, False)
    source, target = texts(SIZES[1])
    exact = ours.logits(source, target)
    rounded = ours.bfloat16().logits(source, target)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.03, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing_is_the_sum_over_tokens_and_torchs(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 5, 11, requires_grad=True), torch.randint(11, (3, 5))
    target[1, 2:] = 4
    found, nll = smoothed(logits, target, smoothing, 4)
    q = (1 - smoothing) * F.one_hot(target, 11) + smoothing / 11
    each = -(q * logits.log_softmax(-1)).sum(-1)[target != 4]
    torch.testing.assert_close(found, each.mean())
    flat = logits.flatten(0, 1), target.flatten()
    theirs = F.cross_entropy(*flat, ignore_index=4, label_smoothing=smoothing)
    torch.testing.assert_close(found, theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(nll, F.cross_entropy(*flat, ignore_index=4), atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)
