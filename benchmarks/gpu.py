"""What a GPU is needed for, in one call of eight minutes: its tests, kernels, training rates, and a training.

On a bare machine with a GPU and Python 3.11 or newer, in the folder of the repository:

    python3 -m venv .venv && .venv/bin/pip install -q -e . pytest pytest-xdist hypothesis && .venv/bin/python -m benchmarks.gpu

    tests      the tests that are skipped without a GPU
    attention  the Triton kernels, FlexAttention and tiled attention against torch's fused kernel
    resident   SimCLR and MAE at 32 and 224 px with the images on the GPU, against images on the host
    cifar      supervised as it comes: accuracy by time, 94 % (CIFAR-10 where $SENSORIUM_DATA has it, else made-up pictures)
    vit        a two-view step of ViT-S/16 at 224 px: pictures a second, share of the GPU's peak
    compiled   the step of micro networks with CUDA graphs against without

Each part is a process of its own with its share of the time, and what it has measured by its end is kept in ``--out``: one
that fails or is out of time loses no other. The exit status is 1 if any did. Installing is not counted.
Run: ``python -m benchmarks.gpu [--minutes 8] [--only PART,...] [--out FILE]``; ``--dry`` tries every part, tiny, on the CPU,
which measures nothing; ``--table`` writes what FILE holds into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks._gpu.rows import PARTS

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "gpu.json"
BEGIN, END = "<!-- gpu: written by `python -m benchmarks.gpu --table`, not by hand -->", "<!-- gpu ends -->"
GRACE = 5.0  # seconds that a part has beyond its time, before it is killed
Found = dict[str, Any]


# --- One part, in a process of its own ---


def part(name: str, out: Path, seconds: float, *, dry: bool) -> None:
    """Measure it; figures go to ``out``, a line each."""
    import torch

    from benchmarks._gpu.here import Here

    kind = "cuda" if torch.cuda.is_available() and not dry else "cpu"
    torch.manual_seed(0)
    here = Here(torch.device(kind), dry, time.monotonic() + seconds, out)
    importlib.import_module(f"benchmarks._gpu.{name}").measure(here)


def start(name: str, out: Path, seconds: float, *, dry: bool) -> Found:
    """Run a part beside the file ``out``; see :func:`watched`."""
    lines = out.with_suffix(f".{name}.jsonl")
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(lines), "--seconds", str(seconds)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | ({"TRITON_INTERPRET": "1"} if dry else {})
    return watched([*command, *["--dry"] * dry], lines, seconds + GRACE, environment)


def watched(command: list[str], lines: Path, seconds: float, environment: Mapping[str, str]) -> Found:
    """Run a command for ``seconds`` at most: its status ("done", "failed" or "out of time"), what it said last, and the
    figures in ``lines`` that it told by then. Its output is in a file .log beside."""
    lines.write_text("", encoding="utf-8")
    begin, log = time.monotonic(), lines.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )  # fmt: skip
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # also what it has started and left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    told = [json.loads(line) for line in lines.read_text("utf-8").splitlines() if line.endswith("}")]
    last = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()][-1:]
    status = "out of time" if code is None else "failed" if code else "done"
    said = "" if status == "done" else "".join(last).strip()[:500]
    rows = {row.pop("row"): row for row in told}
    return {"status": status, "said": said, "seconds": round(time.monotonic() - begin, 1), "rows": rows}


# --- All of them ---


def machine(dry: bool) -> Found:
    import torch

    gpu = None if dry else torch.cuda.get_device_name()
    memory = 0 if dry else torch.cuda.get_device_properties(0).total_memory
    return {
        "gpu": gpu, "memory_gb": round(memory / 1e9, 1), "cores": os.cpu_count(), "python": platform.python_version(),
        "torch": version("torch"), "cuda": torch.version.cuda, "date": date.today().isoformat(),
    }  # fmt: skip


def write(path: Path, content: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def measure(names: list[str], out: Path, minutes: float, *, dry: bool) -> Found:
    """Parts one after another; what is left over by one goes to those after it. ``out`` is written after each and keeps parts
    that the same GPU measured before. Where nothing is measured, all at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    found: Found = {"machine": machine(dry), "dry": dry, "parts": {}}
    former = kept(out)
    if former.get("dry") == dry and former["machine"]["gpu"] == found["machine"]["gpu"]:
        found["parts"] = former["parts"]
    end = time.monotonic() + 60 * minutes

    def one(i: int) -> Found:
        shares = [PARTS[name].share for name in names[i:]]
        share = 1.0 if dry else shares[0] / sum(shares)
        seconds = max(1.0, (end - time.monotonic()) * share - GRACE)
        print(f"[{i + 1}/{len(names)}] {names[i]}, up to {seconds:.0f} s", flush=True)
        return start(names[i], out, seconds, dry=dry)

    with ThreadPoolExecutor(len(names) if dry else 1) as pool:
        for name, ended in zip(names, pool.map(one, range(len(names))), strict=True):
            found["parts"][name] = ended
            write(out, json.dumps(found, indent=1) + "\n")
            show(name, ended)
    return found


