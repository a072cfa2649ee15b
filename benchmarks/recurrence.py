"""What recurrence costs and what attention costs as texts grow: an LSTM language model beside a causal Transformer.

Both have about as many parameters (two layers of cells, four of Llama: ``recurrent_lm`` and ``causal_lm`` as they come on a
CPU), read the same bytes in float32, ``--batch`` rows at every length, so that exponents speak of the length alone:
    step       forward, loss, backward, fused AdamW: time a token, and peak memory beyond what was there before
    writing    a token after a text of N tokens, by ``generate``, of one row
Before they are timed, both are asserted to predict from what they keep of a text what they predict from the whole of it.
With FILE both are trained for S seconds at two lengths, as many tokens a step at each, and judged on held-out bytes.
Run: ``python -m benchmarks.recurrence [--lengths 128,256,512,1024,2048,4096] [--batch 4] [--rounds N] [--threads 2]
[--plot FILE]``, or ``python -m benchmarks.recurrence --quality FILE --seconds S [--quality-lengths 128,1024] [--out DIR]``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._paired import Pair, paired, peak_bytes, seconds, show, step_of
from benchmarks._plots import by_length, write
from benchmarks.parts import exponent
from sensorium.language.causal_lm.method import Cache as KeysAndValues
from sensorium.language.causal_lm.method import CausalLM
from sensorium.language.recurrent_lm.method import Cache as State
from sensorium.language.recurrent_lm.method import RecurrentLM

VOCAB = 257  # bytes and a boundary
LSTM = {"width": 128, "hidden": 224, "depth": 2}
TRANSFORMER = {"width": 128, "hidden": 336, "depth": 4, "heads": 4}
TOKENS = 2048  # a step of training for quality
WRITTEN = 32  # tokens in each round


def models() -> tuple[RecurrentLM, CausalLM]:
    """Equal within 5 % in parameters, and right about their own caches."""
    torch.manual_seed(0)
    lstm = RecurrentLM(VOCAB, LSTM["width"], LSTM["depth"], hidden=LSTM["hidden"])
    width, depth, heads, hidden = (TRANSFORMER[key] for key in ("width", "depth", "heads", "hidden"))
    transformer = CausalLM(VOCAB, width, depth, heads, hidden=hidden)
    mine, other = (sum(p.numel() for p in model.parameters()) for model in (lstm, transformer))
    print(f"LSTM {mine:,} parameters, Transformer {other:,} ({mine / other - 1:+.1%})\n")
    assert abs(mine / other - 1) < 0.05
    tokens = torch.randint(VOCAB, (2, 33))
    with torch.no_grad():
        for model, cache in ((lstm, State()), (transformer, KeysAndValues(transformer, 2, 33))):
            model.logits(tokens[:, :-1], cache=cache)  # type: ignore[arg-type]
            last = model.logits(tokens[:, -1:], cache=cache)  # type: ignore[arg-type]
            torch.testing.assert_close(last, model.logits(tokens)[:, -1:], atol=1e-5, rtol=0)
    return lstm, transformer


def writing(model: RecurrentLM | CausalLM, prompt: Tensor, most: int) -> Callable[[], Tensor]:
    """Write one more token at each call, ``most`` times; the prompt has been read."""
    tokens = model.eval().generate(prompt, most=most + 1, generator=torch.Generator().manual_seed(0))
    next(tokens)
    return lambda: next(tokens)


def written(both: Sequence[RecurrentLM | CausalLM], prompt: Tensor, rounds: int) -> list[float]:
    """Median seconds of a token of each, in turn."""
    sides = [writing(model, prompt, rounds * WRITTEN) for model in both]
    times: list[list[float]] = [[], []]
    for i in range(rounds * WRITTEN):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            times[side].append(seconds(sides[side]))
    return [statistics.median(one) for one in times]


def growth(lengths: Sequence[int], batch: int, rounds: int, plot: Path | None) -> None:
    """All tables and exponents, and where to draw them."""
    both, names = models(), ("LSTM", "Transformer")
    pairs: list[Pair] = []
    columns: dict[str, list[float]] = {}

    def keep(what: str, values: Sequence[float]) -> None:
        for name, value in zip(names, values, strict=True):
            columns.setdefault(f"{what}, {name}", []).append(value)

    for length in lengths:
        tokens = torch.randint(VOCAB, (batch, length + 1))
        steps = [
            step_of(model, lambda model=model, tokens=tokens: model({"tokens": tokens})["loss"], "cpu")
            for model in both
        ]
        keep("step MiB", [peak_bytes(one, "cpu") / 2**20 for one in steps])
        pairs.append(paired(f"LSTM beside Transformer, N = {length:,}", *steps, rounds=rounds, limit=60))
        a_token = 1e6 / (batch * length)
        keep("step µs a token", [pairs[-1].ours * a_token, pairs[-1].theirs * a_token])
        keep("ms a written token", [1e3 * one for one in written(both, tokens[:1, :-1], rounds)])
    show(pairs)
    print(f"\n| N | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for i, length in enumerate(lengths):
        print(f"| {length:,} | {' | '.join(f'{values[i]:.4g}' for values in columns.values())} |")
    if len(lengths) > 1:
        print(
            f"| grows as N to the | {' | '.join(f'{exponent(lengths, values):.2f}' for values in columns.values())} |"
        )
    if plot:
        titles = {
            "step µs a token": "Time of a training step a token, µs",
            "step MiB": "Memory of a training step, MiB",
            "ms a written token": "Time of a written token, ms",
        }
        panels = []
        for what, title in titles.items():
            curves = {name: list(zip(lengths, columns[f"{what}, {name}"], strict=True)) for name in names}
            panels.append(by_length(title, "length of the text, tokens", curves, height=300))
        write(plot, panels)


def quality(file: Path, spend: int, lengths: Sequence[int], out: Path) -> None:
    """Bits per byte after as many seconds of training, by the product's own comparison."""
    from sensorium.runs.compare import compare

    rows = [
        "| N | system | parameters | steps | tokens/s | held-out bits per byte | 5-gram |",
        "|---|---|---|---|---|---|---|",
    ]
    for length in lengths:
        shape = {"length": length, "batch_size": max(1, TOKENS // length)}
        asked = [
            ",".join([name, *(f"{key}={value}" for key, value in (settings | shape).items())])
            for name, settings in (("recurrent_lm", LSTM), ("causal_lm", TRANSFORMER))
        ]
        found = compare(asked, str(file), budget=f"{spend}s", precision="32-true", out=out / str(length))
        for run in found.runs:
            if not run.finished:
                raise SystemExit(f"{run.name}: {run.error}")
            bits = run.scores[0]
            rows.append(
                f"| {length:,} | {run.method} | {run.parameters:,} | {run.steps:,} "
                f"| {run.per_second or 0:,.0f} | {bits.value:.3f} | {bits.baselines['Kneser-Ney, 5']:.3f} |"
            )
    print("\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", default="128,256,512,1024,2048,4096", help="tokens of a row")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step, at every length")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw them by length, an SVG file")
    parser.add_argument("--quality", type=Path, metavar="FILE", help="text to train on")
    parser.add_argument("--seconds", type=int, default=600, help="of training, for each")
    parser.add_argument("--quality-lengths", default="128,1024", help="tokens of a row, when trained")
    parser.add_argument("--out", type=Path, default=Path("sensorium-recurrence"), help="folder of the comparisons")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.quality is None:
        growth([int(n) for n in given.lengths.split(",")], given.batch, given.rounds, given.plot)
    else:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)  # each run has a process of its own
        quality(given.quality, given.seconds, [int(n) for n in given.quality_lengths.split(",")], given.out)


if __name__ == "__main__":
    main()
