"""Killed at random moments, and out of disk at every write: does a run end as if nothing had happened?

    python -m benchmarks.torture --kills 100          (make torture)

For the tiny system of each family: the uninterrupted run is trained and judged once, counting its moments (each file that
is opened for writing, renamed or removed, each folder made, each training step). Then, ``--kills`` times, a run of
the same command is killed (SIGKILL) at one to three random moments, and the same command runs to its end: the weights'
digest, metrics.csv and online.csv without their seconds, and the scores must be those of the uninterrupted run, and no
partial file may be left. Likewise with a disk that is full at a random moment, and with a limit on the size of files:
then the error must also be one line that names a path. A comparison is killed too, its parent or a child. The
processes are forked from one that has imported torch, so that a kill costs a second.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import judge
from sensorium.judge.score import Asked
from sensorium.runs import train as training
from sensorium.runs.options import RunOptions
from sensorium.training.step import Step

SYSTEMS: dict[str, tuple[str, str, dict[str, Any]]] = {  # family -> system, data, settings
    "selfsup": ("simclr", "digits", {"limit": 64, "batch_size": 16}),
    "language": ("causal_lm", "text.txt", {"width": 16, "depth": 1, "length": 16, "batch_size": 4, "vocab": 300}),
    "multimodal": ("clip", "scenes:64", {"image_size": 32, "batch_size": 8, "text_width": 32, "text_depth": 1}),
    "generative": ("made", "pictures", {"batch_size": 8}),
    "detection": ("fcos", "scenes:16", {"image_size": 64, "batch_size": 4}),
    "streaming": ("oadtr", "scenes:16", {"batch_size": 4}),
}
STEPS = 6
PROCESSES = (
    "tests/selfsup/test_two_processes.py",
    "tests/generative/test_vqgan_processes.py",
    "tests/training/test_processes.py",
)
_WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Ending:
    """What a run's folder holds at the end, without what the clock decides."""

    weights: str
    tables: tuple[Any, ...]
    scores: tuple[Any, ...]
    left: tuple[str, ...]


