"""FLASH and FLASH-Quad beside a tuned Transformer: a training step by context length, and the time to the same quality.

As the paper reports it (Hua et al., 2022, arXiv:2202.10447, section 4): equal parameters, the same tokens a step at each
context length, speed-up in reaching the Transformer's final quality. The Transformer is ``CausalLM`` as it comes (the paper's
Transformer++: RoPE, gated feed-forward), four layers beside eight gated units, float32. Its attention is torch's fused
kernel, which the paper did not have; ``laid out`` is the same model with all scores in memory, as it was then.
``by products`` is the ratio that matrix products alone give, forward and backward; below the diagonal only where fused.
Before they are timed: FLASH is asserted to equal FLASH-Quad on a row of one chunk, the Transformer's cache its whole.
With FILE (bytes are the tokens, the last tenth held out) the Transformer is trained for S seconds, then FLASH and FLASH-Quad
for the --shares of S, ascending, until one gets to its final bits per byte: same rows in the same order, warm-up and cosine
over the seconds spent. Each takes the best of --rates after S / 10. Looking and choosing rates are not counted.
Run: ``python -m benchmarks.flash [--lengths 256,1024,4096] [--tokens 4096] [--width 128] [--rounds N] [--threads 2]``, or
``python -m benchmarks.flash --quality FILE --seconds S [--shares 0.5,1,2] [--rates 1e-3,2e-3,4e-3]``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks._paired import Pair, paired, show, step_of
from sensorium.language.causal_lm.method import Cache, CausalLM
from sensorium.language.flash.method import FlashLM
from sensorium.parts.schedules import warmup_cosine

VOCAB, LAYERS = 256, 4
HEAD = 64  # channels of the Transformer's heads
CHUNK = 256  # the paper's; a quarter of the row where that is less
LOOKS, HELD = 20, 32_768  # how often a training is judged, and on how many bytes
NAMES = ("Transformer", "FLASH", "FLASH-Quad")


def build(name: str, width: int, length: int) -> CausalLM | FlashLM:
    torch.manual_seed(0)
    if name == "Transformer":
        return CausalLM(VOCAB, width, LAYERS, max(1, width // HEAD), hidden=23 * width // 8)
    mixed = name == "FLASH"
    span = min(CHUNK, length // 4) if mixed else length
    return FlashLM(VOCAB, width, 2 * LAYERS, span, mixed=mixed, shared=width // 4)


def alike(width: int, length: int) -> dict[str, CausalLM | FlashLM]:
    """All three, equal within 5 % in parameters."""
    models = {name: build(name, width, length) for name in NAMES}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    print(
        f"N = {length:,}: {', '.join(f'{name} {count:,}' for name, count in counts.items())} parameters",
        file=sys.stderr,
    )
    assert max(counts.values()) / min(counts.values()) < 1.05
    return models


def products(name: str, width: int, length: int, *, laid_out: bool = False) -> float:
    """Floating-point operations of a token's training step in matrix products: 3 for each of the forward pass, of the fused
    attention 3.5, for its backward computes the scores again."""
    d, s, n = width, width // 4, min(CHUNK, length // 4)
    head = 3 * 2 * VOCAB * d
    if name == "Transformer":
        attention = 3 * 4 * length * d if laid_out else 3.5 * 2 * length * d
        return head + LAYERS * (3 * 2 * (4 * d * d + 3 * d * (23 * d // 8)) + attention)
    dense = 2 * (6 * d * d + d * s)
    within, across = (n, 8 * s * d) if name == "FLASH" else (length, 0)
    return head + 2 * LAYERS * 3 * (dense + 2 * within * (s + 2 * d) + across)


@torch.no_grad()
def check(width: int, chunk: int = 64) -> None:
    """FLASH of one chunk is FLASH-Quad; what the Transformer keeps of a text says the same as the text."""
    tokens = torch.randint(VOCAB, (2, chunk))
    mixed, quad = (FlashLM(VOCAB, width, 2, chunk, mixed=kind, shared=width // 4) for kind in (True, False))
    for parameter in mixed.parameters():  # at the start attention is next to nothing
        parameter.add_(torch.randn_like(parameter) * 0.1)
    weights = {key: value[:2] if ".heads." in key else value for key, value in mixed.state_dict().items()}
    quad.load_state_dict(weights)
    torch.testing.assert_close(mixed.logits(tokens), quad.logits(tokens), atol=1e-4, rtol=1e-5)
    model = build("Transformer", width, chunk)
    assert isinstance(model, CausalLM)
    cache = Cache(model, 2, chunk)
    parts = [model.logits(part, cache=cache) for part in tokens.split([chunk - 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(tokens), atol=1e-5, rtol=1e-5)


def laid_out(loss: Callable[[], Tensor]) -> Tensor:
    """The loss with all scores of attention in memory."""
    with sdpa_kernel(SDPBackend.MATH):
        return loss()


def steps(length: int, tokens: int, width: int, rounds: int) -> Iterator[tuple[Pair, float]]:
    """Both kinds of FLASH beside both Transformers at one length, and what products alone would give."""
    models = alike(width, length)
    batch = {"tokens": torch.randint(VOCAB, (max(1, tokens // length), length + 1))}
    losses = {name: lambda model=model: model(batch)["loss"] for name, model in models.items()}
    theirs = models["Transformer"]
    fused = step_of(theirs, losses["Transformer"], "cpu")
    full = step_of(theirs, partial(laid_out, losses["Transformer"]), "cpu")
    for name in NAMES[1:]:
        ours = step_of(models[name], losses[name], "cpu")
        for peer, plain in ((fused, False), (full, True)):
            title = f"{name} beside the Transformer{', laid out' * plain}, N = {length:,}"
            expected = products("Transformer", width, length, laid_out=plain) / products(name, width, length)
            yield paired(title, ours, peer, rounds=rounds, limit=60), expected


class Trained(NamedTuple):
    """(seconds, held-out bits per byte) at each look, and how many steps there were."""

    curve: list[tuple[float, float]]
    steps: int

    @property
    def final(self) -> float:
        return self.curve[-1][1]

    def reached(self, bits: float) -> float | None:
        """Seconds at the first look that was as good."""
        return next((spent for spent, value in self.curve if value <= bits), None)


@torch.no_grad()
def look(model: nn.Module, held: Tensor, batch: int) -> float:
    """Bits per byte of rows [n, N + 1], ``batch`` at a time."""
    model.eval()
    bits = [float(model({"tokens": part})["bits_per_token"]) * len(part) for part in held.split(batch)]
    model.train()
    return sum(bits) / len(held)


def train(model: nn.Module, text: Tensor, length: int, batch: int, budget: float, rate: float, looks: int) -> Trained:
    """``budget`` seconds of AdamW on rows of the first nine tenths; the clock stands while it is judged, ``looks`` times."""
    cut = len(text) * 9 // 10
    rows = torch.arange(length + 1)
    held = text[cut:][: HELD + 1].unfold(0, length + 1, length)
    decayed, plain = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    order, curve, spent, count = torch.Generator().manual_seed(0), [], 0.0, 0
    model.train()
    while spent < budget:
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup_cosine(spent / budget, 0.05, 0.1)
        starts = torch.randint(cut - length, (batch, 1), generator=order)
        model({"tokens": text[starts + rows]})["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent, count = spent + time.perf_counter() - begin, count + 1
        if spent >= min(1.0, (len(curve) + 1) / looks) * budget:
            curve.append((spent, look(model, held, batch)))
    return Trained(curve, count)


def quality(file: Path, given: argparse.Namespace) -> None:
    """The table of one trained Transformer a length and of what the others needed to get there."""
    text = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8).long()
    rates, shares = ([float(x) for x in one.split(",")] for one in (given.rates, given.shares))
    print("| N | model | rate | seconds | steps | tokens/s | final bits per byte | as good after, s | speed-up |")
    print("|---|---|---|---|---|---|---|---|---|")
    for length in (int(n) for n in given.lengths.split(",")):
        alike(given.width, length)
        batch, goal = max(1, given.tokens // length), math.inf
        for name in NAMES:
            run = partial(train, text=text, length=length, batch=batch)
            tried = {
                rate: run(build(name, given.width, length), budget=given.seconds / 10, rate=rate, looks=1).final
                for rate in rates
            }
            rate = min(tried, key=lambda one: tried[one])
            for share in [1.0] if name == "Transformer" else sorted(shares):
                budget = given.seconds * share
                done = run(build(name, given.width, length), budget=budget, rate=rate, looks=LOOKS)
                goal = done.final if name == "Transformer" else goal
                when = given.seconds if name == "Transformer" else done.reached(goal)
                said = "not reached |" if when is None else f"{when:.0f} | {given.seconds / when:.2f}"
                speed = done.steps * batch * length / done.curve[-1][0]
                print(
                    f"| {length:,} | {name} | {rate:g} | {budget:.0f} | {done.steps:,} | {speed:,.0f} | {done.final:.3f} | {said} |",
                    flush=True,
                )
                if when is not None:
                    break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default="256,1024,4096", help="tokens of a row")
    parser.add_argument("--tokens", type=int, default=4096, help="of a step, at every length")
    parser.add_argument("--width", type=int, default=128, help="channels of a token, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--quality", type=Path, metavar="FILE", help="text to train on")
    parser.add_argument("--seconds", type=float, default=600, help="of the Transformer's training")
    parser.add_argument("--shares", default="0.5,1,2", help="budgets of the others, as shares of the Transformer's")
    parser.add_argument("--rates", default="1e-3,2e-3,4e-3", help="learning rates to choose from")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    check(given.width)
    if given.quality is not None:
        quality(given.quality, given)
        return
    found = [row for n in given.lengths.split(",") for row in steps(int(n), given.tokens, given.width, given.rounds)]
    print()
    show([pair for pair, _ in found])
    print("\n| what | by products | measured |\n|---|---|---|")
    for pair, expected in found:
        print(f"| {pair.name} | {expected:.2f} | {pair.ratio:.2f} |")


if __name__ == "__main__":
    main()
