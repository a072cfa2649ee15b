"""A few of the kills and full disks of ``make torture``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_runs_of_two_families_end_as_if_nothing_had_happened():
    command = [sys.executable, "-m", "benchmarks.torture", "--kills", "3", "--full", "3", "--alone", "--seed", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [*command, "--only", "language", "streaming"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "Every run ended as the uninterrupted one." in done.stdout
