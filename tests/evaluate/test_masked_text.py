"""Bits per masked byte: the rows and masks, the baselines by hand, and a run from the command line."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sensorium.data.source import Source
from sensorium.data.text.prepare import Prepared, prepare
from sensorium.errors import SensoriumError
from sensorium.judge import masked_text as judging
from sensorium.metrics.between import UNKNOWN, Between

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran"]
    (folder / "book.txt").write_text(" ".join(words[int(i)] for i in rng.integers(0, 8, 3000)))
    return folder / "book.txt"


@pytest.fixture(scope="module")
def ready(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Source(str(book), None, tmp_path_factory.mktemp("cache"), settings={"length": 20}))


def by_hand(tokens: list[int], vocab: int, left: int, token: int, right: int) -> float:
    """The module's equations with dictionaries."""
    q = (Counter(tokens)[token] + 1) / (len(tokens) + vocab)

    def mixed(pairs: list[tuple[Any, int]], context: Any, lower: float) -> float:
        beside = [w for h, w in pairs if h == context]
        kinds = len(set(beside))
        return (beside.count(token) + kinds * lower) / (len(beside) + kinds) if beside else lower

    one = mixed(list(pairwise(tokens)), left, q) if left != UNKNOWN else None
    other = mixed(list(zip(tokens[1:], tokens, strict=False)), right, q) if right != UNKNOWN else None
    if one is None or other is None:
        return q if one is other else one if other is None else other
    pairs = [((a, c), b) for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)]
    return mixed(pairs, (left, right), (one + other) / 2)


@pytest.mark.parametrize("count", [1, 2, 3, 60])
def test_between_is_its_equations_and_a_distribution(count: int) -> None:
    rng, vocab = np.random.default_rng(count), 5
    tokens = rng.integers(0, vocab - 1, count)  # the last is never seen
    model = Between(tokens, vocab)
    for left in range(-1, vocab):
        for right in range(-1, vocab):
            every = np.arange(vocab)
            found = model.probability(np.full(vocab, left), every, np.full(vocab, right))
            assert found == pytest.approx([by_hand(tokens.tolist(), vocab, left, w, right) for w in range(vocab)])
            assert found.sum() == pytest.approx(1)
            assert (found > 0).all()


def test_as_many_are_masked_in_every_row_and_never_a_boundary(ready: Prepared) -> None:
    held = judging.held_rows(ready, 10)
    assert held.tokens.shape == (10, 20)
    assert (held.masked.sum(1) == 3).all()
    assert held.lengths.shape == (10, 3)
    again = judging.held_rows(ready, 10)
    assert all(np.array_equal(a, b) for a, b in zip(held, again, strict=True))
    ends = SimpleNamespace(**{**vars(ready), "test": np.tile(np.array([256, 256, 256, 65, 66, 67], np.uint16), 40)})
    masked = judging.held_rows(ends, 99)  # type: ignore[arg-type]
    assert not (masked.masked & (masked.tokens == 256)).any()
    bare = SimpleNamespace(**{**vars(ready), "test": np.full(60, 256, np.uint16)})
    with pytest.raises(SensoriumError, match="too short to mask some of it"):
        judging.held_rows(bare, 99)  # type: ignore[arg-type]


def test_bits_are_of_the_masked_tokens(ready: Prepared) -> None:
    """A model that is sure of the letter "a" alone."""

    class Sure(torch.nn.Module):
        def masked_log_prob(self, tokens: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
            chosen = tokens[masked].view(len(tokens), -1)
            return torch.where(chosen == ord("a"), math.log(0.5), math.log(1 / 16))

    held = judging.held_rows(ready, 40)
    bits = judging.bits_of(Sure(), held, "cpu")
    letters = held.tokens[held.masked].reshape(bits.shape)
    assert bits == pytest.approx(np.where(letters == ord("a"), 1.0, 4.0))


def test_neighbors_tell_more_than_frequencies(ready: Prepared) -> None:
    found = judging.baselines(ready, judging.held_rows(ready, 100))
    assert 0 < found["between neighbors"] < found["unigram"] - 0.5 < 8


def test_it_is_trained_and_judged(book: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run"
    small = ("--width", "32", "--depth", "1", "--length", "32", "--batch-size", "16", "--lr", "0.005", "--quiet")
    code, said, err = command(
        "train", "mae_text", "--data", str(book), "--out", str(out), *small, "--budget", "60steps", "--judge"
    )
    assert code == 0, err
    for word in ("bits per masked byte", "unigram", "between neighbors"):
        assert word in said
    first = json.loads((out / "evaluation.json").read_text())["scores"][0]
    assert first["value"] < first["baselines"]["unigram"]
    assert len(np.load(out / "outcomes.npz")["bits per masked byte"]) > 10
    rows = (out / "online.csv").read_text().splitlines()
    assert rows[0].endswith("masked_bits")
    assert float(rows[1].split(",")[-1]) > float(rows[-1].split(",")[-1])
