"""The future is told from those of others: groups, chance, and runs from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium.abilities import FuturePredictor
from sensorium.data.streams.open import Stream, Windows
from sensorium.errors import SensoriumError
from sensorium.judge import future as judging
from sensorium.selfsup.cpc_text.method import TextCPC

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py


def text(tokens: int, length: int = 10) -> Any:
    train = SimpleNamespace(fields={"tokens": None})
    return SimpleNamespace(train=train, test=np.arange(tokens), length=length, opened=SimpleNamespace(path="book.txt"))


class Knows(torch.nn.Module, FuturePredictor):
    """Right about even numbers."""

    steps = 2

    def tell(self, x: Tensor) -> Tensor:
        right = (x[:, 0] % 20 == 0).float()
        return torch.stack([right, right * 0], 1)


def test_rows_are_in_groups_without_a_rest() -> None:
    found = judging.held_sequences(text(2000), 999)
    assert found.shape == (3 * 64, 10)
    starts = found[:, 0].tolist()
    assert len(set(starts)) == len(starts)
    assert starts != sorted(starts)
    assert torch.equal(found, judging.held_sequences(text(2000), 999))
    assert judging.held_sequences(text(300), 999).shape == (30, 10)
    assert judging.held_sequences(text(100_000), 128).shape == (128, 10)
    with pytest.raises(SensoriumError, match="1 held-out sequence has no other"):
        judging.held_sequences(text(15), 99)


def test_windows_of_recordings(tmp_path: Path) -> None:
    streams = [Stream("a", np.arange(40.0).reshape(20, 2), np.zeros(20, np.int8))]
    ready = SimpleNamespace(train=Windows(streams, 5), test=tuple(streams))
    assert judging.held_sequences(ready, 99).shape == (20, 5, 2)


def test_scores_are_means_over_sequences(tmp_path: Path) -> None:
    kept = judging.Kept(tmp_path, {}, {}, lambda: None)
    run: Any = SimpleNamespace(method=Knows(), folder=tmp_path, name="run")
    first, second = judging.judge(run, text(1280), judging.Asked(progress=False), kept).scores
    assert (first.name, first.value, first.baselines) == ("next moment told", 0.5, {"chance": 1 / 64})
    assert (second.name, second.value) == ("future told", 0.25)
    assert first.error == pytest.approx(0.5 / np.sqrt(127))
    assert len(kept.outcomes["future told"]) == 128


def test_telling_is_choosing_among_a_groups_moments_at_one_time() -> None:
    torch.manual_seed(0)
    model = TextCPC(9, 12, width=6, state=5, depth=1, halvings=0, steps=3)
    tokens = torch.randint(9, (5, 12))
    with torch.no_grad():
        z, found = model.vectors(tokens), model.tell(tokens)
        c = model.gru(z)[0]
        for k, W in enumerate((layer.weight for layer in model.predict), 1):
            for b in range(5):
                right = [
                    float((z[:, t + k] @ (W @ c[b, t])).argmax() == b) for t in range(12 - k)
                ]  # fmt: skip
                assert found[b, k - 1].item() == pytest.approx(np.mean(right))


def test_a_run_on_text_is_judged(tmp_path: Path, command: Command) -> None:
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran"]
    (tmp_path / "book.txt").write_text(" ".join(words[int(i)] for i in rng.integers(0, 8, 8000)))
    out = tmp_path / "run"
    small = ("--width", "32", "--state", "32", "--length", "32", "--halvings", "0", "--batch-size", "16", "--quiet")
    asked = ("train", "cpc_text", "--data", str(tmp_path / "book.txt"), "--out", str(out), *small)
    code, said, err = command(*asked, "--budget", "60steps", "--lr", "0.005", "--judge")
    assert code == 0, err
    assert "next moment told" in said
    assert "chance" in said
    first = json.loads((out / "evaluation.json").read_text())["scores"][0]
    assert first["value"] > 2 * first["baselines"]["chance"]
    assert (out / "online.csv").read_text().splitlines()[0].endswith("next_told")
