"""Attention by three products is torch's kernel: outputs and gradients, with every option; and it is taken where it is faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.metrics.signal import measure
from sensorium.networks.vit import ViT
from sensorium.parts.attention import sdpa as module
from sensorium.parts.attention.sdpa import LONGEST, by_products, sdpa


def products(*inputs: Any, **how: Any) -> Tensor:
    """In any precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "by_products", lambda *_: True)
        return sdpa(*inputs, **how)


def drawn(T: int, S: int, heads: int = 4, kv_heads: int = 4, dtype: torch.dtype = torch.float64) -> list[Any]:
    """q, k, v of two rows, each the transposed view that a projection gives; v is narrower."""
    torch.manual_seed(T * 1000 + S)
    shapes = ((T, heads, 8), (S, kv_heads, 8), (S, kv_heads, 6))
    return [torch.randn(2, n, h, d, dtype=dtype).transpose(1, 2).requires_grad_() for n, h, d in shapes]


def both(inputs: list[Any], **how: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients, of the products and of torch's kernel."""
    found = []
    for attend in (products, sdpa):
        y = attend(*inputs, **how)
        found.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    return found[0], found[1]


MASKS = {
    "no mask": lambda T, S: None,
    "bool": lambda T, S: torch.rand(2, 1, T, S) > 0.4,
    "of keys": lambda T, S: torch.rand(2, 1, 1, S) > 0.4,
    "a bias": lambda T, S: torch.randn(1, 4, T, S, dtype=torch.float64),
    "a bias that hides": lambda T, S: torch.randn(1, 4, T, S, dtype=torch.float64).masked_fill(torch.rand(T, S) > 0.6, -torch.inf),
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (7, 7), (17, 5), (33, 65)])
def test_products_are_torchs_attention(T: int, S: int, mask: str) -> None:
    inputs = drawn(T, S)
    ours, theirs = both(inputs, mask=MASKS[mask](T, S))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", [{"causal": True}, {"scale": 0.3}, {"causal": True, "scale": 2.0}])
def test_causal_and_scaled(how: dict) -> None:
    ours, theirs = both(drawn(19, 19), **how)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_heads_in_groups() -> None:
    ours, theirs = both(drawn(11, 11, heads=6, kv_heads=2), grouped=True, causal=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_without_heads_as_an_autoencoder_calls_it() -> None:
    inputs = [x[:, 0] for x in drawn(9, 9)]
    torch.testing.assert_close(products(*inputs), F.scaled_dot_product_attention(*inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["bool", "added"])
def test_a_query_without_visible_keys_gives_zeros_and_no_gradient(kind: str) -> None:
    inputs = drawn(6, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[2] = False
    how = mask if kind == "bool" else torch.zeros(6, 6, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    y = products(*inputs, mask=how)
    slopes = torch.autograd.grad(y.sum(), inputs)
    assert not y[:, :, 2].any()
    assert not slopes[0][:, :, 2].any()
    assert all(torch.isfinite(x).all() for x in (y, *slopes))


def test_gradients_of_a_bias() -> None:
    inputs, bias = drawn(9, 9), torch.randn(1, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    slopes = [
        torch.autograd.grad(attend(*inputs, bias).square().sum(), bias)[0]
        for attend in (products, F.scaled_dot_product_attention)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tokens", [17, 65, 197])
def test_in_half_precision_they_are_as_near_as_rounding_allows(tokens: int) -> None:
    exact = drawn(tokens, tokens)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    assert by_products(*rounded)
    y, expected = sdpa(*rounded), F.scaled_dot_product_attention(*exact)
    slopes = torch.autograd.grad(y.float().square().sum(), rounded)
    correct = torch.autograd.grad(expected.square().sum(), exact)
    for ours, theirs in zip((y, *slopes), (expected, *correct), strict=True):
        assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()


def test_dropout_leaves_out_weights() -> None:
    torch.manual_seed(0)
    q, k, v = (x.bfloat16() for x in drawn(17, 17))
    rows = torch.stack([sdpa(q, k, torch.ones_like(v), dropout=0.5) for _ in range(200)])
    assert rows.float().std() > 0.05  # without dropout each would be one
    torch.testing.assert_close(rows.float().mean(), torch.tensor(1.0), rtol=0.02, atol=0)


def test_when_they_are_taken() -> None:
    half = [x.detach().bfloat16().requires_grad_() for x in drawn(8, 8)]
    assert by_products(*half)
    assert not by_products(*drawn(8, 8))  # in float64, as in float32
    with torch.no_grad():
        assert not by_products(*half)
    assert not by_products(*(x.detach() for x in half))
    long = [torch.zeros(1, 1, LONGEST + 1, 8, dtype=torch.bfloat16, requires_grad=True)] * 3
    assert not by_products(*long)


def test_signal_still_sees_attention_in_half_precision() -> None:
    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = ViT(16, 4, 32, 2, 2)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return {"loss": self.vit.features(batch["image"]).float().square().mean()}

    rows = measure(Loss(), {"image": torch.randn(2, 3, 16, 16)})
    assert len(rows) == 2
    assert all(row["entropy"] is not None for row in rows)
    assert F.scaled_dot_product_attention is module.KERNEL
