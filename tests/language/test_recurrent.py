"""Recurrent language models: the cells' equations, causality, documents apart, writing from a state that does not grow."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sensorium.language.recurrent_lm.method import Cache, RecurrentLM
from sensorium.method import Progress

CELLS = pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])


def small(cell: Any = "lstm", **numbers: Any) -> RecurrentLM:
    torch.manual_seed(0)
    model = RecurrentLM(50, 12, 2, **{"cell": cell, "hidden": 17, **numbers}).double().eval()
    torch.nn.init.normal_(model.embed.weight)
    return model


def by_hand(model: RecurrentLM, tokens: Tensor) -> Tensor:
    """The equations of the module, token by token: logits [B, T, V]."""
    x = model.embed(tokens)
    for layer in range(model.layers.num_layers):
        w, u, b, b_ = (
            getattr(model.layers, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = x.new_zeros(len(x), model.hidden)
        out = []
        for x_t in x.unbind(1):
            given, kept = x_t @ w.mT + b, h @ u.mT + b_
            if model.cell == "rnn":
                h = (given + kept).tanh()
            elif model.cell == "lstm":
                i, f, g, o = (given + kept).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (r, z, n), (r_, z_, n_) = given.chunk(3, 1), kept.chunk(3, 1)
                z = (z + z_).sigmoid()
                h = (1 - z) * (n + (r + r_).sigmoid() * n_).tanh() + z * h
            out.append(h)
        x = torch.stack(out, 1)
    return x @ model.head.weight.mT if model.head is not None else model.proj(x) @ model.embed.weight.mT


@CELLS
@pytest.mark.parametrize("how", [{}, {"hidden": 12}, {"tied": False}], ids=["projected", "tied", "own head"])
def test_the_equations_token_by_token(cell: str, how: dict) -> None:
    model, tokens = small(cell, **how), torch.randint(50, (3, 7))
    torch.testing.assert_close(model.logits(tokens), by_hand(model, tokens))


@CELLS
def test_a_token_does_not_see_what_comes_after_and_sees_all_before(cell: str) -> None:
    model, tokens = small(cell), torch.randint(50, (2, 11))
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 50
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert ((before - after)[:, 4:].abs().amax(-1) > 1e-9).all()


@CELLS
def test_documents_in_one_row_do_not_meet(cell: str) -> None:
    model = small(cell)
    lengths = [[6, 1, 9], [16], [3, 13]]
    parts = [[torch.randint(50, (1, n)) for n in row] for row in lengths]
    rows = torch.cat([torch.cat(row, 1) for row in parts])
    documents = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])
    apart = torch.cat([torch.cat([model.logits(part) for part in row], 1) for row in parts])
    torch.testing.assert_close(model.logits(rows, documents), apart)
    mean = torch.cat([-model.log_prob(part) for row in parts for part in row if part.shape[1] > 1], 1).mean()
    found = model({"tokens": rows, "documents": documents})["loss"]
    torch.testing.assert_close(found, mean)
    weights = list(model.parameters())
    for ours, alone in zip(torch.autograd.grad(found, weights), torch.autograd.grad(mean, weights), strict=True):
        torch.testing.assert_close(ours, alone)
    other = rows.clone()
    other[0, :6] = (rows[0, :6] + 1) % 50
    assert torch.equal(model.logits(other, documents)[0, 6:], model.logits(rows, documents)[0, 6:])
    one = torch.zeros_like(documents)
    torch.testing.assert_close(model.logits(rows, one), model.logits(rows))


def numbers(cache: Cache) -> int:
    state = cache.state if isinstance(cache.state, tuple) else (cache.state,)
    return sum(part.numel() for part in state if part is not None)


@CELLS
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 3, 2]], ids=str)
def test_cached_pieces_equal_the_whole_from_a_state_that_does_not_grow(cell: str, pieces: list[int]) -> None:
    model, tokens, cache = small(cell), torch.randint(50, (3, 9)), Cache()
    found, sizes = [], set()
    for part in tokens.split(pieces, dim=1):
        found.append(model.logits(part, cache=cache))
        sizes.add(numbers(cache))
    torch.testing.assert_close(torch.cat(found, 1), model.logits(tokens))
    assert sizes == {2 * 3 * 17 * (2 if cell == "lstm" else 1)}
    assert cache.seen == 9


@CELLS
def test_what_it_writes_is_the_likeliest_after_the_whole(cell: str) -> None:
    model, prompt = small(cell), torch.randint(50, (2, 3))
    text = prompt
    for chosen in model.generate(prompt, most=8, temperature=0):
        assert torch.equal(chosen, model.logits(text)[:, -1].argmax(-1))
        text = torch.cat([text, chosen[:, None]], 1)
    assert text.shape[1] == 11


def test_generation_follows_its_generator_top_k_and_window() -> None:
    model, prompt = small(), torch.randint(50, (2, 3))

    def write(seed: int, **how: Any) -> Tensor:
        made = torch.Generator().manual_seed(seed)
        return torch.stack(list(model.generate(prompt, most=12, generator=made, **how)))

    assert torch.equal(write(0), write(0))
    assert not torch.equal(write(0), write(1))
    assert torch.equal(write(0, top_k=1), write(1, temperature=0))
    text, begin = prompt, 0
    for chosen in model.generate(prompt, most=12, temperature=0, window=5):
        if text.shape[1] - begin > 5:
            begin = text.shape[1] - 2
        assert torch.equal(chosen, model.logits(text[:, begin:])[:, -1].argmax(-1))
        text = torch.cat([text, chosen[:, None]], 1)


def test_log_prob_is_a_distribution_and_the_loss_its_mean() -> None:
    model, tokens = small("gru"), torch.randint(50, (2, 6))
    each = [model.log_prob(torch.cat([tokens[:, :-1], torch.full((2, 1), t)], 1))[:, -1] for t in range(50)]
    torch.testing.assert_close(torch.stack(each).exp().sum(0), torch.ones(2, dtype=torch.float64))
    found = model({"tokens": tokens})
    torch.testing.assert_close(found["loss"], -model.log_prob(tokens).mean())
    assert float(found["bits_per_token"]) == pytest.approx(float(found["loss"].detach()) / math.log(2))


def test_dropout_acts_in_training_alone() -> None:
    model, tokens = small("rnn", dropout=0.5), torch.randint(50, (2, 6))
    assert torch.equal(model.logits(tokens), small("rnn").logits(tokens))
    assert not torch.allclose(model.train().logits(tokens), model.logits(tokens))
    nothing = small("rnn", dropout=1.0).train()  # what leaves the last layer is dropped too
    assert torch.equal(nothing.logits(tokens), torch.zeros(2, 6, 50, dtype=torch.float64))


@CELLS
def test_it_learns_a_cycle_that_asks_for_memory(cell: Any) -> None:
    """0 0 1 0 2 repeats: after 0 come 0, 1 or 2, as what came before says."""
    torch.manual_seed(0)
    model = RecurrentLM(3, 8, 1, cell=cell, hidden=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    row = torch.tensor([0, 0, 1, 0, 2] * 6)
    tokens = torch.stack([row[i : i + 21] for i in range(5)])
    for _ in range(150):
        optimizer.zero_grad()
        model({"tokens": tokens})["loss"].backward()
        optimizer.step()
    written = torch.cat(list(model.generate(row[None, :7], most=20, temperature=0)))
    assert written.tolist() == list(itertools.islice(itertools.cycle([1, 0, 2, 0, 0]), 20))


@pytest.mark.parametrize("clip", [0.5, 0.0])
def test_gradients_are_clipped_to_a_norm(clip: float) -> None:
    model = small(clip=clip)
    (50 * model({"tokens": torch.randint(50, (2, 9))})["loss"]).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in before]).norm()
    assert norm > 1
    model.before_update(Progress(0, 0, 0.0))
    factor = clip / norm if clip else 1.0
    after = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(after, [g * factor for g in before], atol=1e-6, rtol=1e-4)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="rnn, lstm, gru"):
        small("mgu")
    with pytest.raises(ValueError, match="can't be combined"):
        small().logits(torch.zeros(1, 2).long(), torch.zeros(1, 2), Cache())
