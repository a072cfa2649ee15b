"""The tests that need a GPU, in a process of their own: how many passed, failed and were skipped, and which failed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._gpu.here import Here

ROOT = Path(__file__).parents[2]
KEPT = "SENSORIUM_GPU_OUTCOMES"  # names the file that the plugin below writes
FEW = ("test_networks.py", "resnet-micro")  # what a dry run takes of them, on the CPU: a file, and of its tests


def pytest_runtest_logreport(report: Any) -> None:
    """As a plugin of pytest (``-p benchmarks._gpu.tests``): one line a test, as soon as it has ended."""
    ended = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if ended and "PYTEST_XDIST_WORKER" not in os.environ:
        said = str(report.longrepr or "").strip().splitlines()[-1:]
        line = {"test": report.nodeid, "outcome": report.outcome, "said": "".join(said)[:300]}
        with Path(os.environ[KEPT]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def files() -> list[Path]:
    """Those that hold a test with the mark, so that no other is imported: their peers may not be installed."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]


def measure(here: Here) -> None:
    kept = here.out.with_suffix(".outcomes")
    kept.write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-p", "benchmarks._gpu.tests"]
    chosen = [path for path in files() if not here.dry or path.name == FEW[0]]
    # of the tests that may have started this one
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment[KEPT] = str(kept)
    if here.dry:
        command += ["-k", FEW[1]]
        environment["SENSORIUM_GPU_TESTS"] = "cpu"
    elif importlib.util.find_spec("xdist") is not None:
        command += ["-n", "4"]
    process = subprocess.Popen([*command, *map(str, chosen)], cwd=ROOT, env=environment)
    try:
        code: int | None = process.wait(max(1.0, here.left - 3))
    except subprocess.TimeoutExpired:
        process.kill()  # its workers end with it
        process.wait()
        code = None
    lines = [json.loads(line) for line in kept.read_text("utf-8").splitlines() if line.endswith("}")]
    counts = Counter(line["outcome"] for line in lines)
    failed = [f"{line['test']}: {line['said']}" for line in lines if line["outcome"] == "failed"]
    figure = ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))
    figure += "" if code is not None else ", the rest out of time"
    here.tell("tests", figure, **counts, tests_failed=failed, status=code)
    for line in failed:
        print("FAILED", line)
    if code not in (0, None):
        raise SystemExit(f"pytest ended with status {code}: {figure}")
    if code is None:
        raise SystemExit(f"out of time: {figure}")
