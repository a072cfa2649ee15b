"""FLASH as a language model, in both forms: what it promises, it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from sensorium.language.flash.method import Cache, FlashLM

FORMS = pytest.mark.parametrize("mixed", [True, False], ids=["flash", "quad"])


def small(mixed: bool = True, **numbers) -> FlashLM:
    torch.manual_seed(0)
    model = FlashLM(50, 12, 3, 4, **{"mixed": mixed, "shared": 8, **numbers})
    for name, weight in model.named_parameters():
        if "unit" in name:  # at first a unit adds next to nothing
            torch.nn.init.normal_(weight, std=0.3)
    return model.double().eval()


@FORMS
def test_a_token_does_not_see_what_comes_after(mixed: bool) -> None:
    model = small(mixed)
    tokens = torch.randint(50, (2, 11))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


@FORMS
def test_documents_in_one_row_do_not_meet(mixed: bool) -> None:
    model = small(mixed)
    parts = [torch.randint(50, (1, length)) for length in (6, 1, 9)]
    row, documents = torch.cat(parts, 1), torch.tensor([[0] * 6 + [1] + [2] * 9])
    together = model.logits(row, documents)
    apart = torch.cat([model.logits(part) for part in parts], 1)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)  # rotary tables are float32
    mean = torch.cat([-model.log_prob(part) for part in parts if part.shape[1] > 1], 1).mean()
    torch.testing.assert_close(model({"tokens": row, "documents": documents})["loss"], mean, atol=1e-5, rtol=0)
    other = row.clone()
    other[:, :6] = (row[:, :6] + 1) % 50
    assert torch.equal(model.logits(other, documents)[:, 6:], together[:, 6:])


@FORMS
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 3, 2]], ids=str)
def test_cached_pieces_equal_the_whole(pieces: list[int], mixed: bool) -> None:
    model, tokens = small(mixed), torch.randint(50, (3, 9))
    cache = Cache(model, 3, 40)
    found = [model.logits(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(found, 1), model.logits(tokens), atol=1e-6, rtol=1e-6)


@FORMS
def test_log_prob_is_a_distribution_and_the_loss_its_mean(mixed: bool) -> None:
    model, tokens = small(mixed, kind="scale"), torch.randint(50, (2, 8))
    each = torch.stack(
        [model.log_prob(torch.cat([tokens[:, :-1], torch.full((2, 1), t)], 1))[:, -1] for t in range(50)]
    )
    torch.testing.assert_close(each.exp().sum(0), torch.ones(2, dtype=torch.float64))
    found = model({"tokens": tokens})
    torch.testing.assert_close(found["loss"], -model.log_prob(tokens).mean())
    assert float(found["bits_per_token"]) == pytest.approx(float(found["loss"].detach()) / math.log(2))


@FORMS
@pytest.mark.parametrize("window", [None, 7])
def test_each_generated_token_is_the_likeliest_after_all_that_it_may_see(mixed: bool, window: int | None) -> None:
    model, prompt, begin = small(mixed), torch.randint(50, (2, 6)), 0
    text, cache = prompt, Cache(model, 3, 40)
    for chosen in model.generate(prompt, most=14, temperature=0, window=window):
        if window is not None and text.shape[1] - begin > window:
            begin = text.shape[1] - window // 2
        assert torch.equal(chosen, model.logits(text[:, begin:])[:, -1].argmax(-1))
        text = torch.cat([text, chosen[:, None]], dim=1)
    assert text.shape[1] == 20
    assert len(text.unique()) > 3
    model.logits(text, cache=cache)
    kept = [layer.past.k.shape[1] for layer in cache.layers]
    assert kept == [0 if mixed else 20] * model.depth


def test_generation_follows_its_generator_and_top_k() -> None:
    model, prompt = small(), torch.randint(50, (2, 3))

    def write(seed: int, **how) -> torch.Tensor:
        return torch.stack(list(model.generate(prompt, most=6, generator=torch.Generator().manual_seed(seed), **how)))

    assert torch.equal(write(0), write(0))
    assert not torch.equal(write(0), write(1))
    assert torch.equal(write(0, top_k=1), write(1, temperature=0))


@FORMS
def test_it_learns_a_cycle(mixed: bool) -> None:
    """2 0 1 1 3 and again: what follows a 1 takes more than the last token to know."""
    torch.manual_seed(0)
    model = FlashLM(4, 16, 2, 8, mixed=mixed, shared=8)
    cycle = torch.tensor([2, 0, 1, 1, 3]).repeat(8)
    rows = torch.stack([cycle[start : start + 21] for start in range(5)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model({"tokens": rows})["loss"]
        loss.backward()
        optimizer.step()
    written = torch.stack(list(model.generate(rows[:, :10], most=10, temperature=0)), dim=1)
    assert torch.equal(written, rows[:, 10:20])


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="even width"):
        FlashLM(9, 7, 1, 4)
    with pytest.raises(ValueError, match="kind must be"):
        FlashLM(9, 8, 1, 4, kind="batch")  # pyright: ignore[reportArgumentType]
    model, row = small(), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="behind a cache"):
        model.logits(row, row, Cache(model, 3, 40))
    with pytest.raises(ValueError, match="at least one token"):
        next(model.generate(row[:, :0]))
