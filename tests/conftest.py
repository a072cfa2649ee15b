"""What tests of several folders share."""

import multiprocessing
import os
import pkgutil
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
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
    torch.manual_seed(0)  # what a test draws does not depend on those before it


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
def forked() -> Callable[..., Any]:
    """A process of ``multiprocessing`` for ``target(*args)``, which begins as a spawned one does, but has loaded torch.

    It is forked from a server that has done nothing else: neither from this process with its threads, nor with what tests
    changed here. Loading takes longer than most of what tests let a process do.
    """
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    judges = [f"sensorium.judge.{one.name}" for one in pkgutil.iter_modules(import_module("sensorium.judge").__path__)]
    context.set_forkserver_preload(["sensorium.runs.compare", "torch._dynamo", *judges])
    # the environment of now, which may not be the server's
    code = "import os; os.environ.clear(); os.environ.update(environment); target(*args)"

    def make(target: Callable[..., Any], args: tuple[Any, ...], name: str | None = None) -> Any:
        given = {"environment": dict(os.environ), "target": target, "args": args}
        return context.Process(target=exec, args=(code, given), name=name)

    return make


@pytest.fixture(scope="session", autouse=True)
def _runs_are_forked(forked: Callable[..., Any]) -> Iterator[None]:
    """The runs of a comparison that a test makes in this process; those that tests start as a program spawn theirs."""
    from sensorium.runs import compare

    context = SimpleNamespace(Process=lambda target, args, name: forked(target, args, name))
    given = SimpleNamespace(get_context=lambda how: context, parent_process=multiprocessing.parent_process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "multiprocessing", given)
        yield


@pytest.fixture(scope="session")
def forked_script(forked: Callable[..., Any]) -> Callable[..., Any]:
    """``python SCRIPT WORDS`` as such a process, with one thread."""
    code = "import runpy, sys, torch; torch.set_num_threads(1); sys.argv = words; runpy.run_path(words[0], None, '__main__')"
    return lambda *words: forked(exec, (code, {"words": [str(word) for word in words]}))


@pytest.fixture(scope="session")
def in_processes(
    tmp_path_factory: pytest.TempPathFactory, forked_script: Callable[..., Any]
) -> Callable[[str, int], list[Any]]:
    """Run ``SCRIPT RANK WORLD FOLDER`` for every rank at once: what each saved as ``FOLDER/RANK.pt``."""

    def run(script: str, world: int) -> list[Any]:
        folder = tmp_path_factory.mktemp("gloo")
        workers = [forked_script(script, rank, world, folder) for rank in range(world)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join(300)
        finally:
            for worker in workers:
                worker.kill()
        assert [worker.exitcode for worker in workers] == [0] * world  # what they said is on standard error
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
