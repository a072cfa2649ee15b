"""Ctrl-C and SIGTERM, whenever they arrive, are one line and exit code 130."""

import os
import signal
import subprocess
import sys

import pytest

from sensorium.base import stop
from sensorium.cli import main as cli
from sensorium.cli.main import main

# Sends itself a signal when a module is loaded, for the first time or as what a callback hears of.
ARRIVES = """
import os, signal, sys, weakref
class Thing: pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            if {how!r} == "callback":
                thing = Thing()
                at = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.{number}))
                del thing
            else:
                try:
                    os.kill(os.getpid(), signal.{number})
                    for _ in range(1000): pass
                except KeyboardInterrupt as error:
                    if {how!r} == "raised": raise
                    raise ImportError("in other words") from error
sys.meta_path.insert(0, Finder())
import runpy
sys.argv = ["sensorium", *{words!r}]
runpy.run_module("sensorium", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def former():
    """What pytest listens with."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook
    stop._asked.clear()


@pytest.mark.parametrize(
    ("module", "how", "number", "words"),
    [
        ("sensorium.cli", "raised", "SIGINT", ["list"]),
        ("cyclopts", "raised", "SIGINT", ["train", "mae"]),
        ("cyclopts", "raised", "SIGTERM", ["list"]),
        ("rich.text", "callback", "SIGINT", ["compare"]),
        ("rich.text", "converted", "SIGINT", ["data", "x"]),
        ("torch", "raised", "SIGINT", ["embed", "x"]),
        ("torch", "converted", "SIGTERM", ["embed", "x"]),
    ],
)
def test_a_signal_while_modules_are_loaded_is_one_line(module, how, number, words):
    script = ARRIVES.format(module=module, how=how, number=number, words=words)
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = "stopped; the same command resumes it.\n" if words[0] in ("train", "compare") else "stopped.\n"
    assert done.stderr == said
    assert done.returncode == 130
    assert not done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("converted", [False, True])
def test_a_signal_during_a_command_is_one_line(converted, number, monkeypatch, capsys):
    def reads(*_, **__):
        try:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass
        except KeyboardInterrupt as error:
            if converted:
                raise RuntimeError("what a library makes of it") from error
            raise

    monkeypatch.setattr(cli, "app", reads)
    with pytest.raises(SystemExit) as ended:
        main(["data", "x"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped.\n"


def test_an_error_after_no_signal_is_an_error(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("of its own")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        main(["data", "x"])
    assert ended.value.code == 1
    assert "of its own" in capsys.readouterr().err


def test_a_child_does_not_hear_of_ctrl_c_and_its_parent_does():
    with stop.deaf():
        child = subprocess.Popen(
            [sys.executable, "-c", "print(1, flush=True); input()"], text=True, stdin=-1, stdout=-1
        )
    assert child.stdout is not None
    assert child.stdout.readline() == "1\n"
    child.send_signal(signal.SIGINT)
    child.communicate("\n", timeout=20)
    assert child.returncode == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
