"""MAE of text by itself: what reaches a prediction, what is refused, and that it learns."""

from __future__ import annotations

import pytest
import torch

from sensorium.abilities import abilities_of
from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.parts.positions.turning import in_time
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.mae_text.method import TextMAE

BOOK = TextSituation(257, 40, 100)


def small(vocab=7, context=12, **more) -> TextMAE:
    torch.manual_seed(0)
    given = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.3} | more
    return TextMAE(vocab, context, 32, 2, 2, **given)


def masks(rows, length, count):
    return torch.rand(rows, length).argsort(1).argsort(1) < count


def test_what_it_offers():
    method = small()
    assert abilities_of(method) == ("TextEncoder", "MaskedLanguageModel")
    assert (method.vocab, method.context, method.dim) == (7, 12, 32)
    assert method.features(torch.randint(7, (3, 9))).shape == (3, 32)


@pytest.mark.parametrize("count", [1, 5, 11])
def test_masked_tokens_are_not_seen_and_make_a_distribution(count):
    method, masked = small().eval(), masks(4, 12, count)
    tokens = torch.randint(7, (4, 12))
    before = method.masked_log_prob(tokens, masked)
    assert before.shape == (4, count)
    total = 0.0
    for value in range(7):  # each masked place holds this value in turn, and what is masked beside it another one
        total = total + method.masked_log_prob(tokens.masked_fill(masked, value), masked).exp()
    torch.testing.assert_close(total, torch.ones(4, count), atol=1e-5, rtol=0)
    if count < 11:
        seen = (~masked).float().argmax(1)
        other = tokens.clone()
        other[torch.arange(4), seen] = (other[torch.arange(4), seen] + 1) % 7
        assert (method.masked_log_prob(other, masked) != before).any(1).all()


def test_the_loss_is_the_mean_of_what_it_says_of_masked_tokens():
    method, noise, tokens = small().eval(), torch.rand(4, 12), torch.randint(7, (4, 12))
    masked = noise.argsort(1).argsort(1) >= method.kept(12)
    want = -method.masked_log_prob(tokens, masked).mean()
    torch.testing.assert_close(method({"tokens": tokens, "noise": noise})["loss"], want, atol=1e-6, rtol=0)


def test_only_distances_matter():
    """Queries and keys are rotated by their places: moved alike, tokens give the same products."""
    method = small().eval()
    x, places = torch.randn(2, 5, 32), torch.tensor([[0, 7, 3, 4, 11], [2, 1, 0, 9, 5]])
    block = method.backbone.blocks[0]
    near, far, other = (block(x, None, in_time(at, 16)) for at in (places, places + 40, places * 2))
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    assert (near - other).abs().max() > 1e-3


def test_it_learns_what_stands_between():
    method = small(decoder_width=32)
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    torch.manual_seed(1)
    for _ in range(150):
        tokens = (torch.randint(7, (32, 1)) + torch.arange(12)) % 7  # each is the next of that before
        out = method({"tokens": tokens})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["right"] > 0.8


def test_what_cannot_work_is_refused():
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    for masked in (torch.ones(2, 4), torch.zeros(2, 4), torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])):
        with pytest.raises(ValueError, match="every row must have as many masked tokens"):
            small().masked_log_prob(tokens, masked.bool())
    for given, said in (
        ({"mask_ratio": 0.0}, "mae_text: mask_ratio 0.0 masks none of 40"),
        ({"mask_ratio": 0.99}, "mae_text: mask_ratio 0.99 keeps 0"),
        ({"positions": "learned"}, "mae_text: positions must be one of rotary, sinusoids, got .learned."),
        (
            {"width": 6, "heads": 2},
            "mae_text: rotated heads have an even number of channels: a width of 6 in 2 heads has not",
        ),
        ({"decoder_width": 33}, "mae_text: rotated heads have an even number of channels: the decoder's have 33"),
    ):
        with pytest.raises(SensoriumError, match=said):
            make_recipe("mae_text", BOOK, given)