class Moments:
    """Counts what a process does in ``folder``, and does ``act`` at moment ``at``, if ``writing`` only where it writes."""

    def __init__(
        self, folder: Path, at: int = -1, act: Callable[[], None] = lambda: None, writing: bool = False
    ) -> None:
        self.folder, self.at, self.act, self.count, self.writing = str(folder), at, act, 0, writing
        sys.addaudithook(self.hook)
        step = Step.__call__

        def counted(*words: Any, **named: Any) -> Any:
            self.tick(written=False)
            return step(*words, **named)

        Step.__call__ = counted  # type: ignore[method-assign]

    def hook(self, event: str, words: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(words[2], int) and words[2] & _WRITES
        if opened or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
            path = words[0]
            if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(os.fspath(path)).startswith(self.folder):
                self.tick()

    def tick(self, written: bool = True) -> None:
        self.count += 1
        if self.count > self.at >= 0 and (written or not self.writing):
            self.at = -1
            self.act()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each family; a comparison gets a tenth")
    parser.add_argument("--full", type=int, help="full disks of each family; by default as many as a quarter of kills")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="FAMILY")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="no comparison, no several processes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng, full = random.Random(asked.seed), asked.kills // 4 if asked.full is None else asked.full
    rows: list[tuple[str, Counter[str], list[str]]] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        work = Path(temporary)
        make_data(work)
        todo = len(asked.only) * (asked.kills + full)
        clock = Clock(todo)
        for family in asked.only:
            rows.append((family, *family_of(family, work, asked.kills, full, rng, clock)))
        if not asked.alone:
            rows.append(("compare", *comparison(work, max(1, asked.kills // 10), rng)))
    if not asked.alone:
        rows.append(("processes", *processes()))
    code = told(rows, asked.seed)
    sys.stdout.flush()
    os._exit(code)  # libraries that were imported for the children only have much to say at an orderly end


class Clock:
    """Progress on standard error, with the time left."""

    def __init__(self, todo: int) -> None:
        self.todo, self.done, self.start = todo, 0, time.monotonic()

    def __call__(self, what: str) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.todo - self.done)
        print(f"\r{self.done}/{self.todo} {what}, {left / 60:.0f} min left   ", end="", file=sys.stderr, flush=True)


def make_data(work: Path) -> None:
    (work / "text.txt").write_text("it was a dark night and some words followed. " * 60, encoding="utf-8")
    rng = np.random.default_rng(0)
    (work / "pictures").mkdir()
    for i in range(64):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(work / "pictures" / f"{i}.png")


def family_of(
    family: str, work: Path, kills: int, full: int, rng: random.Random, clock: Clock
) -> tuple[Counter[str], list[str]]:
    """Outcomes, counted, and the failures of a family in words."""
    reference, found, failures = work / family / "reference", Counter[str](), []
    code, said, count = forked(family, work, reference)
    if code:
        return Counter(failed=1), [f"{family}: the uninterrupted run ended with {code}: {said}"]
    for module in (reference.parent / "modules").read_text(encoding="utf-8").split():
        with contextlib.suppress(Exception):  # what a run imports late is imported once, before the forks
            importlib.import_module(module)
    wanted = ending(reference)
    for number in range(kills + full):
        out, moments = (
            work / family / f"{number}" / "run",
            [rng.randrange(count) for _ in range(rng.choice((1, 1, 2, 3)))],
        )
        how = "kill" if number < kills else rng.choice(("full", "limit"))
        wrong = ""
        for at in moments:
            code, said, _ = forked(family, work, out, how, at, rng.randrange(1, 60_000))
            if how == "kill" and code not in (0, -signal.SIGKILL):
                wrong = f"ended with {code}: {said}"
            elif how != "kill" and code and (said.count("\n") or str(work) not in said):
                wrong = f"an error that is not one line with a path: {said}"
            found["reached" if code else "not reached"] += 1
        code, said, _ = forked(family, work, out)
        if code:
            wrong = f"the same command ended with {code}: {said}"
        elif not wrong and (differing := differences(ending(out), wanted)):
            wrong = f"other {differing}"
        if wrong:
            failures.append(f"{family}, {how} at moments {moments} of {count}: {wrong}")
        found["failed" if wrong else "equal"] += 1
        shutil.rmtree(out.parent, ignore_errors=True)
        clock(family)
    return found, failures


def forked(family: str, work: Path, out: Path, how: str = "", at: int = -1, most: int = 0) -> tuple[int, str, int]:
    """Train and judge in a child process: exit code (negative: a signal), error, moments.

    how: "" undisturbed, "kill" at moment ``at``, a disk "full" from then on, or a "limit" of ``most`` bytes a file.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()
    child = os.fork()
    if not child:
        os.close(reader)
        act = {"kill": _kill, "full": _full}.get(how, lambda: None)
        code, said, moments = 1, "", Moments(out.parent, at, act, writing=how == "full")
        try:
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            if how == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            once(family, work, out)
            code = 0
            if not how:
                (out.parent / "modules").write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
        except SensoriumError as error:
            said = str(error)
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-2:]
            said = f"{type(error).__name__}:\n{error} {[(f.filename[-40:], f.lineno, f.line) for f in frame]}"
        os.write(writer, json.dumps([said[:4000], moments.count]).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said, count = json.loads(told) if told else ("", 0)
    return status, said, count


def once(family: str, work: Path, out: Path) -> None:
    name, data, settings = SYSTEMS[family]
    data = str(work / data) if (work / data).exists() else data
    settings = settings | {"data": data, "out": out, "budget": f"{STEPS}steps", "quiet": True}
    options, plain = RunOptions.take(settings), training._options
    training._options = lambda options: replace(plain(options), checkpoint_every=0.0)
    prepared = kind(kind_name(name)).prepare(
        Source(data, None, out.parent / "cache", options.image_size, options.limit, settings)
    )
    run = training.train_with(name, options, settings, prepared=prepared)
    judge(run, prepared, Asked(labels="100%", label_seeds=1, finetune=False, progress=False))


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ending(out: Path) -> Ending:
    found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    left = [str(path.relative_to(out)) for path in out.rglob("*") if path.name.endswith((".partial", ".tmp", ".lock"))]
    tables = [
        [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in csv.DictReader((out / name).open(encoding="utf-8"))
        ]
        for name in ("metrics.csv", "online.csv")
    ]
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return Ending(digest, tuple(tables), tuple(found["scores"]), tuple(left))


def differences(one: Ending, other: Ending) -> str:
    return ", ".join(name for name in Ending.__annotations__ if getattr(one, name) != getattr(other, name))


def comparison(work: Path, kills: int, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """A comparison of two systems whose parent or child is killed, as often as ``kills`` says, and run again."""
    out, found, failures = work / "compare", Counter[str](), []
    words = ["compare", "supervised", "simclr", "--data", "digits", "--limit", "64", "--budget", f"{STEPS}steps"]
    words += ["--labels", "100%", "--label-seeds", "1", "--no-finetune", "--quiet", "--out"]
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "sensorium", *words, str(out / "whole")], check=True, capture_output=True)
    took = time.monotonic() - start
    wanted = _compared(out / "whole")
    for number in range(kills):
        folder = out / str(number)
        process = subprocess.Popen(
            [sys.executable, "-m", "sensorium", *words, str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0, took))
        below = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = below.read_text(encoding="utf-8").split() if below.exists() else []
        victim = int(children[-1]) if children and rng.random() < 0.5 else process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        process.wait()
        found["reached" if process.returncode else "not reached"] += 1
        for _ in range(20):  # children of a killed parent write a checkpoint, and are in the way until then
            again = subprocess.run(
                [sys.executable, "-m", "sensorium", *words, str(folder)], capture_output=True, text=True, check=False
            )
            if again.returncode == 0 and "another process" not in json.dumps(_compared(folder)):
                break
            time.sleep(0.5)
        same = again.returncode == 0 and _compared(folder) == wanted
        found["equal" if same else "failed"] += 1
        if not same:
            failures.append(
                f"compare, process {(victim == process.pid and 'parent') or 'child'}: {again.stderr[-300:]}"
            )
    return found, failures


def _compared(folder: Path) -> list[Any]:
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [[run["name"], run["status"], run.get("error"), run["scores"]] for run in found["runs"]]


def processes() -> tuple[Counter[str], list[str]]:
    """One process equals two: the tests of every loss that gathers."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *PROCESSES]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = done.stdout.strip().splitlines()[-1:]
    return (Counter(equal=1), []) if not done.returncode else (Counter(failed=1), said)


def told(rows: list[tuple[str, Counter[str], list[str]]], seed: int) -> int:
    """Print the table and the failures: the exit code."""
    print(file=sys.stderr)
    columns = ("reached", "not reached", "equal", "failed")
    print(f"{'seed ' + str(seed):12s}" + "".join(f"{name:>13s}" for name in columns))
    for name, found, _ in rows:
        print(f"{name:12s}" + "".join(f"{found[column]:13d}" for column in columns))
    failures = [failure for _, _, many in rows for failure in many]
    print("\n".join(failures) or "Every run ended as the uninterrupted one.")
    return int(bool(failures))


if __name__ == "__main__":
    main()
