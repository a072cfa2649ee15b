"""What tests of several folders share."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium.cli.main import main

# A shell that starts the tests in the background lets them ignore Ctrl-C, which they send to processes of their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

Command = Callable[..., tuple[int, str, str]]
# Tests of a GPU may be rehearsed without one, to try their code: SENSORIUM_GPU_TESTS=cpu python -m pytest -m gpu
GPU = "cuda" if torch.cuda.is_available() else os.environ.get("SENSORIUM_GPU_TESTS", "")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not GPU and item.get_closest_marker("gpu"):
        pytest.skip("needs a GPU; `make gpu` runs these tests on a machine that has one")


@pytest.fixture
def gpu() -> torch.device:
    """The GPU of a test with the mark ``gpu``; the CPU where the test is rehearsed."""
    return torch.device(GPU)


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Command:
    """Run ``sensorium WORDS``: exit code, standard output, standard error (the wrapping of narrow terminals undone)."""

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        seen = capsys.readouterr()
        return code, seen.out, re.sub(r"\s+", " ", seen.err)

    return run


@pytest.fixture(scope="session")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[Any]]:
    """Run ``SCRIPT RANK WORLD FOLDER`` for every rank at once: what each saved as ``FOLDER/RANK.pt``."""

    def run(script: str, world: int) -> list[Any]:
        folder = tmp_path_factory.mktemp("gloo")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        commands = [[sys.executable, script, str(rank), str(world), str(folder)] for rank in range(world)]
        workers = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
        try:
            errors = [worker.communicate(timeout=300)[1] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        assert all(worker.returncode == 0 for worker in workers), "\n".join(errors)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]

    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="looking at pages needs playwright")
    if BROWSER is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()
