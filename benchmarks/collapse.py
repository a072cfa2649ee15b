"""Whether methods that learn without labels collapse in small batches: every one of them on CIFAR-10 files, 64 pictures a step, a
minute each.

Runs (or, where OUT holds finished runs, reads) the comparison and prints a table, and a line a check: the linear probe is above that
of raw pixels and of the method's own network with random weights, and the monitor of collapse does not warn where training ends.
Spread (1 on a uniform sphere, 0 when all features are alike) is the monitor's last.
Run: python -m benchmarks.collapse [METHODS] [--batch-size 64] [--budget 1m] [--on cifar10|fashion-mnist] [--limit N] [--out DIR];
alone, for the budget is a time. Of fewer pictures (``--limit``) nothing is checked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.learning import DATA, SETS, above, value
from sensorium.runs.compare import alike, compare
from sensorium.runs.results import Results, RunResult

PROBE = "linear, 100%"
WARNED = "features have collapsed"  # what the monitor's note begins with


def warnings_of(run: RunResult) -> list[str]:
    """The monitor's."""
    return [note for note in run.notes if note.startswith(WARNED)]


def spread(run: RunResult) -> float | None:
    """The last that was looked at."""
    known = [row["spread"] for row in run.curve if row.get("spread") is not None]
    return known[-1] if known else None


def table(results: Results) -> str:
    """Probes in percent, as Markdown."""
    columns = ["", "images seen", PROBE, "raw pixels", "random weights", "RankMe", "spread", "monitor"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for run in results.finished:
        probes = [value(run, PROBE), *(least for _, _, least in above(run, PROBE))]
        last = spread(run)
        cells = [
            f"{run.method} ({run.backbone})",
            f"{run.seen or 0:,.0f}",
            *(f"{100 * probe:.1f}" for probe in probes),
            f"{value(run, 'RankMe'):.0f}",
            "" if last is None else f"{last:.2f}",
            "warned" if warnings_of(run) else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def checks(results: Results) -> list[tuple[bool, str]]:
    """(holds, what)."""
    found = []
    for run in results.runs:
        if not run.finished:
            found.append((False, f"{run.name}: {run.status}{f', {run.error}' if run.error else ''}"))
            continue
        for what, figure, least in above(run, PROBE):
            found.append((figure > least, f"{what}: {figure * 100:.1f} against {least * 100:.1f}"))
        told = warnings_of(run)
        found.append((not told, f"{run.name}: {told[0] if told else 'the monitor does not warn'}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("methods", nargs="*", help="by default every system that learns pictures without labels")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures a step")
    parser.add_argument("--budget", default="1m", help="of each training")
    parser.add_argument("--on", default="cifar10", choices=SETS, help="the data")
    parser.add_argument("--limit", type=int, help="only so many pictures, to try it")
    parser.add_argument("--out", default="sensorium-collapse", help="folder of the comparison")
    asked = parser.parse_args()
    data, test = (str(DATA / asked.on / name) for name in SETS[asked.on])
    if not Path(data).exists():
        raise SystemExit(f"skipped: {data} is not there (set SENSORIUM_DATA to the folder of data sets)")
    methods = [f"{name},batch_size={asked.batch_size}" for name in asked.methods or alike("simclr")]
    results = compare(
        methods, data, test=test if test != data else None, budget=asked.budget, limit=asked.limit, labels="100%",
        finetune=False, out=asked.out,
    )  # fmt: skip
    print(table(results), end="\n\n")
    if asked.limit is not None:
        return
    found = checks(results)
    for holds, what in found:
        print(f"{'holds' if holds else 'FAILS'}  {what}")
    raise SystemExit(0 if all(holds for holds, _ in found) else 1)


if __name__ == "__main__":
    main()
