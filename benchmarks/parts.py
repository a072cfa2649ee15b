"""Parts of the Transformer: how time and memory grow with the length, and experts beside transformers' own.

    memory      what attention keeps for its backward pass and takes at its peak, naive and tiled, by length
    call        ``fused`` beside a call of torch's scaled_dot_product_attention
    products    attention, forward and backward, in bfloat16 on the CPU by three products beside torch's kernel
    linear      a training step of causal linear attention in chunks beside softmax attention, by length
    decoding    a token by the recurrence of linear attention, after more and more tokens
    experts     a layer of experts, forward and backward, beside the fastest of transformers' implementations, and beside
                dense layers of as many active and of as many parameters in all
Run: ``python -m benchmarks.parts [--only memory,call,products,linear,decoding,experts] [--rounds N] [--threads 2] [--plot FILE]``;
``--plot`` draws memory, linear and decoding.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._paired import Pair, paired, peak_bytes, seconds, show
from benchmarks._plots import Curves, by_length, write
from sensorium.parts.attention import exact, linear
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.attention.tiled import tiled
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import top_k

WIDTH, TOKENS = 256, 2048
EXPERTS = ((8, 2, 512), (64, 6, 128))  # experts, active, hidden channels
TITLES = {  # of a plot and of its horizontal axis
    "memory": ("Memory of a step of attention beyond its inputs, MiB (2 heads of 32)", "length, tokens"),
    "linear": ("Time of a training step of causal attention, ms (4 heads of 32)", "length, tokens"),
    "decoding": ("Time of a token while decoding, ms (4 heads of 32)", "tokens before it"),
}


def inputs(length: int, heads: int = 4, dim: int = 32, *, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, heads, length, dim, requires_grad=True) for _ in range(3)]


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the logarithms, by least squares: how the value grows as a power of the length."""
    x, y = [math.log(v) for v in lengths], [math.log(v) for v in values]
    mx, my = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def step(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Callable[[], None]:
    def run() -> None:
        q.grad = k.grad = v.grad = None
        attend(q, k, v, causal=True).sum().backward()

    return run


def memory() -> Curves:
    """Peaks beyond the inputs, MiB."""
    lengths = (512, 1024, 2048, 4096, 8192, 16384)
    found: Curves = {"naive": [], "tiled": []}
    for length in lengths:
        for name, attend in (("naive", exact.naive), ("tiled", tiled)):
            if name == "naive" and length > 4096:  # several GB
                continue
            found[name].append((length, peak_bytes(step(attend, *inputs(length, 2)), "cpu") / 2**20))
    print("| length | naive, MiB | tiled, MiB |\n|---|---|---|")
    naive = dict(found["naive"])
    for length, mib in found["tiled"]:
        print(f"| {length:,} | {f'{naive[length]:.1f}' if length in naive else '-'} | {mib:.1f} |")
    for name, rows in found.items():
        print(f"{name}: memory grows as N^{exponent(*zip(*rows, strict=True)):.2f}")  # type: ignore[arg-type]
    return found


def call(rounds: int) -> list[Pair]:
    """``fused`` and torch's own, forward, where nothing but the call is to be seen."""
    found = []
    for length in (64, 512, 2048):
        q, k, v = (x.detach() for x in inputs(length))
        found.append(
            paired(
                f"fused, N = {length}",
                lambda q=q, k=k, v=v: exact.fused(q, k, v, causal=True),
                lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                rounds=20 * rounds,
                target=0.98,
            )
        )
    return found


def three_products(rounds: int) -> list[Pair]:
    """Steps of ``sdpa``, which takes products here, and of torch's kernel in bfloat16, at the shapes of small ViTs."""
    found = []
    for batch, heads, length, dim in ((32, 6, 17, 32), (32, 6, 65, 32), (16, 6, 197, 64), (8, 8, 512, 64)):
        q, k, v = (
            torch.randn(batch, length, heads, dim).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)
        )  # as a projection gives them

        def step(attend: Callable[..., Tensor], q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            q.grad = k.grad = v.grad = None
            y = attend(q, k, v)
            y.backward(torch.ones_like(y))

        ours, theirs = partial(step, sdpa), partial(step, F.scaled_dot_product_attention)
        found.append(paired(f"products, N = {length}", ours, theirs, rounds=3 * rounds))
    return found


def linear_step(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    assert causal
    return linear.causal_chunks(linear.elu_features(q), linear.elu_features(k), v)[0]


def linear_growth(rounds: int) -> tuple[list[Pair], Curves]:
    """Training steps of linear and of softmax attention (SDPA), causal; the curves in milliseconds."""
    lengths, found, alone = (1024, 2048, 4096, 8192, 16384, 32768), [], []
    for length in lengths:
        q, k, v = inputs(length)
        ours = step(linear_step, q, k, v)
        if length <= 8192:
            theirs = step(lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal), q, k, v)
            found.append(paired(f"linear beside softmax, N = {length:,}", ours, theirs, rounds=rounds))
            alone.append(found[-1].ours)
        else:
            ours()
            alone.append(statistics.median(seconds(ours) for _ in range(max(3, rounds // 2))))
    print(
        f"linear attention: time of a training step grows as N^{exponent(lengths, alone):.2f} from 1k to 32k (target 1.1)"
    )
    softmax = [(length, 1e3 * pair.theirs) for length, pair in zip(lengths, found, strict=False)]
    return found, {"softmax": softmax, "linear, in chunks": [(n, 1e3 * t) for n, t in zip(lengths, alone, strict=True)]}


@torch.no_grad()
def decoding(rounds: int) -> Curves:
    """Milliseconds a token after a text of so many tokens."""
    print("| tokens before | recurrence, ms | softmax with a cache, ms |\n|---|---|---|")
    found: Curves = {"softmax with a cache": [], "recurrence": []}
    for length in (256, 4096, 65536):
        q, k, v = (x.detach() for x in inputs(length))
        one = [x[:, :, -1:] for x in (q, k, v)]
        state = linear.absorb(linear.elu_features(k), v)
        ways: list[Callable[[], object]] = [
            lambda: linear.step(linear.elu_features(one[0]), linear.elu_features(one[1]), one[2], state),  # noqa: B023
            lambda: F.scaled_dot_product_attention(one[0], k, v),  # noqa: B023
        ]
        # one after the other: in turns, a long cache would empty the processor's own of what the recurrence keeps there
        times = [[seconds(way) for _ in range(20 * rounds)] for way in ways]
        ms = [1e3 * statistics.median(one) for one in times]
        print(f"| {length:,} | {ms[0]:.3f} | {ms[1]:.3f} |")
        for curve, value in zip(found.values(), reversed(ms), strict=True):
            curve.append((length, value))
    return found


def experts(rounds: int, dtypes: Sequence[torch.dtype]) -> list[Pair]:
    """Forward and backward of a layer of experts in each type."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    found = []
    for dtype in dtypes:
        for count, active, hidden in EXPERTS:
            x = torch.randn(1, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
            layer = MoE(WIDTH, hidden, count, partial(top_k, k=active)).to(dtype)

            def run(layer: Any, x: Tensor = x) -> Callable[[], None]:
                def one() -> None:
                    layer.zero_grad(set_to_none=True)
                    y = layer(x)
                    (y[0] if isinstance(y, tuple) else y).square().mean().backward()

                return one

            numbers: dict[str, Any] = {
                "hidden_size": WIDTH, "intermediate_size": hidden, "num_local_experts": count, "num_experts_per_tok": active,
            }  # fmt: skip
            theirs = {}
            for way in ("eager", "grouped_mm", "batched_mm"):
                config = MixtralConfig(**numbers)
                config._experts_implementation = way
                block = MixtralSparseMoeBlock(config).to(dtype)
                for parameter in block.parameters():
                    torch.nn.init.normal_(parameter, std=0.02)
                try:
                    run(block)()
                    theirs[way] = (seconds(run(block)), run(block))
                except (RuntimeError, ValueError, NotImplementedError):
                    continue
            best = min(theirs, key=lambda way: theirs[way][0])
            name = f"{count} experts, {active} active, {str(dtype).removeprefix('torch.')}"
            target = 1.0 if dtype == torch.float32 else 1.3
            for way in ("loop", "grouped", "batched"):
                layer.way = way
                pair = paired(f"{name}: {way} beside {best}", run(layer), theirs[best][1], rounds=rounds, target=target)
                found.append(pair)
            layer.way = None
            for what, wide in (("active", active * hidden), ("all", count * hidden)):
                dense = FeedForward(WIDTH, wide).to(dtype)
                found.append(
                    paired(f"{name} beside a dense layer of {what} parameters", run(layer), run(dense), rounds=rounds)
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="memory,call,products,linear,decoding,experts")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the experts")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw them by length, an SVG file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    wanted, pairs, curves = given.only.split(","), [], dict[str, Curves]()
    if "memory" in wanted:
        curves["memory"] = memory()
    if "call" in wanted:
        pairs += call(given.rounds)
    if "products" in wanted:
        pairs += three_products(given.rounds)
    if "linear" in wanted:
        steps, curves["linear"] = linear_growth(given.rounds)
        pairs += steps
    if "decoding" in wanted:
        curves["decoding"] = decoding(given.rounds)
    if "experts" in wanted:
        pairs += experts(given.rounds, [getattr(torch, name) for name in given.dtypes.split(",")])
    show(pairs)
    if given.plot and curves:
        write(given.plot, [by_length(*TITLES[name], found, height=300) for name, found in curves.items()])


if __name__ == "__main__":
    main()
