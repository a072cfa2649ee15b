"""Linear attention: its forms are one sum, nothing looks ahead, the state stays small, random features are unbiased."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from sensorium.parts.attention import linear

NEAR = {torch.float32: 1e-5, torch.float64: 1e-12}


def draw(
    length: int, keys: int | None = None, d: int = 5, e: int = 7, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    torch.manual_seed(length)
    shapes = ((length, d), (keys or length, d), (keys or length, e))
    return [torch.randn(2, 3, *shape, dtype=dtype) for shape in shapes]


def by_hand(q: Tensor, k: Tensor, v: Tensor, causal: bool, eps: float) -> Tensor:
    """The paper's sums, a pair of tokens at a time."""
    y = torch.zeros(*q.shape[:3], v.shape[3], dtype=v.dtype)
    for i in range(q.shape[2]):
        over = torch.zeros(q.shape[:2], dtype=v.dtype)
        for j in range(i + 1 if causal else k.shape[2]):
            weight = (q[:, :, i] * k[:, :, j]).sum(-1)
            y[:, :, i] += weight[..., None] * v[:, :, j]
            over += weight
        y[:, :, i] /= over[..., None] + eps
    return y


def recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found, state = [], None
    for t in range(q.shape[2]):
        y, state = linear.step(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state)
        found.append(y)
    return torch.cat(found, dim=2)


@pytest.mark.parametrize("causal", [True, False])
def test_naive_is_the_sum_of_the_paper(causal: bool) -> None:
    q, k, v = draw(6, None if causal else 9)
    q, k = linear.elu_features(q), linear.relu_features(k)
    torch.testing.assert_close(linear.naive(q, k, v, causal=causal, eps=0.1), by_hand(q, k, v, causal, 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 7, 33])
def test_chunks_and_recurrence_equal_the_sum(length: int, dtype: torch.dtype) -> None:
    q, k, v = (x.requires_grad_() for x in draw(length, dtype=dtype))

    def run(form) -> tuple[Tensor, ...]:
        y = form(linear.elu_features(q), linear.elu_features(k), v)
        return y.detach(), *torch.autograd.grad(
            (y * torch.linspace(-1, 2, y.numel(), dtype=dtype).view_as(y)).sum(), (q, k, v)
        )

    said = run(lambda q, k, v: linear.naive(q, k, v, causal=True))
    forms = [recurrent] + [
        lambda q, k, v, c=c: linear.causal_chunks(q, k, v, chunk=c)[0] for c in (1, 2, 5, length, length + 40)
    ]
    for form in forms:
        y, *gradients = run(form)
        torch.testing.assert_close(y, said[0], atol=NEAR[dtype], rtol=0)
        for mine, theirs in zip(gradients, said[1:], strict=True):
            torch.testing.assert_close(mine, theirs, atol=10 * NEAR[dtype], rtol=0)


def test_all_keys_at_once_equal_the_sum() -> None:
    q, k, v = draw(6, 11)
    q, k = linear.elu_features(q), linear.elu_features(k)
    torch.testing.assert_close(linear.attend(q, linear.absorb(k, v)), linear.naive(q, k, v))
    torch.testing.assert_close(
        linear.attend(q, linear.absorb(k, v), eps=None), torch.einsum("bhtd,bhsd,bhse->bhte", q, k, v)
    )


def test_a_prompt_is_read_at_once_and_the_state_does_not_grow() -> None:
    q, k, v = draw(23)
    q, k = linear.elu_features(q), linear.elu_features(k)
    said = linear.naive(q, k, v, causal=True)
    head, state = linear.causal_chunks(*(x[:, :, :9] for x in (q, k, v)), chunk=4)
    torch.testing.assert_close(state, linear.absorb(k[:, :, :9], v[:, :, :9]))
    middle, state = linear.causal_chunks(*(x[:, :, 9:14] for x in (q, k, v)), state=state, chunk=3)
    found = [head, middle]
    for t in range(14, 23):
        y, state = linear.step(*(x[:, :, t : t + 1] for x in (q, k, v)), state=state)
        assert state.shape == (2, 3, 5, 8)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, dim=2), said)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_nothing_looks_ahead(chunk: int) -> None:
    q, k, v = (x[:1, :1] for x in draw(7))
    maps = jacobian(
        lambda q, k, v: linear.causal_chunks(linear.elu_features(q), linear.elu_features(k), v, chunk=chunk)[0],
        (q, k, v),
    )
    for of in maps:
        reach = of.abs().amax(dim=(0, 1, 3, 4, 5, 7))  # [T of y, T of q, k or v]
        assert reach.triu(1).max() == 0
    assert reach.tril().gt(0).sum() == 7 * 8 // 2  # each value reaches all that come after


def test_memory_of_the_backward_is_linear() -> None:
    def kept(length: int) -> int:
        q, k, v = (x.requires_grad_() for x in draw(length))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            linear.causal_chunks(q, k, v, chunk=16)
        return sum(sizes)

    assert kept(512) < 2.1 * kept(256)


def test_bfloat16_sums_are_taken_in_float32() -> None:
    q, k, v = (x.to(torch.bfloat16) for x in draw(300))
    said = linear.naive(*(linear.elu_features(x.double()) for x in (q, k)), v=v.double(), causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = linear.causal_chunks(linear.elu_features(q.float()), linear.elu_features(k.float()), v)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.double(), said, atol=1e-2, rtol=1e-2)  # the rounding of the result alone


