"""Bits per byte: each token counted once, boundaries never, and the same as summing by hand."""

import math

import numpy as np
import pytest
import torch

from sensorium.judge.bits import bits_per_byte, text_baselines, windows
from sensorium.language.causal_lm.method import CausalLM


@pytest.mark.parametrize("tokens", [2, 3, 8, 9, 10, 17, 50, 51])
@pytest.mark.parametrize("length", [1, 2, 5, 8, 64])
def test_every_token_but_the_first_is_new_once(tokens: int, length: int) -> None:
    counted = np.zeros(tokens, int)
    for start, stop, new in windows(tokens, length):
        assert 0 <= start < stop <= tokens
        assert stop - start <= length + 1
        assert new <= stop - start - 1
        counted[stop - new : stop] += 1
    assert counted.tolist() == [0] + [1] * (tokens - 1)


def test_a_uniform_model_needs_log_v_bits_a_token() -> None:
    class Uniform(torch.nn.Module):
        def log_prob(self, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
            return torch.full(tokens[:, 1:].shape, -math.log(257))

    tokens = np.array([256, *range(100), 256, *range(30)], np.uint16)
    found = bits_per_byte(Uniform(), tokens, 130, length=16, boundary=256)
    assert found == {"bits_per_byte": pytest.approx(math.log2(257)), "n": 130}


def test_equals_the_sum_by_hand_where_one_window_holds_all() -> None:
    torch.manual_seed(0)
    model = CausalLM(257, 16, 1, 2, hidden=24).eval()
    first, second = np.arange(40, 60), np.arange(70, 75)
    tokens = np.concatenate([[256], first, [256], second]).astype(np.uint16)
    by_hand = 0.0
    for document in (first, second):
        row = torch.from_numpy(np.concatenate([[256], document]))[None]
        by_hand -= float(model.log_prob(row).detach().sum()) / math.log(2)
    found = bits_per_byte(model, tokens, 25, length=40, boundary=256)["bits_per_byte"]
    assert found == pytest.approx(by_hand / 25, rel=1e-5)
    short = bits_per_byte(model, tokens, 25, length=6, boundary=256, batch_size=3)["bits_per_byte"]
    assert short == pytest.approx(bits_per_byte(model, tokens, 25, length=6, boundary=256)["bits_per_byte"], rel=1e-5)


def test_baselines_order_as_they_should() -> None:
    text = b"it was the best of times, it was the worst of times. " * 8
    found = text_baselines([text], [text[:80]])
    assert found["kneser_ney"]["bits_per_byte"] < found["unigram"]["bits_per_byte"] < 8
    assert found["unigram"]["n"] == 80
