"""The command that classifies new pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sensorium.base.reading import printable
from sensorium.base.whole import Positive
from sensorium.cli.shared import console, opens_runs
from sensorium.errors import SensoriumError


def predict(
    run: Path,
    *pictures: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    top: Positive = 2,
    sort: Literal["none", "doubt"] = "none",
    quiet: bool = False,
) -> None:
    """Classify pictures with a trained classifier: the class, its probability, and the next best.

    Example: sensorium predict sensorium-compare/winner photos/ --out predictions.csv

    `sensorium compare` leaves its best classifier in OUT/winner. The probabilities are calibrated once the run has been
    judged. Pictures that can't be read are named, and have a row with the reason.

    Args:
        run: folder of a run of a classifier.
        pictures: files, folders of pictures at any depth, or data sets (tar, Parquet, npz ...); '-' reads paths from
            standard input, one a line, and writes each picture's row as soon as it comes.
        out: the table to write: .csv, .json, .jsonl or .parquet; by default CSV on standard output.
        top: how many of the likeliest classes to write.
        sort: 'doubt' puts first the pictures whose two likeliest classes are nearest to each other.
        quiet: no progress bar and no summary.
    """
    from sensorium.runs.run import Run
    from sensorium.use import predict as use
    from sensorium.use import tables
    from sensorium.use.able import places_of

    _no_options(pictures)
    if not pictures:
        raise SensoriumError(
            "give pictures: sensorium predict RUN PICTURES... (files, folders, data sets, or - for paths)"
        )
    found = Run(run)
    top = use.at_most(found, top)
    if pictures == ("-",):
        if out is not None or sort != "none":
            raise SensoriumError(
                "paths from standard input are answered one by one on standard output: leave out --out and --sort."
            )
        for line in tables.csv_lines([use.columns(top)]):
            print(line, end="", flush=True)
        for one in use.predict_lines(found, sys.stdin, top=top):
            print(*tables.csv_lines([use.row(one, top)]), sep="", end="", flush=True)
        return
    if out is not None:
        tables.check_out(out, tables.TABLES, *pictures, *places_of(found))
    rows = use.predict(found, pictures, top=top, progress=not quiet)
    if sort == "doubt":
        rows = sorted(rows, key=lambda one: -one.doubt)
    if out is None:
        for line in tables.csv_lines([use.columns(top), *(use.row(one, top) for one in rows)]):
            print(line, end="")
    else:
        use.write(rows, top, out)
    if not quiet:
        said = use.told(rows, found)
        print(said, file=sys.stderr) if out is None else console.print(f"{out}: {said}")


COMMANDS = {"predict": opens_runs(predict)}


def _no_options(paths: Sequence[str]) -> None:
    """Raise SensoriumError for an option that there isn't: '-' among the paths lets the parser take any for one."""
    if wrong := next((one for one in paths if one.startswith("-") and one != "-"), None):
        near = get_close_matches(wrong.partition("=")[0], ("--out", "--top", "--sort", "--quiet", "--trust"), 1, 0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        shown = printable(wrong)[:80]
        raise SensoriumError(f"unknown option {shown}.{hint} (A file of that name: ./{shown})")
