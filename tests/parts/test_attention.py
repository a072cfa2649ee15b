"""Exact attention: every kind computes what its definition says, in the memory and with the errors that it promises."""

import importlib.util
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from sensorium.parts.attention import exact, flash_triton
from sensorium.parts.attention.exact import Attend, choose, flex, fused, naive
from sensorium.parts.attention.flash_triton import flash
from sensorium.parts.attention.latent import LatentAttention, LatentCache
from sensorium.parts.attention.tiled import tiled
from sensorium.parts.attention.window import WindowAttention, same_region
from sensorium.parts.positions.rotary import rotary_table


def small_tiles(*args, **kept) -> Tensor:
    return tiled(*args, **kept, tile=4)


@pytest.fixture
def uncompiled_flex(monkeypatch: pytest.MonkeyPatch) -> Attend:
    """FlexAttention's own mask and score functions without its compiler, which takes a minute."""
    monkeypatch.setattr(exact, "_compiled_flex", lambda: torch_flex.flex_attention)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return flex


KINDS = pytest.mark.parametrize("attend", [fused, tiled, small_tiles])
SHAPES = [  # B, h, g, T, S, d, e
    (2, 4, 4, 9, 9, 8, 8),
    (2, 4, 2, 11, 11, 6, 3),
    (1, 3, 1, 7, 13, 5, 8),
    (2, 6, 3, 1, 5, 4, 4),
    (1, 2, 1, 8, 4, 4, 4),
    (3, 1, 1, 1, 1, 2, 2),
]
WAYS = ["", "causal", "mask", "bias", "lengths", "causal mask bias scale", "causal lengths bias", "mask lengths scale"]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, grad: bool = True) -> tuple[Tensor, ...]:
    B, h, g, T, S, d, e = shape
    make = torch.Generator().manual_seed(sum(shape))
    sizes = [(B, h, T, d), (B, g, S, d), (B, g, S, e)]
    return tuple(torch.randn(size, generator=make, dtype=dtype).requires_grad_(grad) for size in sizes)


