"""What the Transformer promises: causality, padding that changes nothing, decoding equal to the whole, an exact search."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sensorium.language.transformer import Transformer, learning_rate
from sensorium.parts.beam import beam_search, length_penalty
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import Learned
from sensorium.parts.positions.relative import T5, ALiBi, Shaw
from sensorium.parts.positions.turning import Rotary

PADDING, BEGIN, END = 0, 1, 2
KINDS: dict[str, Any] = {
    "published": dict,
    "rope, pre": lambda: {
        "positions": Rotary(),
        "joint": partial(Residual, kind="rms"),
        "final_norms": True,
        "ffn": "swiglu",
    },
    "learned": lambda: {"positions": Learned(16, 40)},
    "t5": lambda: {"positions": T5(2)},
    "alibi": lambda: {"positions": ALiBi(2)},
    "shaw": lambda: {"positions": Shaw(8, 3)},
    "no positions": lambda: {
        "positions": Positions(),
        "joint": tuple(partial(Residual, placement="deepnorm", alpha=alpha) for alpha in (1.5, 2.5)),
    },
}
EVERY = pytest.mark.parametrize("name", KINDS)


def small(name: str = "published", vocab: int = 20, std: float = 0.3, **numbers: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(vocab, 16, (2, 2), 2, **{"hidden": 24, **KINDS[name](), **numbers}).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def texts(*shape: int, vocab: int = 20) -> Tensor:
    return torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(1))


def writer() -> Transformer:
    """Over 8 tokens, with norms that leave the texts apart: it ends some of them early and others never."""
    torch.manual_seed(0)
    model = Transformer(8, 16, (2, 2), 2, hidden=24).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.embed.weight)
    return model


def near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@EVERY
def test_a_target_token_sees_all_of_the_source_and_of_the_target_what_came_before(name: str) -> None:
    model, source, target = small(name), texts(2, 7), texts(2, 9)
    whole = model.logits(source, target)
    later = target.clone()
    later[:, 5] = (later[:, 5] - 2) % 17 + 3
    moved = (model.logits(source, later) - whole).abs().amax(-1)
    assert bool((moved[:, :5] < 1e-12).all())
    assert bool((moved[:, 5:] > 1e-6).all())
    for i in range(7):
        other = source.clone()
        other[:, i] = (other[:, i] - 2) % 17 + 3
        assert bool(((model.logits(other, target) - whole).abs().amax(-1) > 1e-7).all())


@EVERY
def test_padding_changes_nothing(name: str) -> None:
    model, source, target = small(name), texts(1, 5), texts(1, 7)
    batch = {"source": torch.zeros(2, 9).long(), "target": torch.zeros(2, 10).long()}
    batch["source"][0, :5], batch["target"][0, :7] = source, target
    batch["source"][1], batch["target"][1] = texts(9), texts(10)
    near(model.logits(batch["source"], batch["target"])[:1, :7], model.logits(source, target))
    near(model.log_prob(batch["source"], batch["target"])[:1, :6], model.log_prob(source, target))
    assert not model.log_prob(batch["source"], batch["target"])[0, 6:].any()
    one, two = batch["source"][1:], batch["target"][1:]
    plain = small(name, smoothing=0.0)
    apart = torch.cat([-plain.log_prob(source, target), -plain.log_prob(one, two)], 1).mean()
    found = plain(batch)
    near(found["loss"], apart)
    assert float(found["bits_per_token"]) == pytest.approx(float(apart.detach()) / math.log(2))


@pytest.mark.parametrize("name", ["published", "shaw"])
def test_a_token_that_may_see_nothing_reads_zeros(name: str) -> None:
    """Padding in front of a target, and a source of padding alone: numbers, and finite gradients."""
    model, source, target = small(name), texts(2, 4), texts(2, 6)
    source[0], target[1, :2] = PADDING, PADDING
    model({"source": source, "target": target})["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@EVERY
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 3, 2]], ids=str)
def test_cached_pieces_equal_the_whole(name: str, pieces: list[int]) -> None:
    model, source, target = small(name), texts(3, 6), texts(3, 9)
    source[1, 4:], target[2, 5:] = PADDING, PADDING
    cache = model.new_cache(source, 9)
    found = [model.extend(part, cache) for part in target.split(pieces, dim=1)]
    near(torch.cat(found, 1), model.logits(source, target))
    with pytest.raises(ValueError, match="holds 9 tokens, not 10"):
        model.extend(target[:, :1], cache)


def test_a_cache_holds_several_targets_of_a_source_in_any_order() -> None:
    model, source, target = small(), texts(2, 6), texts(6, 7)
    source[1, 4:] = PADDING
    cache, order = model.new_cache(source, 7, beam=3), torch.tensor([2, 2, 0, 4, 3, 3])
    model.extend(target[:, :4], cache)
    cache.reorder(order)
    joined = torch.cat([target[order, :4], target[:, 4:]], 1)
    near(model.extend(target[:, 4:], cache), model.logits(source.repeat_interleave(3, 0), joined)[:, 4:])


def test_beam_1_is_greedy() -> None:
    model, source = writer(), texts(8, 6, vocab=8)
    source[2, 3:] = PADDING
    found, score = model.search(source, begin=BEGIN, end=END, beam=1, most=12)
    lengths = set()
    for row, one, said in zip(source, found, score, strict=True):
        text = torch.tensor([[BEGIN]])
        while text.shape[1] < 13 and text[0, -1] != END:
            logits = model.logits(row[None], text)[:, -1]
            logits[:, PADDING] = -torch.inf
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
        n = text.shape[1] - 1
        lengths.add(n)
        assert torch.equal(one[0, :n], text[0, 1:])
        assert not one[0, n:].any()
        near(said[0], model.log_prob(row[None], text).sum() / ((5 + n) / 6) ** 0.6)
    assert len(lengths) > 1


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_as_large_as_all_texts_ranks_them_exactly(alpha: float) -> None:
    """All texts of three tokens at most over begin, end and two others: 1 + 3 + 9 that end, and 27 that are cut off."""
    model, most = small(vocab=5, std=0.4), 3
    source = texts(2, 4, vocab=5)
    every = []
    for n in range(most + 1):
        for body in itertools.product([BEGIN, 3, 4], repeat=n):
            every.append([*body, END] if n < most else list(body))
    assert len(every) == 40
    found, score = model.search(source, begin=BEGIN, end=END, beam=len(every) + 3, alpha=alpha, most=most)
    for row, texts_found, scores in zip(source, found, score, strict=True):
        exact = {}
        for text in every:
            p = model.log_prob(row[None], torch.tensor([[BEGIN, *text]])).sum()
            exact[tuple(text)] = float(p.detach()) / ((5 + len(text)) / 6) ** alpha
        ranked = sorted(exact, key=lambda text: -exact[text])
        padded = torch.tensor([[*text, *[PADDING] * (most - len(text))] for text in ranked])
        assert torch.equal(texts_found[:40], padded)
        near(scores[:40], torch.tensor([exact[text] for text in ranked], dtype=torch.float64))
        assert bool((scores[40:] == -torch.inf).all())


def test_a_search_of_several_sources_is_that_of_each_and_always_the_same() -> None:
    model, source = writer(), texts(4, 6, vocab=8)
    source[1, 2:], source[3, 5:] = PADDING, PADDING
    how = {"begin": BEGIN, "end": END, "beam": 3, "most": 9}
    found, score = model.search(source, **how)
    again = model.search(source, **how)
    assert torch.equal(found, again[0])
    assert torch.equal(score, again[1])
    assert bool((score.diff(dim=1) < 0).all())
    for i, row in enumerate(source):
        alone, its = model.search(row[row != PADDING][None], **how)
        n = min(alone.shape[2], found.shape[2])
        assert torch.equal(found[i, :, :n], alone[0, :, :n])
        assert not found[i, :, n:].any()
        near(score[i], its[0])
    lengths = (found != PADDING).sum(-1)
    assert len(lengths.unique()) > 1
    begun = torch.cat([torch.full((12, 1), BEGIN), found.flatten(0, 1)], 1)
    p = model.log_prob(source.repeat_interleave(3, 0), begun).sum(1).view(4, 3)
    near(score, p / length_penalty(lengths.double(), 0.6))


def test_a_wider_beam_sees_past_the_first_token() -> None:
    """3 is the likelier beginning, but 4 leads to the likelier text; a long text is favored by alpha."""
    p = {1: [0.0, 0.0, 0.0, 0.6, 0.4], 3: [0.0, 0.0, 0.5, 0.25, 0.25], 4: [0.0, 0.0, 1.0, 0.0, 0.0]}
    table = torch.tensor([p.get(token, [0.2] * 5) for token in range(5)]).log()

    def search(beam: int, alpha: float) -> list[int]:
        def step(rows: Tensor | None, tokens: Tensor) -> Tensor:
            return table[tokens]

        first = torch.tensor([BEGIN])
        return beam_search(step, first, end=END, beam=beam, alpha=alpha, most=4, fill=0)[0][0, 0].tolist()

    assert search(1, 0.0) == [3, 2]
    assert search(2, 0.0)[:2] == [4, 2]
    assert search(8, 6.0) == [3, 3, 4, 2]


def test_the_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 512, 4000) for step in range(1, 10_001)]
    assert max(rates) == rates[3999] == pytest.approx((512 * 4000) ** -0.5)
    assert rates[999] == pytest.approx(rates[3999] / 4)
    assert rates[9999] == pytest.approx(512**-0.5 * 0.01)
    with pytest.raises(ValueError, match="from 1"):
        learning_rate(0, 512)


def test_it_learns_to_reverse() -> None:
    torch.manual_seed(0)
    model = Transformer(9, 32, (1, 1), 4, hidden=64, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate(i + 1, 32, 100))

    def some(count: int) -> tuple[Tensor, Tensor]:
        source, target = torch.zeros(count, 4).long(), torch.zeros(count, 6).long()
        target[:, 0] = BEGIN
        for i in range(count):
            n = 2 + i % 3
            source[i, :n] = torch.randint(3, 9, (n,))
            target[i, 1 : n + 1], target[i, n + 1] = source[i, :n].flip(0), END
        return source, target

    for _ in range(250):
        optimizer.zero_grad()
        source, target = some(48)
        model({"source": source, "target": target})["loss"].backward()
        optimizer.step()
        rate.step()
    source, target = some(30)
    found, _ = model.eval().search(source, begin=BEGIN, end=END, beam=2, most=8)
    right = (torch.nn.functional.pad(found[:, 0], (0, 8 - found.shape[2]))[:, :5] == target[:, 1:]).all(1)
    assert float(right.float().mean()) > 0.9


def test_dropout_acts_in_training_alone() -> None:
    model, source, target = small(dropout=0.5), texts(2, 5), texts(2, 6)
    near(model.logits(source, target), small(dropout=0.0).logits(source, target))
    assert not torch.allclose(model.train().logits(source, target), model.logits(source, target))


def test_without_padding_every_token_is_one() -> None:
    model, source, target = small(padding=None), texts(2, 5), texts(2, 6)
    near(model.logits(source, target), small().logits(source, target))
    source[:, 3] = PADDING
    assert not torch.allclose(model.logits(source, target), small().logits(source, target))
    found, _ = model.search(source, begin=BEGIN, end=END, beam=2, most=4)
    assert found.shape[:2] == (2, 2)


def test_each_stack_may_join_the_stream_in_its_own_way() -> None:
    model = small("no positions")
    for stack, alpha in ((model.encoder, 1.5), (model.decoder, 2.5)):
        assert {one.alpha for one in stack.modules() if isinstance(one, Residual)} == {alpha}


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="heads 3"):
        Transformer(9, 16, (1, 1), 3, hidden=8)
    with pytest.raises(ValueError, match="beam 0"):
        small().search(texts(1, 3), begin=BEGIN, end=END, beam=0)