def show(name: str, ended: Found) -> None:
    for row, told in ended["rows"].items():
        print(f"    {row}: {told['figure']}", flush=True)
    if ended["status"] != "done":
        print(f"    {name} {ended['status'].upper()} after {ended['seconds']:.0f} s: {ended['said']}", flush=True)


def table(found: Found) -> str:
    """A line a figure, Markdown."""
    lines = ["| row | measured | command | figure |\n|---|---|---|---|"]
    for name, one in PARTS.items():
        rows = found.get("parts", {}).get(name, {}).get("rows", {})
        for i, (row, what) in enumerate(one.rows.items()):
            command = "as above" if i else f"`python -m benchmarks.gpu --only {name}`"
            lines.append(f"| {row} | {what} | {command} | {rows.get(row, {}).get('figure', 'not yet measured')} |")
    if found.get("dry"):
        lines += ["", "A dry run, tiny and on the CPU: these are no measurements."]
    elif on := found.get("machine"):
        lines += ["", f"Measured on {on['gpu']}, torch {on['torch']}, {on['date']}."]
    return "\n".join(lines)


def page(text: str, found: Found) -> str:
    """docs/benchmarks.md with the table of ``found``. A dry run is no measurement."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE}: one of the lines '{BEGIN}' and '{END}' is gone; the table is written between them.")
    if found.get("dry"):
        raise SystemExit("what a dry run wrote is no measurement; nothing was written.")
    return f"{before}{begin}\n\n{table(found)}\n\n{end}{after}"


def kept(path: Path) -> Found:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def listed(text: str) -> list[str]:
    names = [one for one in text.split(",") if one]
    if unknown := [one for one in names if one not in PARTS]:
        raise argparse.ArgumentTypeError(f"{','.join(unknown)}: choose among {', '.join(PARTS)}")
    return names


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    found.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    found.add_argument("--only", type=listed, default=[], metavar="PART,...", help="these parts")
    found.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON to write: sensorium-evidence/gpu.json, of a dry run gpu-dry.json",
    )
    found.add_argument("--dry", action="store_true", help="try every part, tiny, on the CPU; no GPU is needed")
    found.add_argument(
        "--table", action="store_true", help="write the table of docs/benchmarks.md, of --out or docs/gpu.json"
    )
    found.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    found.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return found


def main() -> None:
    given = parser().parse_args()
    out = (given.out or Path("sensorium-evidence") / f"gpu{'-dry' * given.dry}.json").resolve()
    if given.part:
        part(given.part, out, given.seconds, dry=given.dry)
        return
    if given.table:
        found = kept(out) or kept(KEPT)
        write(PAGE, page(PAGE.read_text(encoding="utf-8"), found))
        if found:
            write(KEPT, json.dumps(found, indent=1) + "\n")
        return
    import torch

    if not given.dry and not torch.cuda.is_available():
        raise SystemExit(
            "there is no GPU here that torch can use; --dry (make gpu GPU=--dry) tries every part on the CPU."
        )
    names = given.only or list(PARTS)
    found = measure(names, out, given.minutes, dry=given.dry)
    print(f"\n{table(found)}\n\nkept in {out}")
    raise SystemExit(any(found["parts"][name]["status"] != "done" for name in names))


if __name__ == "__main__":
    main()
