"""The evidence behind the docs' numbers: runs the commands of ``benchmarks/_rows.py`` and writes the tables of docs/benchmarks.md.

One command after another, alone on the machine, for budgets are times. Each row is kept in docs/evidence.json as soon as its
commands have ended: stopped at any moment, the same call goes on with the rows that are left. A row whose data sets are not
in $SENSORIUM_DATA is skipped and named; one whose command fails is told, the others go on, and the exit status is 1.
Runs and what commands printed stay in sensorium-evidence/ROW.

Run: ``make evidence``, ``make evidence-FAMILY``, or ``python -m benchmarks.evidence [--only FAMILY,...] [--rows ID,...] [--fresh]``;
``--list`` says what there is, ``--smoke`` tries every command with a few steps and keeps nothing, ``--table`` only writes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks._figures import Missing, picked
from benchmarks._rows import ROWS, Row
from sensorium.base.machine import cores

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SENSORIUM_DATA", ROOT.parent / "shared" / "data")).resolve()
KEPT, PAGE = ROOT / "docs" / "evidence.json", ROOT / "docs" / "benchmarks.md"
WORK = Path("sensorium-evidence")
BEGIN, END = (
    "<!-- evidence: written by `python -m benchmarks.evidence --table`, not by hand -->",
    "<!-- evidence ends -->",
)
PLACE = re.compile(r"\{([^{}]+)\}")
# What --smoke asks of a command instead, where it has the flag.
SHORT = {"--budget": "4steps", "--limit": "400", "--seconds": "1", "--rounds": "1", "--seeds": "1", "--samples": "500"}
PICTURES = ("supervised", "clip", "rectified_flow", "made", "vqgan", "token_prior", "fcos", "detr")  # --limit is theirs
Kept = dict[str, dict[str, Any]]


# --- Commands ---


def spelled(command: str) -> str:
    """As a person types it."""
    return PLACE.sub(r"$SENSORIUM_DATA/\1", command)


def absent(row: Row) -> list[str]:
    """Data sets that the row needs and that are not here."""
    named = [name for command in row.commands for name in PLACE.findall(command)]
    return [name for name in dict.fromkeys((*named, *row.needs)) if not (DATA / name).exists()]


def words(command: str) -> list[str]:
    """What to start: this Python, and the data sets in their places."""
    program, *rest = (PLACE.sub(lambda found: str(DATA / found[1]), word) for word in shlex.split(command))
    return [sys.executable, *({"python": [], "sensorium": ["-m", "sensorium"]}[program]), *rest]


def short(command: str) -> str:
    """The command with its budget cut to a few steps."""
    said = shlex.split(command)
    for flag, value in SHORT.items():
        if flag in said:
            said[said.index(flag) + 1] = value
    more: list[str] = []
    if said[0] == "sensorium" and said[2] in PICTURES and "--limit" not in said:
        more = ["--limit", SHORT["--limit"]]
    elif said[1] == "-m":
        source = (ROOT / f"{said[2].replace('.', '/')}.py").read_text(encoding="utf-8")
        wanted = {"--rounds": "rounds", "--limit": '"--limit"', "--budget": '"--budget"', "--samples": '"--samples"'}
        flags = [flag for flag, sign in wanted.items() if sign in source and flag not in said]
        more = [word for flag in flags for word in (flag, SHORT[flag])]
    return " ".join(word if PLACE.search(word) else shlex.quote(word) for word in (*said, *more))


def run(commands: Sequence[str], folder: Path) -> str:
    """What the commands printed, started one after another in ``folder``. Raises Missing where one fails."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"SENSORIUM_DATA": str(DATA), "PYTHONPATH": path}
    folder.mkdir(parents=True, exist_ok=True)
    printed = ""
    for i, command in enumerate(commands):
        out, err = folder / f"{i}.out", folder / f"{i}.err"
        with out.open("w") as o, err.open("w") as e:
            process = subprocess.Popen(words(command), cwd=folder, env=environment, stdout=o, stderr=e)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()  # a training writes a checkpoint and ends
                process.wait()
                raise
        said = out.read_text(encoding="utf-8")
        if code:
            last = [line for line in (said + err.read_text(encoding="utf-8")).splitlines() if line.strip()][-1:]
            raise Missing(f"`{command}` ended with status {code}: {''.join(last).strip()} ({err})")
        printed += said + "\n"
    return printed