def arguments(shape: tuple[int, ...], way: str, dtype: torch.dtype = torch.float32) -> dict:
    """Masks leave the queries of the middle without a key; a bias is of all heads, and of one batch entry or all."""
    B, h, _, T, S, *_ = shape
    make = torch.Generator().manual_seed(1)
    mask = torch.rand(B, 1, T, S, generator=make) > 0.4
    mask[:, :, T // 2] = False
    every = {
        "causal": True,
        "mask": mask,
        "bias": torch.randn((B if T % 2 else 1), h, T, S, generator=make, dtype=dtype).requires_grad_(),
        "lengths": [n for n in (4, 1, T - 5) if n > 0] if T > 5 else [T],
        "scale": 0.3,
    }
    return {name: every[name] for name in way.split()}


def with_gradients(attend: Attend, qkv: tuple[Tensor, ...], kept: dict) -> list[Tensor]:
    y = attend(*qkv, **kept)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    asked = [x for x in (*qkv, kept.get("bias")) if x is not None]
    return [y.detach(), *torch.autograd.grad(y, asked, weight)]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b, tolerance in zip(found, expected, [1e-5] + [1e-4] * (len(expected) - 1), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def every_case() -> list[tuple[tuple[int, ...], str]]:
    return [(shape, way) for shape in SHAPES for way in WAYS if "lengths" not in way or shape[3] == shape[4]]


@pytest.mark.parametrize(("shape", "way"), every_case(), ids=str)
def test_the_specification_is_the_definition(shape: tuple[int, ...], way: str) -> None:
    (q, k, v), kept = inputs(shape, torch.float64, False), arguments(shape, way, torch.float64)
    (B, h, g, T, S, d, _), y = shape, torch.zeros(*shape[:2], shape[3], shape[6], dtype=torch.float64)
    document = [n for n, length in enumerate(kept.get("lengths", [T])) for _ in range(length)]
    for b, i, t in ((b, i, t) for b in range(B) for i in range(h) for t in range(T)):
        total = 0.0
        for s in range(S):
            hidden = ("causal" in kept and t + S - T < s) or ("lengths" in kept and document[t] != document[s])
            if hidden or ("mask" in kept and not kept["mask"][b, 0, t, s]):
                continue
            a = float(q[b, i, t] @ k[b, i // (h // g), s]) * kept.get("scale", d**-0.5)
            if "bias" in kept:
                a += float(kept["bias"].detach().expand(B, h, T, S)[b, i, t, s])
            total += math.exp(a)
            y[b, i, t] += math.exp(a) * v[b, i // (h // g), s]
        y[b, i, t] /= total or 1.0
    torch.testing.assert_close(naive(q, k, v, **kept).detach(), y, atol=1e-12, rtol=0)


@KINDS
@pytest.mark.parametrize(("shape", "way"), every_case(), ids=str)
def test_all_kinds_are_one(attend: Attend, shape: tuple[int, ...], way: str) -> None:
    qkv, kept = inputs(shape), arguments(shape, way)
    close(with_gradients(attend, qkv, kept), with_gradients(naive, qkv, kept))


@pytest.mark.parametrize(("shape", "way"), every_case(), ids=str)
def test_flex_is_one_of_them(uncompiled_flex: Attend, shape: tuple[int, ...], way: str) -> None:
    qkv, kept = inputs(shape, grad=False), arguments(shape, way)
    if "bias" in kept:
        kept["bias"] = kept["bias"].detach()
    torch.testing.assert_close(uncompiled_flex(*qkv, **kept), naive(*qkv, **kept), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.gpu
def test_flex_compiled(gpu: torch.device) -> None:
    qkv = [x.to(gpu) for x in inputs((2, 4, 2, 37, 37, 32, 32), grad=False)]
    kept = {"causal": True, "lengths": [10, 27]}
    torch.testing.assert_close(flex(*qkv, **kept), naive(*qkv, **kept), atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize("shape", [(7,), (1, 7), (4, 7, 7), (2, 1, 1, 7)], ids=str)
def test_masks_and_biases_broadcast(attend: Attend, shape: tuple[int, ...]) -> None:
    qkv = inputs((2, 4, 2, 7, 7, 4, 4))
    make = torch.Generator().manual_seed(3)
    kept = {
        "mask": torch.rand(shape, generator=make) > 0.3,
        "bias": torch.randn(shape, generator=make).requires_grad_(),
    }
    close(with_gradients(attend, qkv, kept), with_gradients(naive, qkv, kept))


@pytest.mark.parametrize("attend", [naive, fused, small_tiles, "flex"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_are_separate_ones(attend, causal: bool, uncompiled_flex: Attend) -> None:
    attend, lengths = uncompiled_flex if attend == "flex" else attend, [3, 1, 7]
    q, k, v = inputs((2, 4, 2, 11, 11, 6, 6), grad=False)
    alone = [attend(*one, causal=causal) for one in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)]
    packed = attend(q, k, v, causal=causal, lengths=lengths)
    torch.testing.assert_close(packed, torch.cat(alone, dim=2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attend", [naive, fused, small_tiles])
def test_causal_never_looks_ahead(attend: Attend) -> None:
    q, k, v = inputs((1, 1, 1, 6, 9, 4, 4), grad=False)
    over_keys = torch.autograd.functional.jacobian(lambda k, v: attend(q, k, v, causal=True), (k, v))
    for jacobian in over_keys:
        touched = jacobian[0, 0, :, :, 0, 0].abs().sum((1, 3)) > 0  # [T, S]
        assert not touched.triu(4).any()
        assert touched.tril(3).sum() == torch.ones(6, 9).tril(3).sum()


@pytest.mark.parametrize("attend", [naive, fused, small_tiles])
@pytest.mark.parametrize("hide", ["mask", "bias", "causal"])
def test_a_query_that_sees_nothing_reads_zeros(attend: Attend, hide: str) -> None:
    q, k, v = inputs((2, 2, 1, 6, 4, 4, 4))
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[:2] = False
    bias = torch.zeros(6, 4).masked_fill(~mask, -torch.inf)
    y = attend(q, k, v, **{"mask": {"mask": mask}, "bias": {"bias": bias}, "causal": {"causal": True}}[hide])
    assert (y[:, :, :2] == 0).all()
    assert (y[:, :, 2:] != 0).all()
    for gradient in torch.autograd.grad(y.square().sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("attend", [naive, fused, small_tiles])
def test_cached_equals_whole(attend: Attend) -> None:
    q, k, v = inputs((2, 4, 2, 13, 13, 4, 4), grad=False)
    steps = [(0, 5), (5, 6), (6, 7), (7, 12), (12, 13)]
    found = [attend(q[:, :, low:high], k[:, :, :high], v[:, :, :high], causal=True) for low, high in steps]
    torch.testing.assert_close(torch.cat(found, dim=2), attend(q, k, v, causal=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("attend", [naive, fused, small_tiles])
@pytest.mark.parametrize("way", ["", "causal", "causal mask bias scale"])
def test_bfloat16(attend: Attend, way: str) -> None:
    shape = (2, 4, 2, 33, 33, 16, 16)
    qkv, kept = inputs(shape, torch.bfloat16), arguments(shape, way, torch.bfloat16)
    found = with_gradients(attend, qkv, kept)
    exactly = {name: x.float() if name == "bias" else x for name, x in kept.items()}
    expected = with_gradients(naive, tuple(x.float() for x in qkv), exactly)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, atol=2e-2 * float(b.abs().max()), rtol=0)


def test_tiles_that_nobody_sees_are_not_visited() -> None:
    q, k, v = inputs((1, 2, 1, 8, 8, 4, 4), grad=False)
    expected = naive(q, k, v, causal=True)[:, :, :4]
    k[:, :, 4:], v[:, :, 4:] = torch.nan, torch.nan  # 0 * nan would show a visit
    torch.testing.assert_close(small_tiles(q, k, v, causal=True)[:, :, :4], expected)


def test_autocast_does_not_reach_the_tiles() -> None:
    qkv = inputs((2, 4, 2, 9, 9, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(small_tiles, qkv, {"causal": True})
    close(found, with_gradients(naive, qkv, {"causal": True}))


@pytest.mark.parametrize("way", ["mask", "causal mask bias scale", "causal lengths bias"])
def test_gradients_of_tiles_by_finite_differences(way: str) -> None:
    shape = (1, 2, 1, 6, 6, 1, 2)
    kept = arguments(shape, way, torch.float64)
    bias = kept.pop("bias", None)

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return small_tiles(q, k, v, bias=bias, **kept)

    assert torch.autograd.gradcheck(run, (*inputs(shape, torch.float64), bias))


def saved_numbers(attend: Callable[..., Tensor], tokens: int, **kept) -> int:
    """How many numbers backward keeps, each storage once."""
    storages: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        attend(*inputs((1, 2, 1, tokens, tokens, 4, 4)), causal=True, **kept).sum()
    return sum(x.untyped_storage().nbytes() // x.element_size() for x in storages.values())


def test_memory_of_tiles_grows_with_the_tokens_alone() -> None:
    once = saved_numbers(tiled, 256, tile=64)
    assert once == 256 * (2 * 4 + 4 + 4 + 2 * 4 + 2)  # q, k, v, y and L
    assert saved_numbers(tiled, 512, tile=64) == 2 * once
    assert saved_numbers(naive, 512) > 3.5 * saved_numbers(naive, 256)  # the count sees what grows with the square


@pytest.mark.parametrize("attend", [naive, fused, tiled, flex, choose, flash])
def test_what_none_can_be_asked_is_refused(attend: Attend) -> None:
    with pytest.raises(TypeError, match="attention supports causal, mask, bias, lengths, scale, not casual"):
        attend(*inputs((1, 1, 1, 5, 5, 16, 16), grad=False), casual=True)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("attend", [naive, fused, tiled, flex])
@pytest.mark.parametrize("lengths", [[3, 3], [5, 0], []])
def test_lengths_that_do_not_fit_are_named(attend: Attend, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="sum to 5"):
        attend(*inputs((1, 1, 1, 5, 5, 4, 4), grad=False), lengths=lengths)


def test_where_flex_cannot_run_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="not support gradients on a CPU"):
        flex(*inputs(SHAPES[0]))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
        flex(*inputs(SHAPES[0], grad=False))
    with pytest.raises(RuntimeError, match="not 'meta'"):
        flex(*(x.to("meta") for x in inputs(SHAPES[0])))


def test_the_choice_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, longer = inputs((1, 2, 1, 6, 6, 4, 4)), inputs((1, 2, 1, 3, 6, 4, 4))
    elsewhere = tuple(x.to("meta") for x in qkv)
    assert "no mask" in choose(*qkv, causal=True).reason
    assert "3 queries x 6 keys" in choose(*longer, causal=True).reason
    assert "CPU" in choose(*qkv, lengths=[2, 4]).reason
    attend, reason = choose(*elsewhere, lengths=[2, 4])
    assert attend is fused
    assert "not 'meta'" in reason
    monkeypatch.setattr(exact, "_why_no_flex", lambda q, k, v: None)
    assert choose(*elsewhere, lengths=[2, 4]).attend is flex
    assert choose(*elsewhere, lengths=[6]).attend is fused
    assert choose(*elsewhere, lengths=[2, 4], bias=torch.zeros(6, 6)).attend is fused


def test_what_the_kernels_do_not_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = inputs((1, 2, 1, 5, 5, 16, 16))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="neither mask nor bias"):
        flash(*qkv, mask=torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="16 to 128 channels"):
        flash(*inputs((1, 2, 1, 5, 5, 8, 16)))
    with pytest.raises(ValueError, match="float64"):
        flash(*inputs((1, 2, 1, 5, 5, 16, 16), torch.float64))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="needs a GPU"):
        flash(*qkv)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="triton, which is not installed"):
        flash(*qkv)


KERNELS = """
import torch
from sensorium.parts.attention.exact import naive
from sensorium.parts.attention.flash_triton import flash

cases = [  # B, h, g, T, S, d, e, what more, largest difference
    ((1, 4, 2, 21, 21, 16, 16), dict(causal=True), torch.float32, 1e-5),
    ((2, 2, 1, 7, 19, 24, 33), dict(causal=True, scale=0.3), torch.float32, 1e-5),
    ((1, 1, 1, 19, 7, 16, 16), dict(causal=True), torch.float32, 1e-5),
    ((1, 2, 2, 17, 18, 20, 16), dict(), torch.float32, 1e-5),
    ((1, 1, 1, 20, 20, 16, 16), dict(causal=True, lengths=[17, 3]), torch.float16, 1e-2),
]
for (B, h, g, T, S, d, e), kept, dtype, most in cases:
    sizes = [(B, T, h, d), (B, S, g, d), (B, S, g, e)]
    qkv = [torch.randn(size, dtype=dtype).transpose(1, 2).requires_grad_() for size in sizes]
    weight = torch.randn(B, h, T, e, dtype=dtype)
    both = []
    for attend, more in ((naive, {}), (flash, {"tile": 16})):
        y = attend(*qkv, **kept, **more)
        both.append([y, *torch.autograd.grad(y, qkv, weight)])
    for found, expected in zip(*both):
        torch.testing.assert_close(found, expected, atol=most, rtol=0)
print("alike", len(cases))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_in_tritons_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, timeout=280)
    assert done.stdout == "alike 5\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_gpu(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an A100 and an H100, in bfloat16: to machine code that fits in the shared memory of a processor."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    targets = pytest.importorskip("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"CAUSAL": True, "TILE": 64, "d_": 64, "e_": 64, "EXACT": "tf32"}
    sizes = (
        dict.fromkeys(("L", "D"), "*fp32")
        | {"scale": "fp32", "T": "i32", "S": "i32"}
        | dict.fromkeys(constants, "constexpr")
    )
    for kernel in flash_triton._kernels():
        signature = {name: sizes.get(name, "*bf16" if name.isupper() else "i32") for name in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        target = targets.GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 2})
        assert made.asm["cubin"]
        assert made.metadata.shared <= 163 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 2, 100, 100, 64, 64), (1, 3, 1, 7, 130, 24, 33)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernels_on_a_gpu(gpu: torch.device, dtype: torch.dtype, shape: tuple[int, ...], causal: bool) -> None:
    """bfloat16 has eight bits: y is rounded once (2^-9 of its size), the weights before the product as well, and the
    gradients take two such products; norms of differences average over the signs."""
    attend = flash if gpu.type == "cuda" else fused  # a rehearsal has no kernels
    qkv = tuple(x.detach().to(gpu, dtype).requires_grad_() for x in inputs(shape))
    weight = torch.randn(*shape[:2], shape[3], shape[6], generator=torch.Generator().manual_seed(2)).to(gpu, dtype)
    both = []
    for one in (attend, naive):
        y = one(*qkv, causal=causal)
        both.append([x.float() for x in (y.detach(), *torch.autograd.grad(y, qkv, weight))])
    for i, (found, expected) in enumerate(zip(*both, strict=True)):
        if dtype == torch.float32:
            torch.testing.assert_close(found, expected, atol=1e-4 if i else 1e-5, rtol=0)
        else:
            assert (found - expected).norm() <= 2**-7 * expected.norm()


def test_a_window_sees_itself_alone() -> None:
    torch.manual_seed(0)
    layer = WindowAttention(4, 2, (2, 3), (1, 1))
    x = torch.randn(1, 6, 6, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x).sum(-1), x)
    sees = (jacobian.abs().sum((0, 3, -1)) > 0).reshape(36, 36)
    row, column = torch.arange(36) // 6, torch.arange(36) % 6
    window = (row + 1) // 2 * 10 + (column + 2) // 3  # shifted by one: borders after rows 0, 2, 4 and columns 0, 3
    assert (sees == (window[:, None] == window)).all()


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must divide the width"):
        WindowAttention(10, 3, (2, 2))
    with pytest.raises(ValueError, match="smaller than the window"):
        WindowAttention(12, 3, (2, 2), (2, 0))
    assert same_region((4, 4), (2, 2), (0, 0), torch.device("cpu")).all()


@pytest.mark.parametrize("query_latent", [None, 10])
@torch.no_grad()
def test_decoding_from_latents_is_the_whole_at_once(query_latent: int | None) -> None:
    torch.manual_seed(0)
    layer = LatentAttention(20, 3, latent=14, rotary=6, plain=8, value=5, query_latent=query_latent)
    x, table, cache = torch.randn(2, 12, 20), rotary_table(torch.arange(12), 6), LatentCache(2, 12, 14 + 6)
    steps = [(0, 6), (6, 7), (7, 8), (8, 10), (10, 12)]
    assert not layer._absorbing_is_cheaper(6, 6)
    assert layer._absorbing_is_cheaper(1, 7)
    found = [layer(x[:, a:b], (table[0][a:b], table[1][a:b]), cache) for a, b in steps]
    torch.testing.assert_close(torch.cat(found, dim=1), layer(x, table), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="holds 12 tokens, not 13"):
        layer(x[:, :1], (table[0][:1], table[1][:1]), cache)
