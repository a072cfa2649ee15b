"""Exact attention of the package's own kernels against torch's fused kernel: the same outputs, then time.

triton is FlashAttention-2 as Triton kernels, flex torch's FlexAttention, tiled the online softmax in plain torch. bfloat16,
batches of 32,768 tokens a head; forward pass, and forward with backward. The error is that of the output against scores in
float32, relative in norm, beside that of SDPA. A dry run is Triton's interpreter in float32, and FlexAttention uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._gpu.here import Here, each, ratio
from benchmarks._paired import paired
from sensorium.parts.attention import exact
from sensorium.parts.attention.flash_triton import flash
from sensorium.parts.attention.tiled import tiled

SHAPES = ((197, False), (1024, True), (4096, True))  # tokens, causal
HEADS, CHANNELS, TOKENS = 12, 64, 32_768
# FlexAttention is the last, as its compiler takes the longest.
KINDS: dict[str, Callable[..., Tensor]] = {"triton": flash, "tiled": tiled, "flex": exact.flex}


def operations(q: Tensor, causal: bool) -> float:
    """Of the two matrix products of a forward pass; below the diagonal only where causal."""
    B, h, N, d = q.shape
    return 4 * B * h * N * N * d / (2 if causal else 1)


def step(attend: Callable[..., Tensor], qkv: list[Tensor], weight: Tensor, wait: Callable[[], None]) -> None:
    for x in qkv:
        x.grad = None
    attend(*qkv).backward(weight)
    wait()


def forward(attend: Callable[..., Tensor], qkv: list[Tensor], wait: Callable[[], None]) -> None:
    attend(*qkv)
    wait()


def compare(here: Here, kind: str, tokens: int, causal: bool, limit: float) -> None:
    """One kind at one length; tells its row."""
    dtype, heads, batch = (torch.float32, 2, 1) if here.dry else (torch.bfloat16, HEADS, max(1, TOKENS // tokens))
    size = (batch, heads, 20 if here.dry else tokens, 16 if here.dry else CHANNELS)
    make = torch.Generator(here.device).manual_seed(0)
    qkv = [torch.randn(size, generator=make, device=here.device, dtype=dtype).requires_grad_() for _ in range(3)]
    weight = torch.randn(size, generator=make, device=here.device, dtype=dtype)
    more: dict[str, Any] = {"tile": 16} if here.dry and kind == "triton" else {}
    ours = partial(KINDS[kind], causal=causal, **more)
    theirs = partial(F.scaled_dot_product_attention, is_causal=causal)
    plain = [x.detach() for x in qkv]
    true = exact.naive(*(x[:1, :2].float() for x in plain), causal=causal)
    errors = [float((f(*plain)[:1, :2].float() - true).norm() / true.norm()) for f in (ours, theirs)]
    if errors[0] > 2 * errors[1] + 2**-9:  # the output itself is rounded to eight bits
        raise SystemExit(f"{kind} attention of {tokens} tokens is wrong: {errors[0]:.2g} off, SDPA {errors[1]:.2g}")
    asked = {"rounds": 3 if here.dry else 40, "limit": limit}
    calls = (partial(forward, f, plain, here.wait) for f in (ours, theirs))
    ahead = paired("forward", *calls, **asked)
    figure, numbers = f"forward {ratio(ahead)}", {"forward": ahead.ratio, "ours_ms": 1e3 * ahead.ours}
    if here.device.type == "cuda" or kind != "flex":  # FlexAttention has no gradients on a CPU
        steps = (partial(step, f, qkv, weight, here.wait) for f in (ours, theirs))
        whole = paired("step", *steps, **asked)
        figure += f", forward and backward {ratio(whole)}"
        numbers |= {"step": whole.ratio, "step_ms": 1e3 * whole.ours}
    rate = operations(qkv[0], causal) / ahead.ours / 1e12
    figure += f"; {rate:.3g} TFLOP/s forward; error {errors[0]:.1e} (SDPA {errors[1]:.1e})"
    here.tell(f"{kind}-{tokens}", figure, tflops=rate, error=errors[0], error_sdpa=errors[1], **numbers)


def measure(here: Here) -> None:
    if here.dry:
        from torch.nn.attention import flex_attention

        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
        exact._compiled_flex = lambda: flex_attention.flex_attention
    todo = [(kind, *shape) for kind in KINDS for shape in SHAPES]

    def one(kind: str, tokens: int, causal: bool) -> None:
        begun = todo.index((kind, tokens, causal))
        # Two pairs each, and as much again for compiling.
        compare(here, kind, tokens, causal, here.left / (len(todo) - begun) / 4)

    each(todo, one)