def test_softmax_maps_weigh_to_one_and_need_no_z() -> None:
    q, k, v = draw(4, 9)
    q, k = linear.softmax_queries(q), linear.softmax_keys(k)
    plain = q @ (k.mT @ v)
    torch.testing.assert_close(linear.attend(q, linear.absorb(k, v), eps=None), plain)
    torch.testing.assert_close(linear.attend(q, linear.absorb(k, v), eps=0.0), plain)


def test_a_query_that_no_key_answers_gets_zero() -> None:
    q, k, v = draw(4)
    y, _ = linear.causal_chunks(linear.relu_features(q), torch.zeros_like(k), v)
    assert y.abs().max() == 0


@pytest.mark.parametrize("start", [0, 4])
def test_cosine_features_fade_with_the_distance(start: int) -> None:
    q, k, _ = draw(9)
    product = linear.cosine_features(q, 20, start) @ linear.cosine_features(k, 20, start).mT
    at = torch.arange(9, dtype=torch.float64)
    fade = torch.cos(math.pi / 2 * (at[:, None] - at) / 20)
    torch.testing.assert_close(product, fade * (q.relu() @ k.relu().mT))
    with pytest.raises(ValueError, match="length of 12 tokens"):
        linear.cosine_features(q, 12, 4)


def test_random_features_are_unbiased_and_vary_less_the_more_there_are() -> None:
    torch.manual_seed(0)
    d, draws = 8, 800
    q, k = torch.randn(2, 6, d, dtype=torch.float64) / 2
    said = (q * k / math.sqrt(d)).sum(-1).exp()
    spread = {}
    for count in (8, 32):
        features, found = linear.PositiveFeatures(d, count), []
        for _ in range(draws):
            features.redraw_()
            found.append((features(q) * features(k)).sum(-1) / said)
        estimates = torch.stack(found)
        error = estimates.std(0) / math.sqrt(draws)
        assert error.max() < 0.06
        assert ((estimates.mean(0) - 1).abs() < 4.5 * error).all()
        spread[count] = float(estimates.var(0).mean())
    assert spread[32] == pytest.approx(spread[8] / 4, rel=0.2)
    independent = ((q + k).square().sum(-1) / math.sqrt(d)).expm1().mean() / 8  # lemma 2, over the square of the mean
    assert spread[8] < 0.9 * independent


def test_many_random_features_come_near_softmax_attention() -> None:
    q, k, v = draw(6, d=4)
    q, k = q / 2, k / 2
    features = linear.PositiveFeatures(4, 20_000, generator=torch.Generator().manual_seed(0))
    near = linear.attend(features(q), linear.absorb(features(k), v), eps=0.0)
    torch.testing.assert_close(near, F.scaled_dot_product_attention(q, k, v), atol=0.1, rtol=0)
    torch.testing.assert_close(linear.attend(features.queries(q), linear.absorb(features(k), v), eps=0.0), near)
    assert features(q * 1e3).max() == 0  # underflow, which queries() is for
    large = linear.attend(features.queries(q * 1e3), linear.absorb(features(k), v), eps=0.0)
    assert torch.isfinite(large).all()


def test_random_features_follow_their_generator_and_are_orthogonal() -> None:
    one, two = (linear.PositiveFeatures(6, 9, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    gram = one.weight[:6] @ one.weight[:6].T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-5, rtol=0)
    one.redraw_()
    assert not torch.equal(one.weight, two.weight)
    one.load_state_dict(two.state_dict())
    assert torch.equal(one.weight, two.weight)


def test_numbers_that_do_not_fit() -> None:
    q, k, v = draw(4, 5)
    for form in (lambda: linear.naive(q, k, v, causal=True), lambda: linear.causal_chunks(q, k, v)):
        with pytest.raises(ValueError, match="got 4 and 5"):
            form()
    with pytest.raises(ValueError, match="at least 1"):
        linear.causal_chunks(q, q, v[:, :, :4], chunk=0)
    with pytest.raises(ValueError, match="one token"):
        linear.step(q, k, v)
    with pytest.raises(ValueError, match="dim and count"):
        linear.PositiveFeatures(4, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="flash-linear-attention needs Triton, which is for Linux alone")
@pytest.mark.filterwarnings("ignore:Triton is not supported")  # its naive forms need none
def test_equals_flash_linear_attention() -> None:
    """Its naive forms hold [B, T, h, d], divide q by sqrt(d) and, by default, not by z."""
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.linear_attn.naive import naive_chunk_linear_attn

    q, k, v = (x.requires_grad_() for x in draw(128, dtype=torch.float32))
    y, state = linear.causal_chunks(q, k, v, chunk=48, eps=None)
    weight = torch.randn_like(y)
    said = torch.autograd.grad((y * weight).sum(), (q, k, v))
    turned = [x.detach().transpose(1, 2).requires_grad_() for x in (q * math.sqrt(q.shape[-1]), k, v)]
    found = naive_chunk_linear_attn(*turned).transpose(1, 2)
    torch.testing.assert_close(found, y, atol=1e-4, rtol=1e-5)
    dq, dk, dv = torch.autograd.grad((found * weight).sum(), turned)
    for theirs, mine in zip((dq * math.sqrt(q.shape[-1]), dk, dv), said, strict=True):
        torch.testing.assert_close(theirs.transpose(1, 2), mine, atol=1e-4, rtol=1e-5)
    recurrence, last = naive_recurrent_gla(*turned, torch.zeros_like(turned[0]), output_final_state=True)
    torch.testing.assert_close(recurrence.transpose(1, 2), y, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(last, state[..., :-1], atol=1e-4, rtol=1e-5)