# --- What is kept ---


def read() -> Kept:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


def write(kept: Kept) -> None:
    """Kept rows and the page, in the order of the table."""
    text = json.dumps({row.id: kept[row.id] for row in ROWS if row.id in kept}, indent=1, ensure_ascii=False)
    for path, content in ((KEPT, text + "\n"), (PAGE, page(PAGE.read_text(encoding="utf-8"), kept))):
        temporary = path.with_suffix(".tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)


def entry(row: Row, kept: Kept) -> dict[str, Any]:
    """What is kept of a row; nothing where its commands or its figure have changed since."""
    found = kept.get(row.id, {})
    return found if found.get("commands") == list(row.commands) and found.get("figure") == row.figure else {}


def pending(row: Row, kept: Kept) -> bool:
    found = entry(row, kept)
    return "date" not in found or found.get("again", False)


def machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8"))):
        name = found[1]
    from sensorium.base.bf16 import fast_bf16  # torch, which a look at the list does not need

    precision = "bfloat16" if fast_bf16("cpu") else "float32"
    return {"processor": name, "cores": cores(), "precision": precision, "torch": version("torch")}


def commit() -> str:
    """Of the working tree, with a + where code was changed since; "" outside of git."""

    def git(*said: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *said], capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        return ""

    changed = git("status", "--porcelain", "--", "src", "benchmarks")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def page(text: str, kept: Kept) -> str:
    """The page with its tables anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE}: between '{BEGIN}' and '{END}' the tables are written; one of these lines is gone.")
    return f"{before}{begin}\n\n{tables(kept)}\n\n{end}{after}"


def tables(kept: Kept) -> str:
    """A line a row, the machines, and a section for each row that is a table of its own."""
    lines = ["| row | measured | command | figure | when |\n|---|---|---|---|---|"]
    sections, machines = [], dict[str, list[str]]()
    for i, row in enumerate(ROWS):
        found = entry(row, kept)
        value, said = found.get("value", "not yet measured"), when(found)
        commands = [f"`{spelled(command)}`" for command in row.commands]
        if i and ROWS[i - 1].commands == row.commands:
            commands = ["as above"]
        if on := found.get("machine"):
            name = f"{on['processor']}, {on['cores']} cores, trainings in {on['precision']}, torch {on['torch']}"
            machines.setdefault(name, []).append(row.id)
        if row.title:
            heading = f"## {row.title}\n\n{row.what}\n\n{', '.join(commands)}{said and f' ({said})'}:"
            sections.append(f"{heading}\n\n{value}")
        else:
            lines.append(f"| {row.id} | {row.what} | {'<br>'.join(commands)} | {value} | {said} |")
    where = [f"Measured on {name}: {', '.join(ids)}." for name, ids in machines.items()]
    return "\n\n".join(["\n".join(lines), *where, *sections])


def when(found: dict[str, Any]) -> str:
    if "date" in found:
        return f"{found['date']}, {found['seconds'] / 60:.1f} min, {found['commit']}"
    return "earlier" if found else ""


# --- The measuring ---


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the same commands together."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.commands, []).append(row)
    return list(found.values())


def expected(group: list[Row], kept: Kept) -> float:
    """Seconds that its commands will take."""
    return max(entry(row, kept).get("seconds", 60 * row.minutes) for row in group)


def measure(group: list[Row], folder: Path, kept: Kept, *, smoke: bool) -> list[str]:
    """Run a group's commands and keep its rows' figures; what went wrong, a line each."""
    if smoke or (folder / "done").is_file():  # what is left of an earlier measurement would only be read back
        shutil.rmtree(folder, ignore_errors=True)
    begin, failed, code = time.monotonic(), [], commit()  # of the start: it may go on while this is measured
    try:
        printed = run([short(one) for one in group[0].commands] if smoke else group[0].commands, folder)
    except Missing as error:
        return [f"{', '.join(row.id for row in group)}: {error}"]
    spent = round(time.monotonic() - begin)
    (folder / "done").touch()
    for row in group:
        try:
            value = row.figure.format(*(picked(pick, folder, printed) for pick in row.picks))
        except Missing as error:
            failed.append(f"{row.id}: {error}")
            continue
        print(f"    {row.id}: {value if not row.title else chr(10) + value}", flush=True)
        if not smoke:
            about = {"date": date.today().isoformat(), "seconds": spent, "machine": machine(), "commit": code}
            kept[row.id] = {"value": value, "commands": list(row.commands), "figure": row.figure, **about}
    if not smoke:
        write(kept)
    return failed


def chosen(given: argparse.Namespace) -> list[Row]:
    for flag, known in (("only", [row.family for row in ROWS]), ("rows", [row.id for row in ROWS])):
        if unknown := [one for one in getattr(given, flag) if one not in known]:
            raise SystemExit(f"--{flag} {','.join(unknown)}: choose among {', '.join(dict.fromkeys(known))}")
    return [
        row for row in ROWS if row.family in (given.only or [row.family]) and row.id in (given.rows or [row.id])
    ]  # fmt: skip


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def measure_all(rows: list[Row], kept: Kept, *, smoke: bool) -> int:
    """Every group that is left, with what was spent and what is to come; the exit status."""
    failed, begin = [], time.monotonic()
    todo = []
    for group in groups(row for row in rows if smoke or pending(row, kept)):
        ids = ", ".join(row.id for row in group)
        if gone := list(dict.fromkeys(name for row in group for name in absent(row))):
            print(f"skipped {ids}: no {', '.join(gone)} in {DATA} (set SENSORIUM_DATA to the folder of data sets)")
        else:
            todo.append(group)
    for i, group in enumerate(todo):
        left = "" if smoke else f", about {minutes(sum(expected(one, kept) for one in todo[i:]))} left"
        ids = ", ".join(row.id for row in group)
        print(f"[{i + 1}/{len(todo)}] {ids} ({minutes(time.monotonic() - begin)} spent{left})", flush=True)
        found = measure(group, WORK / ("smoke" if smoke else "") / group[0].id, kept, smoke=smoke)
        for line in found:
            print(f"    FAILED {line}", flush=True)
        failed += found
    print(f"{len(todo)} done, {len(failed)} failed, {minutes(time.monotonic() - begin)}")
    return 1 if failed else 0


def listed(text: str) -> list[str]:
    return [one for one in text.split(",") if one]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--only", type=listed, default=[], metavar="FAMILY,...", help="rows of these families")
    found.add_argument("--rows", type=listed, default=[], metavar="ID,...", help="these rows")
    found.add_argument("--list", action="store_true", help="say what rows there are and which are measured")
    found.add_argument("--smoke", action="store_true", help="try the commands with a few steps; nothing is kept")
    found.add_argument("--fresh", action="store_true", help="measure again what was; if stopped, go on without it")
    found.add_argument("--table", action="store_true", help="only write the tables of docs/benchmarks.md")
    return found


def stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    given = parser().parse_args()
    rows, kept = chosen(given), read()
    if given.list:
        for row in rows:
            state = "no data" if absent(row) else when(entry(row, kept)) or "not yet measured"
            print(f"{row.id:18} {row.family:11} {row.minutes:4.0f} min  {state:28} {row.title or row.what}")
        return
    if given.table:
        write(kept)
        return
    if given.fresh and not given.smoke:
        for group in groups(rows):
            shutil.rmtree(WORK / group[0].id, ignore_errors=True)
            for row in group:
                kept.get(row.id, {})["again"] = True
        write(kept)
    signal.signal(signal.SIGTERM, stop)
    try:
        raise SystemExit(measure_all(rows, kept, smoke=given.smoke))
    except KeyboardInterrupt:
        print("stopped; the same command without --fresh goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
