"""What a teacher is worth: a small network that learns a trained one's features, beside the same network and minutes of SimCLR.

The teacher is a supervised run of ten minutes; then ``distill`` and ``simclr`` train the same student for five minutes
each, without labels, and are judged by linear probes on 20,000 CIFAR-10 training pictures, with all labels and with a tenth
(mean of three draws), on 4,000 test pictures. Printed: a table with the teacher and the student's random weights beside them, and
whether the distilled student leads by more than sampling error (1.96 standard errors of a difference of two samples, which
is cautious: both are judged on the same pictures). Finished runs in OUT are read, not trained again. Budgets are times: run it alone.
Run: python -m benchmarks.distill [--teacher-budget 10m] [--budget 5m] [--backbone resnet-micro] [--seed 0] [--limit N] [--out DIR]
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.report.table import simple_models
from sensorium.runs.compare import compare
from sensorium.runs.results import Results, RunResult

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10"
HELD = ("linear, 10%", "linear, 100%")
COLUMNS = ("kNN", *HELD)
QUANTILE = 1.96


def scores(run: RunResult) -> dict[str, float]:
    return {score.name: score.value for score in run.scores if score.value is not None}


def table(teacher: Results, students: Results) -> str:
    """The scores in percent, as Markdown."""
    lines = [f"| {' | '.join(['', 'images seen', 'images/s', *COLUMNS])} |", "|---" * (len(COLUMNS) + 3) + "|"]

    def row(name: str, found: Mapping[str, float], seen: str = "", rate: str = "") -> None:
        cells = [f"{found[c] * 100:.1f}" if c in found else "" for c in COLUMNS]
        lines.append(f"| {' | '.join([name, seen, rate, *cells])} |")

    for what, runs in (("teacher: ", teacher.finished), ("", students.finished)):
        for run in runs:
            row(
                f"{what}{run.method} ({run.backbone})",
                scores(run),
                f"{run.seen or 0:,.0f}",
                f"{run.per_second or 0:.0f}",
            )
    for title, found in simple_models(students.finished).items():
        row(title, found)
    return "\n".join(lines)


def leads(students: Results) -> list[tuple[str, float, float]]:
    """(score, the distilled student's lead over SimCLR's, what it has to exceed)."""
    ours, theirs = (next(run for run in students.finished if run.method == name) for name in ("distill", "simclr"))
    found = []
    for name in HELD:
        a, b = ours.score(name), theirs.score(name)
        assert a is not None
        assert b is not None
        assert a.value is not None
        assert b.value is not None
        found.append((name, a.value - b.value, QUANTILE * math.hypot(a.error or 0.0, b.error or 0.0)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher-budget", help="by default 10m; with --limit a student's")
    parser.add_argument("--budget", default="5m", help="of each student")
    parser.add_argument("--backbone", default="resnet-micro", help="of the students")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="only so many pictures, to try it")
    parser.add_argument("--out", type=Path, default=Path("sensorium-distill"), help="folder of the runs")
    asked = parser.parse_args()
    if not (DATA / "train.npz").is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    data, how = str(DATA / "train.npz"), {"test": str(DATA / "test.npz"), "limit": asked.limit, "seed": asked.seed}
    common: dict[str, Any] = how | {"labels": "10%,100%", "finetune": False}
    longer = asked.teacher_budget or ("10m" if asked.limit is None else asked.budget)
    teacher = compare(["supervised"], data, budget=longer, out=asked.out / "teacher", **common)
    path = asked.out / "teacher" / "supervised"
    methods = [f"distill,teacher={path},backbone={asked.backbone}", f"simclr,backbone={asked.backbone}"]
    students = compare(methods, data, budget=asked.budget, out=asked.out / "students", **common)
    print(table(teacher, students), end="\n\n")
    failed = 0
    for name, lead, least in leads(students):
        failed += lead <= least
        said = "holds" if lead > least else "FAILS"
        print(f"{said}  {name}: distilled {lead * 100:+.1f} points of SimCLR, more than {least * 100:.1f} needed")
    raise SystemExit(1 if failed and asked.limit is None else 0)


if __name__ == "__main__":
    main()
